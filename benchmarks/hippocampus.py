"""`medseg run` on MSD Task04 Hippocampus: Dice on cases it did not train on, after a given time of training.

    python benchmarks/hippocampus.py DATASET --time 5m --time 20m

DATASET is the folder of Task04 (dataset.json, imagesTr, labelsTr). Fold 0 of 5 is left out of training and scored.
Each time writes its own result, `hippocampus_TIME.json`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from hardware import write

from medseg import workflow
from medseg.commands.console import Bars
from medseg.commands.options import parse_time
from medseg.training.history import History


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--time", action="append", required=True)
    parser.add_argument("--keep", type=Path, help="keep the models in this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, Bars() as progress:
        for time in arguments.time:
            out = (arguments.keep or Path(temporary)) / f"run_{time}"
            done = workflow.run(arguments.dataset, out, seconds=parse_time(time), progress=progress)
            assert done.evaluation is not None
            rows = History.read(out / "fold_0" / "metrics.csv").rows
            overall = done.evaluation.overall["dice"]
            result = {
                "time": time,
                "steps": int(rows[-1]["step"]),
                "networks": int(rows[-1]["network"]),
                "cases": len(done.evaluation.cases),
                "dice": {name: rounded(metrics["dice"].mean) for name, metrics in done.evaluation.classes.items()},
                "mean": rounded(overall.mean),
                "interval": [rounded(overall.low), rounded(overall.high)],
                "per_case": np.sort(np.nanmean(done.evaluation.values("dice"), axis=1)).round(4).tolist(),
            }
            progress.say(str(result))
            write(
                f"hippocampus_{time}",
                result,
                "medseg run DATASET --time T, fold 0; Dice of the cases left out of training: mean per class, mean of the classes with "
                "its 95 % bootstrap interval over cases, and each case's mean of the classes, sorted",
            )


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    main()
