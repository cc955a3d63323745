"""`medseg run` on MSD Task04 Hippocampus: Dice on cases it did not train on, after a given time of training.

    python benchmarks/hippocampus.py DATASET --time 5m --time 20m

DATASET is the folder of Task04 (dataset.json, imagesTr, labelsTr). Fold 0 of 5 is left out of training and scored.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

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
    results = []
    with tempfile.TemporaryDirectory() as temporary, Bars() as progress:
        for time in arguments.time:
            out = (arguments.keep or Path(temporary)) / f"run_{time}"
            done = workflow.run(arguments.dataset, out, seconds=parse_time(time), progress=progress)
            assert done.evaluation is not None
            dice = {name: round(done.evaluation.classes[name]["dice"].mean or 0, 4) for name in done.evaluation.labels.names}
            rows = History.read(out / "fold_0" / "metrics.csv").rows
            results.append(
                {
                    "time": time,
                    "steps": int(rows[-1]["step"]),
                    "networks": int(rows[-1]["network"]),
                    "cases": len(done.evaluation.cases),
                    "dice": dice,
                    "mean": round(sum(dice.values()) / len(dice), 4),
                }
            )
            progress.say(str(results[-1]))
    write("hippocampus", results, "medseg run DATASET --time T, fold 0; mean Dice over the cases left out of training")


if __name__ == "__main__":
    main()
