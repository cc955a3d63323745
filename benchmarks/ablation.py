"""What each ingredient of the training recipe brings: variants of one plan, trained equally long, scored on the cases left out.

    python benchmarks/ablation.py DATASET --time 150s       # on a machine that does nothing else
    python benchmarks/ablation.py DATASET --epochs 8        # equal steps: variants that change the cost of a step need --time

Every variant is an edit of the plan (`--set`), so users can repeat each by hand. Differences are paired over cases.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from hardware import write

from medseg import workflow
from medseg.commands.console import Bars
from medseg.commands.options import parse_time
from medseg.evaluation.comparison import compare
from medseg.training.history import History

VARIANTS: dict[str, dict[str, str]] = {
    "recommended plan": {},
    "AdamW instead of Muon": {"training.optimizer": "adamw", "training.learning_rate": "0.002"},
    "without EMA of weights": {"training.ema": "0"},
    "without spatial augmentation": {"space.augmentation.spatial": "0", "space.augmentation.elastic": "0"},
    "without intensity augmentation": {
        f"space.augmentation.{name}": "0" for name in ("contrast", "brightness", "gamma", "noise", "blur", "coarse")
    },
    "with mirroring": {"space.augmentation.mirror": "[0, 1, 2]", "inference.mirror": "[0, 1, 2]"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--time")
    length.add_argument("--epochs", type=int)
    parser.add_argument("--only", action="append", choices=list(VARIANTS))
    arguments = parser.parse_args()
    results: list[dict[str, object]] = []
    note = f"{arguments.time or f'{arguments.epochs} epochs'} of training each, fold 0; difference to the first row by class (mean, 95 % interval)"
    with tempfile.TemporaryDirectory() as temporary, Bars() as progress:
        base = None
        for name in arguments.only or VARIANTS:
            out = Path(temporary) / name.replace(" ", "_")
            done = workflow.run(
                arguments.dataset,
                out,
                seconds=parse_time(arguments.time),
                epochs=arguments.epochs,
                edits=VARIANTS[name],
                progress=progress,
            )
            assert done.evaluation is not None
            row: dict[str, object] = {"variant": name, "edits": VARIANTS[name], "dice": round(done.evaluation.overall["dice"].mean or 0, 4)}
            row["steps"] = int(History.read(out / "fold_0" / "metrics.csv").rows[-1]["step"])
            if base is None:
                base = done.evaluation
            else:
                row["difference"] = {
                    d.cls: [round(v, 4) for v in (d.difference, d.low, d.high) if v is not None]
                    for d in compare(base, done.evaluation).differences
                    if d.metric == "dice"
                }
            results.append(row)
            progress.say(str(row))
            write("ablation", results, note)


if __name__ == "__main__":
    main()
