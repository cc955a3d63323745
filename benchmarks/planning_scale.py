"""Time and memory of planning for datasets of 10, 1000 and 10 000 cases whose measurements are given.

    python benchmarks/planning_scale.py

For each size a process of its own merges the measurements of all cases into a fingerprint, writes it, reads it, and makes the plans; a warm-up
for another kind of device keeps imports out of the figures. The cases are made up: volumes of differing size, two channels, ten classes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from hardware import write

from medseg.dataset import CaseFiles, Channel, Dataset, LabelClass, Labels, Modality
from medseg.device import Machine
from medseg.fingerprint import QUANTILES, CaseStats, ClassStats, Fingerprint, Intensities
from medseg.peak import GIB, PeakMemory
from medseg.planning.fingerprinting import Gathered
from medseg.planning.planner import make_plans

T = TypeVar("T")
SIZES = (10, 1000, 10_000)
CHANNELS, CLASSES = 2, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cases:
        planned(10, Machine("mps", 4.0), None)
        print(json.dumps(planned(arguments.cases, Machine("cuda", 11.0), PeakMemory)))
        return
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, "--cases", str(size)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], flush=True)
    note = f"seconds of CPU, and GiB above what the process held before; {CHANNELS} channels, {CLASSES} classes, one thread"
    write("planning_scale", rows, note)


def planned(cases: int, machine: Machine, watch: Callable[[torch.device], PeakMemory] | None) -> dict[str, object]:
    """Every step's seconds of CPU time, and the peak of memory from the first case to the plans."""
    torch.set_num_threads(1)
    dataset = made_up(cases)
    times: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        start = time.process_time()
        result = work()
        times[name] = round(time.process_time() - start, 2)
        return result

    def store(file: Path) -> None:
        gathered = Gathered()
        for case in measurements(dataset):
            start = time.process_time()
            gathered.add(case)
            times["gather"] = times.get("gather", 0) + time.process_time() - start
        fingerprint = timed("merge", lambda: gathered.fingerprint(dataset))
        timed("write", lambda: fingerprint.save(file))

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fingerprint.json"
        peak = watch(torch.device("cpu")) if watch else None
        store(file)
        size = file.stat().st_size
        fingerprint = timed("read", lambda: Fingerprint.load(file))
        plans = timed("plan", lambda: make_plans(dataset, fingerprint, task="semantic", domain="grid", network="unet", machine=machine))
        memory = peak.stop() if peak else None
    return {
        "cases": cases,
        "seconds": {name: round(seconds, 2) for name, seconds in times.items()},
        "total_seconds": round(sum(times.values()), 2),
        "peak_gib": None if memory is None else round(memory, 3),
        "fingerprint_mib": round(size * GIB**-1 * 1024, 2),
        "plans": [p.name for p in plans],
    }


def made_up(cases: int) -> Dataset:
    """A dataset without files."""
    return Dataset(
        name="made up",
        root=Path("nowhere"),
        layout="msd",
        task="semantic",
        domain="grid",
        ndim=3,
        channels=tuple(Channel(name=f"channel {i}", modality=Modality.mr) for i in range(CHANNELS)),
        labels=Labels(classes=tuple(LabelClass(name=f"class {i}", values=(i,)) for i in range(1, CLASSES + 1))),
        cases=tuple(
            CaseFiles(id=f"case_{i:05}", images=(Path(f"i{i}.nii.gz"),), label=Path(f"l{i}.nii.gz"), group=f"case_{i:05}")
            for i in range(cases)
        ),
    )


def measurements(dataset: Dataset) -> Iterator[CaseStats]:
    """Every case's measurements, one at a time, as workers deliver them."""
    rng = np.random.default_rng(0)
    for files in dataset.cases:
        shape = tuple(int(n) for n in rng.integers((100, 180, 180), (180, 260, 260)))
        box = tuple((4, n - 4) for n in shape)
        voxels = rng.integers(1_000, 100_000, CLASSES)
        yield CaseStats(
            id=files.id,
            digest=f"{rng.integers(2**63):016x}",
            shape=shape,
            spacing=tuple(float(v) for v in rng.uniform(0.8, 1.2, 3)),
            cropped=shape,
            zeros=0.2,
            channels=tuple(intensities(rng) for _ in range(CHANNELS)),
            classes=tuple(ClassStats(voxels=int(n), volume=float(n), components=1, sizes=(int(n),) * 5, box=box) for n in voxels),
        )


def intensities(rng: np.random.Generator) -> Intensities:
    values = np.sort(rng.normal(rng.uniform(50, 150), rng.uniform(10, 30), QUANTILES))
    return Intensities(count=10_000, mean=float(values.mean()), std=float(values.std()), quantiles=tuple(values.tolist()))


if __name__ == "__main__":
    main()
