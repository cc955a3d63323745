"""How long planning, preprocessing, `--help` and the prediction of one small case take, in medseg and in nnU-Net.

    python benchmarks/planning_speed.py DATASET --reference NNUNET_VENV/bin/python [--repeats 3] [--model MODEL_FOLDER --case FILE]

DATASET is a Decathlon dataset with one file per case. Both programs plan and prepare it for 2D and 3D, with their own defaults, each time in a new
folder, one after the other in turn; the wall and the CPU seconds are those of whole processes with their children, and ratios are of
medians. `medseg plan --preprocess` checks every file, too, which nnU-Net does only when asked. MODEL_FOLDER is a small model that nnU-Net has
trained (such as `nnUNetTrainer__nnUNetPlans__3d_fullres`), FILE an image named CASE_0000.nii.gz.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from hardware import write

from medseg.interop.nnunet.folder import import_model
from medseg.parallel import default_workers

NUMBER = 4  # of the dataset, for nnU-Net
NEW = Path("NEW")  # stands for a new folder


@dataclass
class Seconds:
    wall: float
    cpu: float


def timed(command: Sequence[str | Path], environment: dict[str, str], log: Path) -> Seconds:
    """Run a program to its end; CPU seconds count its children, as far as it has waited for them."""
    before, start = os.times(), time.monotonic()
    with log.open("w") as output:
        code = subprocess.run([str(part) for part in command], env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    wall, after = time.monotonic() - start, os.times()
    if code:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{log.read_text()[-3000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Seconds(round(wall, 2), round(used, 2))


def raw_dataset(decathlon: Path, raw: Path) -> None:
    """The dataset as nnU-Net reads it; files are linked, not copied."""
    description = json.loads((decathlon / "dataset.json").read_text())
    target = raw / f"Dataset{NUMBER:03}_Benchmark"
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True)
    for pair in description["training"]:
        image, label = ((decathlon / pair[part]).resolve() for part in ("image", "label"))
        name = image.name.removesuffix(".nii.gz")
        (target / "imagesTr" / f"{name}_0000.nii.gz").symlink_to(image)
        (target / "labelsTr" / f"{name}.nii.gz").symlink_to(label)
    labels = {name: int(value) for value, name in description["labels"].items()}
    (target / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": description.get("modality", {"0": "MRI"}),
                "labels": labels,
                "numTraining": len(description["training"]),
                "file_ending": ".nii.gz",
            }
        )
    )


def compared(name: str, ours: Callable[[], Seconds], theirs: Callable[[], Seconds] | None, repeats: int) -> dict[str, object]:
    """Both in turn; without `theirs`, ours alone."""
    runs: dict[str, list[Seconds]] = {"medseg": [], "nnunet": []}
    for _ in range(repeats):
        runs["medseg"].append(ours())
        if theirs is not None:
            runs["nnunet"].append(theirs())
    row: dict[str, object] = {"what": name}
    for who, seconds in runs.items():
        if seconds:
            row[who] = {kind: [getattr(one, kind) for one in seconds] for kind in ("wall", "cpu")}
    if theirs is not None:
        for kind in ("wall", "cpu"):
            medians = [statistics.median(getattr(one, kind) for one in runs[who]) for who in ("nnunet", "medseg")]
            row[f"{kind}_ratio"] = round(medians[0] / medians[1], 2)
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--case", type=Path)
    arguments = parser.parse_args()
    medseg = Path(sys.executable).with_name("medseg")
    bin_ = arguments.reference.parent
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        raw_dataset(arguments.dataset, work / "raw")
        environment = dict(os.environ)
        for part in ("raw", "preprocessed", "results"):
            (work / part).mkdir(exist_ok=True)
            environment[f"nnUNet_{part}"] = str(work / part)

        # A new folder each time, and nothing is removed meanwhile: Linux is slow to make files where others have just been removed.
        def fresh() -> Path:
            return Path(tempfile.mkdtemp(dir=work))

        def ours(*command: str | Path) -> Callable[[], Seconds]:
            return lambda: timed([medseg, *(fresh() if part is NEW else part for part in command)], environment, work / "medseg.log")

        def theirs(program: str, *command: str | Path) -> Callable[[], Seconds]:
            def once() -> Seconds:
                here = environment | {"nnUNet_preprocessed": str(fresh())}
                return timed([bin_ / program, *(fresh() if part is NEW else part for part in command)], here, work / "nnunet.log")

            return once

        rows.append(
            compared(
                "plan and preprocess, 2D and 3D",
                ours("plan", arguments.dataset, "-o", NEW, "--preprocess"),
                theirs("nnUNetv2_plan_and_preprocess", "-d", str(NUMBER), "-c", "2d", "3d_fullres"),
                arguments.repeats,
            )
        )
        rows.append(compared("plan alone", ours("plan", arguments.dataset, "-o", NEW), None, arguments.repeats))
        if arguments.model is not None:
            images, run = work / "images", work / "run"
            images.mkdir()
            shutil.copyfile(arguments.case, images / arguments.case.name)
            _, folds = import_model(arguments.model, run)
            names = ["all" if fold is None else str(fold) for fold in folds]
            rows.append(
                compared(
                    f"predict one small case, {len(folds)} folds, on the CPU",
                    ours("predict", run, images, "-o", NEW, "--device", "cpu"),
                    theirs(
                        *("nnUNetv2_predict_from_modelfolder", "-i", images, "-o", NEW, "-m", arguments.model),
                        *("-f", *names, "-device", "cpu", "--disable_progress_bar"),
                    ),
                    arguments.repeats,
                )
            )
        rows.append(compared("--help", ours("--help"), None, arguments.repeats))
    note = f"seconds of whole processes; {psutil.cpu_count()} logical cores, {default_workers()} workers; load {os.getloadavg()}"
    print(write("planning_speed", {"nnunet": reference_version(arguments.reference), "rows": rows}, note), version("medseg"))


def reference_version(python: Path) -> str:
    code = "from importlib.metadata import version; print(version('nnunetv2'))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
