"""How the time of a training is best divided: few long networks or many short ones, alone and averaged, on the cases left out.

    python benchmarks/networks.py DATASET --epochs 60 --networks 1 2 4 8

Trains fold 0 once for each number of networks, with the same number of steps in all, and scores each network alone and the average of the
first k. The differences are paired over cases, with their 95 % interval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from hardware import write

from medseg import workflow
from medseg.commands.console import Bars
from medseg.device import choose_device
from medseg.evaluation.comparison import compare
from medseg.evaluation.records import Evaluation
from medseg.evaluation.scoring import evaluate
from medseg.inference.predictor import Predictor
from medseg.models.weights import load_weights
from medseg.plans import Plan
from medseg.progress import Progress
from medseg.tasks.base import find_task
from medseg.training.history import History
from medseg.training.splits import Splits
from medseg.workspace import RunFolder, Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--epochs", type=int, required=True, help="of all networks together")
    parser.add_argument("--networks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--keep", type=Path, help="keep the models in this folder; finished ones are not trained again")
    arguments = parser.parse_args()
    results: list[dict[str, object]] = []
    base: Evaluation | None = None
    with tempfile.TemporaryDirectory() as temporary, Bars() as progress:
        for count in arguments.networks:
            out = (arguments.keep or Path(temporary)) / f"networks_{count}"
            edits = {"training.networks": str(count), "training.network_steps": "1"}
            workflow.run(arguments.dataset, out, epochs=arguments.epochs, edits=edits, progress=progress)
            evaluations = scores(RunFolder(out), progress)
            base = base or evaluations["all"]
            last = History.read(out / "fold_0" / "metrics.csv").rows[-1]
            results.append(
                {
                    "networks": int(last["network"]),
                    "steps": int(last["step"]),
                    "minutes": round(last["seconds"] / 60, 1),
                    **{name: dice(evaluation) for name, evaluation in evaluations.items()},
                    "difference": {
                        d.cls: [round(v, 4) for v in (d.difference, d.low, d.high) if v is not None]
                        for d in compare(base, evaluations["all"]).differences
                        if d.metric == "dice"
                    },
                }
            )
            progress.say(str(results[-1]))
            write(
                "networks", results, f"fold 0, {arguments.epochs} epochs in all; mean Dice of each network, of the first k averaged, of all"
            )


def scores(run: RunFolder, progress: Progress) -> dict[str, Evaluation]:
    """Each network alone, and the average of the first k."""
    plan = Plan.load(run.plan_file)
    workspace = Workspace(run.root / "workspace")
    dataset = workspace.dataset()
    ids = Splits.load(run.splits_file).folds[0].val
    task, digest = find_task(plan.task)(plan), plan.trained_digest()
    files = run.weights()
    groups = {f"network {i + 1}": [file] for i, file in enumerate(files)}
    groups |= {f"first {k}": list(files[:k]) for k in range(2, len(files))}
    groups["all"] = list(files)
    found = {}
    for name, members in groups.items():
        predictor = Predictor(plan, [load_weights(task.network(), file, digest) for file in members], choose_device("auto"), key=name)
        with tempfile.TemporaryDirectory() as folder:
            predictor.predict([dataset.case(i) for i in ids], Path(folder), progress=progress)
            found[name] = evaluate(Path(folder), dataset, None, None, None, progress, plan=plan, cases=ids, metrics=["dice"])
    return found


def dice(evaluation: Evaluation) -> float:
    """The mean over cases and classes."""
    return round(evaluation.overall["dice"].mean or 0, 4)


if __name__ == "__main__":
    main()
