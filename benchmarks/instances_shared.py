"""What the parts of `instances.py` share: their folder, medseg's trainings and predictions, and the scores."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from planning_speed import Seconds, timed

from medseg import steps
from medseg.dataset import ObjectForm
from medseg.evaluation.scoring import evaluate
from medseg.parallel import usable_cores
from medseg.plans import Plan
from medseg.training.history import History
from medseg.workspace import RunFolder

MEDSEG = (sys.executable, str(Path(__file__).parents[1] / "cli.py"))
IOU = ("0.5", "0.6", "0.7", "0.8", "0.9")
SCORES = ("pq", "sq", "rq", "object_accuracy", "object_f1", "object_precision", "object_sensitivity", "object_accuracy@0.5:0.95")
PRECISION = ("ap", "ap@0.5", "ap@0.75")
CURVES = ("object_f1", "object_accuracy")
VIEWS = {"mirrored": (), "one_view": ("--no-mirror",)}


@dataclass(frozen=True)
class Setup:
    """What all parts have in common; times in words of the command line, cases by id."""

    dataset: str
    task: str
    time: str
    threads: int
    device: str
    seed: int
    train: list[str]
    test: list[str]


class Work:
    """The folder of a comparison: `setup.json`, `splits.json`, `images/` (those left out), a folder for each part, `parts/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.splits, self.images = root / "splits.json", root / "images"
        if not (root / "setup.json").is_file():
            raise SystemExit(f"{root}: nothing has begun here; call begin first")
        self.setup = Setup(**json.loads((root / "setup.json").read_text()))
        bind(self.setup.threads)
        self.dataset = steps.opened(Path(self.setup.dataset), None, None, self.setup.task)

    def part(self, name: str) -> Path:
        return self.root / "parts" / f"{name}.json"

    def keep(self, name: str, row: dict[str, object]) -> None:
        file = self.part(name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({**row, "load": [round(x, 1) for x in os.getloadavg()]}, indent=2) + "\n")
        print(file.read_text())

    def environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": str(self.setup.threads)}

    def left_out(self) -> list[Path]:
        return sorted(self.images.iterdir())


def bind(threads: int) -> None:
    """Let this process and its children have as many cores as threads, because medseg takes all that it may use."""
    if threads == usable_cores():
        return
    process = psutil.Process()
    if threads > usable_cores() or not hasattr(process, "cpu_affinity"):
        raise SystemExit(f"{threads} threads wanted, but there are {usable_cores()} cores, or processes cannot be bound to some of them")
    process.cpu_affinity(process.cpu_affinity()[:threads])


def trained(work: Work, name: str, *options: str) -> tuple[Path, dict[str, object]]:
    """`medseg run` in its folder, and what came of it."""
    setup, folder = work.setup, work.root / name
    folder.mkdir(exist_ok=True)
    run, file = RunFolder(folder / "run"), folder / "run.json"
    if not file.is_file():
        resumed = run.root.is_dir()
        command = [*MEDSEG, "run", setup.dataset, "-o", str(run.root), "--time", setup.time, "--splits", str(work.splits)]
        cost = timed([*command, "--device", setup.device, *options], work.environment(), folder / "run.log")
        file.write_text(json.dumps({**asdict(cost), "resumed": resumed}))
    plan, last = Plan.load(run.plan_file), History.read(run.fold(0) / "metrics.csv").rows[-1]
    row: dict[str, object] = {
        "program": "medseg",
        "options": list(options),
        "configuration": plan.name,
        "head": plan.target.head.kind if hasattr(plan.target, "head") else plan.target.kind,
        "window": list(plan.window),
        "batch": plan.training.batch_size,
        "mirror": list(plan.inference.mirror),
        "steps": int(last["step"]),
        "networks": int(last["network"]),
        "training_seconds": round(last["seconds"], 1),
        "whole_run": json.loads(file.read_text()),
    }
    return run.root, row


def predicted(work: Work, run: Path, out: Path, *options: str) -> dict[str, object]:
    """`medseg predict` of the cases left out, as a whole process."""
    shutil.rmtree(out, ignore_errors=True)
    images = [str(path) for path in work.left_out()]
    command = [*MEDSEG, "predict", str(run), *images, "-o", str(out), "--device", work.setup.device, *options]
    return per_second(timed(command, work.environment(), out.with_suffix(".log")), len(images))


def per_second(cost: Seconds, images: int) -> dict[str, object]:
    return {**asdict(cost), "images_per_second": round(images / cost.wall, 3)}


def scored(work: Work, folder: Path, predicted: ObjectForm | None = None) -> dict[str, object]:
    """Pooled scores of each class (with 95 % bootstrap intervals over cases), means over classes, and the curves over IoU."""
    metrics = (*SCORES, *PRECISION)
    labels = work.dataset.labels
    found = evaluate(folder, work.dataset, labels, None, 1, cases=work.setup.test, metrics=metrics, predicted=predicted)
    if found.missing or found.objects is None:
        raise SystemExit(f"{folder}: no predictions of {', '.join(found.missing)}")
    objects = found.objects

    def told(row: Any) -> dict[str, object]:
        return {m: [None if v is None else round(v, 4) for v in (one.value, one.low, one.high)] for m, one in row.items()}

    curves = {
        name: {m: {iou: of[m][objects.thresholds.index(float(iou))] for iou in IOU} for m in CURVES} for name, of in objects.curves.items()
    }
    return {
        "classes": {name: told(row) for name, row in objects.classes.items()},
        "means": {name: told(row) for name, row in objects.means.items()},
        "counts": {name: json.loads(one.model_dump_json()) for name, one in objects.counts.items()},
        "curves": curves,
        "left_out": objects.left_out,
    }
