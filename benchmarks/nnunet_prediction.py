"""Whether `medseg predict` on an imported nnU-Net model equals nnU-Net's own prediction of the same files, and what both cost.

    python benchmarks/nnunet_prediction.py --reference NNUNET_VENV/bin/python MODEL_FOLDER=IMAGES ... [--export] [--keep FOLDER]

NNUNET_VENV has nnunetv2 installed; MODEL_FOLDER is a trained model such as `nnUNetTrainer__nnUNetPlans__3d_fullres`, IMAGES a folder of
files named CASE_0000.nii.gz. The stage before a cascade lies beside it, as nnU-Net puts it. For each pair both programs predict in processes
of their own, on the CPU, with the same number of threads. With `--export` the imported model is exported again and nnU-Net predicts with
that, too. Bars: 99.9 % of voxels, Dice per class 0.999.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
from hardware import write

from medseg.interop.nnunet.folder import Exported, export_model, import_model
from medseg.io.images import read_label
from medseg.plans import Plan
from medseg.workspace import RunFolder

GIB = 2**30
INTERVAL = 0.1  # seconds between two looks at the memory of a process and its children


@dataclass
class Cost:
    """What one program took for all images, start included."""

    seconds: float
    peak_gib: float
    cpu_seconds: float = 0.0


@dataclass
class Parity:
    """Two folders of label maps, the reference first."""

    cases: int = 0
    voxels: int = 0
    equal: float = 1.0
    worst_case_equal: float = 1.0
    dice: dict[str, float] = field(default_factory=dict)
    worst_case_dice: dict[str, float] = field(default_factory=dict)
    foreground: int = 0


def measured(command: list[str], log: Path, threads: int) -> Cost:
    """Run a program; its peak is the proportional set size of it and all its children together, its CPU seconds are of all of them."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "nnUNet_def_n_proc": str(threads)}
    environment |= {name: str(log.parent) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    start, peak, before = time.monotonic(), 0, os.times()
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process:
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(INTERVAL)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(round(time.monotonic() - start, 1), round(peak / GIB, 2), round(used, 1))


def memory(pid: int) -> int:
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:
        pass
    return total


def compared(reference: Path, found: Path, plan: Plan) -> Parity:
    """Equal voxels and Dice per class, over all cases together and for the worst one."""
    result = Parity()
    labels = plan.data.labels
    sums = {name: np.zeros(2) for name in labels.names}
    same = 0
    for file in sorted(p for p in reference.iterdir() if p.name.endswith(".nii.gz")):
        first, second = read_label(file).array, read_label(found / file.name).array
        if first.shape != second.shape:
            raise SystemExit(f"{file.name}: shapes {first.shape} and {second.shape}")
        result.cases += 1
        result.voxels += first.size
        equal = int((first == second).sum())
        same += equal
        result.worst_case_equal = min(result.worst_case_equal, equal / first.size)
        result.foreground += int((first != 0).sum())
        for name, value in zip(labels.names, labels.written, strict=True):
            a, b = first == value, second == value
            both = np.array([2 * (a & b).sum(), a.sum() + b.sum()])
            sums[name] += both
            dice = float(both[0] / both[1]) if both[1] else 1.0
            result.worst_case_dice[name] = round(min(result.worst_case_dice.get(name, 1.0), dice), 6)
    result.equal = same / max(1, result.voxels)
    result.dice = {name: round(float(a / b), 6) if b else 1.0 for name, (a, b) in sums.items()}
    return result


def reference(python: Path, stages: Sequence[Exported], images: Path, out: Path, log: Path, threads: int) -> Cost:
    """nnU-Net's prediction: of a cascade stage after stage, costs added up."""
    seconds, peak, earlier = 0.0, 0.0, []
    for number, stage in enumerate(stages, 1):
        target = out if number == len(stages) else out.with_name(f"{out.name}_{number}")
        program = str(python.with_name("nnUNetv2_predict_from_modelfolder"))
        options = ["-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar", *earlier]
        command = [program, "-i", str(images), "-o", str(target), "-m", str(stage.folder), "-f", *stage.folds, *options]
        cost = measured(command, log, threads)
        seconds, peak, earlier = seconds + cost.seconds, max(peak, cost.peak_gib), ["-prev_stage_predictions", str(target)]
    return Cost(round(seconds, 1), peak)


def one(python: Path, model: Path, images: Path, work: Path, threads: int, export: bool) -> dict[str, object]:
    run, theirs, ours = work / "run", work / "nnunet", work / "medseg"
    _, folds = import_model(model, run)
    names = tuple("all" if fold is None else str(fold) for fold in folds)
    plan = Plan.load(RunFolder(run).plan_file)
    stages = [Exported(model, names)]
    if plan.previous:
        stages.insert(0, Exported(model.with_name(model.name.removesuffix(plan.name) + plan.previous), names))
    cost = reference(python, stages, images, theirs, work / "nnunet.log", threads)
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "cli.py"),
        "predict",
        str(run),
        str(images),
        "-o",
        str(ours),
        "--device",
        "cpu",
    ]
    medseg = measured(command, work / "medseg.log", threads)
    row: dict[str, object] = {
        "model": f"{model.parent.name}/{model.name}",
        "folds": names,
        "window": plan.window,
        "parity": asdict(compared(theirs, ours, plan)),
        "nnunet": asdict(cost),
        "medseg": asdict(medseg),
    }
    if export:
        exported, again = work / "exported", work / "nnunet_exported"
        reference(python, export_model(run, exported), images, again, work / "exported.log", threads)
        row["exported"] = asdict(compared(ours, again, plan))
    return row


def shown(row: dict[str, object]) -> str:
    parity, theirs, ours = (row[name] for name in ("parity", "nnunet", "medseg"))
    assert isinstance(parity, dict)
    assert isinstance(theirs, dict)
    assert isinstance(ours, dict)
    dice = min(parity["dice"].values())
    exported = row.get("exported")
    more = f", exported {exported['equal']:.4%}" if isinstance(exported, dict) else ""
    voxels = f"{parity['voxels']:,} voxels, {parity['foreground']:,} of them foreground"
    return (
        f"{row['model']}, folds {','.join(row['folds'])}: {parity['equal']:.4%} of {voxels}, equal, Dice >= {dice:.4f} "  # type: ignore[arg-type]
        f"(worst case {min(parity['worst_case_dice'].values()):.4f}){more}; nnU-Net {theirs['seconds']} s, {theirs['peak_gib']} GiB; "
        f"medseg {ours['seconds']} s, {ours['peak_gib']} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", help="MODEL_FOLDER=IMAGES")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--keep", type=Path, help="Folder for runs and predictions; default: a temporary one.")
    parser.add_argument("--name", default="nnunet_prediction", help="Name of the result file.")
    arguments = parser.parse_args()
    note = f"equality of label maps on the native grid; seconds and peak memory of whole processes with {arguments.threads} threads, start included"
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, pair in enumerate(arguments.pairs):
            model, _, images = pair.partition("=")
            work = (arguments.keep or Path(temporary)) / f"{number}_{Path(model).parent.name}_{Path(model).name}"
            work.mkdir(parents=True)
            rows.append(one(arguments.reference, Path(model), Path(images), work, arguments.threads, arguments.export))
            print(shown(rows[-1]), flush=True)
            file = write(arguments.name, rows, note)
    print(file)


if __name__ == "__main__":
    main()
