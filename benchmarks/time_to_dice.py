"""How long medseg trains until it is as good as nnU-Net is after a given time, on the same cases, cores and folds.

    python benchmarks/time_to_dice.py DATASET --nnunet-python NNUNET_VENV/bin/python --minutes 20 --time 30s --time 60s --time 2m

DATASET is a Decathlon dataset with one file per case. nnU-Net trains its 3D network on fold 0 for the minutes given (see
`nnunet_training.py`) and predicts the cases left out; medseg does the same for each of the times given, in a run of its own, planning,
preparation and prediction not counted on either side. `--model FOLDER` takes a training of nnU-Net that is there already, with its result in
`training.json`. Dice is scored by medseg for both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hardware import write
from planning_speed import NUMBER, raw_dataset

from medseg import workflow
from medseg.commands.console import Bars
from medseg.commands.options import parse_time
from medseg.dataset import Splits
from medseg.evaluation.records import Evaluation
from medseg.training.history import History
from medseg.workspace import RunFolder

SCRIPT = Path(__file__).with_name("nnunet_training.py")


def scored(evaluation: Evaluation) -> dict[str, object]:
    overall = evaluation.overall["dice"]
    rounded = [None if value is None else round(value, 4) for value in (overall.mean, overall.low, overall.high)]
    return {"dice": rounded[0], "interval": rounded[1:], "cases": len(evaluation.cases)}


def called(command: Sequence[str | Path], environment: dict[str, str]) -> str:
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def trained(python: Path, dataset: Path, splits: Splits, work: Path, minutes: float) -> Path:
    """nnU-Net's model of fold 0 on medseg's splits, with what its training took in `training.json`."""
    raw_dataset(dataset, work / "raw")
    environment = dict(os.environ)
    for part in ("raw", "preprocessed", "results"):
        (work / part).mkdir(exist_ok=True)
        environment[f"nnUNet_{part}"] = str(work / part)
    called([python, SCRIPT, "prepare", str(NUMBER)], environment)
    folds = [{"train": list(fold.train), "val": list(fold.val)} for fold in splits.folds]
    (next((work / "preprocessed").iterdir()) / "splits_final.json").write_text(json.dumps(folds))
    said = called([python, SCRIPT, "train", str(NUMBER), "--minutes", str(minutes)], environment)
    result = json.loads(said.strip().splitlines()[-1])
    model = Path(result.pop("model"))
    (model / "training.json").write_text(json.dumps(result))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--nnunet-python", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--time", action="append", required=True)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary, Bars() as progress:
        work = Path(temporary)
        for text in arguments.time:
            out, start = work / f"medseg_{text}", time.monotonic()
            done = workflow.run(arguments.dataset, out, seconds=parse_time(text), progress=progress)
            assert done.evaluation is not None
            last = History.read(RunFolder(out).fold(0) / "metrics.csv").rows[-1]
            row = {"program": "medseg", "training": text, "steps": int(last["step"]), **scored(done.evaluation)}
            rows.append(row | {"whole_run_seconds": round(time.monotonic() - start)})
            progress.say(str(rows[-1]))
        run = RunFolder(work / f"medseg_{arguments.time[0]}")
        splits = Splits.load(run.splits_file)
        model = arguments.model or trained(arguments.nnunet_python, arguments.dataset, splits, work, arguments.minutes)
        training = json.loads((model / "training.json").read_text())
        images = work / "left_out"
        images.mkdir()
        for case in splits.folds[0].val:
            (images / f"{case}_0000.nii.gz").symlink_to((arguments.dataset / "imagesTr" / f"{case}.nii.gz").resolve())
        program = arguments.nnunet_python.with_name("nnUNetv2_predict_from_modelfolder")
        environment = {**os.environ, **{f"nnUNet_{part}": str(work) for part in ("raw", "preprocessed", "results")}}
        options = ["-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar"]
        called([program, "-i", images, "-o", work / "nnunet", "-m", model, *options], environment)
        evaluation = workflow.evaluate(work / "nnunet", arguments.dataset / "labelsTr", run=run.root, progress=progress)
        minutes = f"{training['seconds'] / 60:.3g}m"
        rows.append({"program": "nnU-Net", "training": minutes, "steps": training["steps"], **scored(evaluation)})
        progress.say(str(rows[-1]))
    print(write("time_to_dice", rows, "fold 0 of 5, mean Dice of the cases left out with its 95 % bootstrap interval over cases"))


if __name__ == "__main__":
    main()
