"""What variants of the loss, and drawing windows from small components, bring on small lesions: equal steps, scored on the cases left out.

    python benchmarks/losses.py DATASET --folds 0 1 --steps 400 --edit window=[32,48,48]

Every variant of the loss is an edit of the plan (`--set`). Variants share plan, steps, folds and seeds, so differences are paired; the rows
are means over folds and seeds, `spread` is the standard deviation of the paired differences to the first row.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from hardware import write

from medseg import workflow
from medseg.case import Case
from medseg.commands.console import Bars
from medseg.device import choose_device
from medseg.domains.grid.sampling import PER_CLASS
from medseg.evaluation.scoring import evaluate
from medseg.geometry import Grid
from medseg.inference.predictor import Predictor
from medseg.io.store import Store
from medseg.models.weights import load_weights
from medseg.plans import Plan
from medseg.progress import Progress, Silent
from medseg.tasks.base import find_task
from medseg.training.budget import Budget
from medseg.training.splits import Split, make_splits
from medseg.training.train import train
from medseg.workspace import RunFolder, Workspace

VOXELS = "Dice + cross entropy, windows drawn evenly over voxels"
VARIANTS: dict[str, dict[str, str]] = {
    VOXELS: {},
    "half of the windows drawn evenly over components": {},
    "+ Tversky 0.7": {"target.missed": "0.7"},
    "+ blob loss": {"target.blob": "1"},
    "+ blob loss, Tversky 0.7": {"target.blob": "1", "target.missed": "0.7"},
    "+ focal 2": {"target.focal": "2"},
    "+ top 10 %": {"target.hardest": "0.1"},
}
METRICS = ("dice", "lesion_f1", "sensitivity", "precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--folds", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--edit", action="append", default=[], help="FIELD=VALUE of the recommended plan")
    parser.add_argument("--only", nargs="+", type=int, help="numbers of variants, from 0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    edits = dict(edit.split("=", 1) for edit in arguments.edit)
    length = {"training.steps": str(arguments.steps), "training.network_steps": str(arguments.steps), "training.epochs": "1"}
    names = [list(VARIANTS)[i] for i in arguments.only] if arguments.only else list(VARIANTS)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary, Bars() as progress:
        workspace = Workspace(Path(temporary) / "plans")
        plans = workflow.plan(arguments.dataset, workspace.root, memory=4, device="cpu", workers=1)
        plan = next(p for p in plans if p.recommended).edited(edits | length)
        store = workflow.preprocess(workspace.plan_file(plan.name), workers=1)
        even = evenly_over_voxels(store, Path(temporary) / "even", plan)
        splits = make_splits(workspace.dataset(), workspace.fingerprint(), plan.training.folds, 0)
        for seed in arguments.seeds:
            for fold in arguments.folds:
                for name in names:
                    out = RunFolder(Path(temporary) / f"{len(rows[name])}_{names.index(name)}")
                    chosen = plan.edited({**VARIANTS[name], "training.seed": str(seed)})
                    found = trained(chosen, even if name == VOXELS else store, splits[fold], workspace, out)
                    rows[name].append(found)
                    progress.say(f"seed {seed} fold {fold} {name}: {found}")
                done = len(rows[names[0]])
                note = (
                    f"{arguments.steps} steps of {plan.training.batch_size} x {plan.window} each, edits {arguments.edit}; {done} runs of every "
                    f"variant (seeds {arguments.seeds}, within them folds {arguments.folds} of {len(splits)}); differences are to the first row"
                )
                write(f"losses_{workspace.dataset().name}", summary(rows), note)


def evenly_over_voxels(store: Store, folder: Path, plan: Plan) -> Store:
    """The same prepared cases, with locations that are drawn evenly over the voxels of each class."""
    even = Store(folder)
    for case_id in store.ids():
        case = store.read(case_id)
        assert case.label is not None
        found = []
        for item in plan.data.labels.classes:
            places = np.argwhere(np.isin(case.label, item.values)).astype(np.int32)
            few = np.random.default_rng(0).choice(len(places), min(len(places), PER_CLASS), replace=False)
            found.append(places[np.sort(few)])
        copy = Case(case_id, np.asarray(case.image), np.asarray(case.label), Grid.plain(case.shape), case.trail)
        even.write(copy, case.native, found, "even")
    return even


def trained(
    plan: Plan, store: Store, split: Split, workspace: Workspace, out: RunFolder, progress: Progress | None = None
) -> dict[str, float]:
    """Train on a split without validation on the way, and score the cases left out, from their files."""
    progress = progress or Silent()
    alone = Split(train=split.train, val=())
    train(plan, store, (alone,), 0, out, Budget(epochs=1), device="cpu", progress=progress)
    network = load_weights(find_task(plan.task)(plan).network(), out.weights()[0], plan.trained_digest())
    predictor = Predictor(plan, [network], choose_device("cpu"), key="one")
    dataset = workspace.dataset()
    with tempfile.TemporaryDirectory() as folder:
        predictor.predict([dataset.case(i) for i in split.val], Path(folder), progress=progress)
        found = evaluate(Path(folder), dataset, None, None, 1, progress, plan=plan, cases=split.val, metrics=METRICS)
    return {metric: round(found.overall[metric].mean or 0.0, 4) for metric in METRICS}


def summary(rows: dict[str, list[dict[str, float]]]) -> list[dict[str, object]]:
    """One row per variant."""
    base = next(iter(rows.values()))
    result: list[dict[str, object]] = []
    for name, runs in rows.items():
        row: dict[str, object] = {"variant": name, "edits": VARIANTS[name]}
        row |= {metric: round(statistics.mean(run[metric] for run in runs), 4) for metric in METRICS}
        for metric in METRICS if runs is not base else ():
            differences = [run[metric] - other[metric] for run, other in zip(runs, base, strict=True)]
            row[f"{metric}_difference"] = {
                "mean": round(statistics.mean(differences), 4),
                "spread": round(statistics.stdev(differences), 4) if len(differences) > 1 else None,
                "better": sum(d > 0 for d in differences),
                "runs": len(differences),
            }
        result.append(row | {"runs": runs})
    return result


if __name__ == "__main__":
    main()
