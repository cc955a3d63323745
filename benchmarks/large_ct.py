"""One large CT and many classes: peak memory of a prediction, and time from logits to the written file, nnU-Net's beside it.

    python benchmarks/large_ct.py --nnunet-python NNUNET_VENV/bin/python

Memory: `medseg predict` of 512 x 512 x 400 voxels at 0.8 mm in a process of its own, by small networks with random weights that work at
1.5 mm and tell 8, 104 or 208 classes apart. The figure is the highest resident set size that the system recorded.

Export: from logits at 1.5 mm, as nnU-Net holds them (16 bits, in memory), to a label map at 0.8 mm in a `.nii.gz`, by both programs in turn,
each in a fresh process; seconds do not include starting, importing and reading the logits. nnU-Net makes all logits at 0.8 mm in float32:
44 GB for 104 classes. So both are measured on an image of `--side` times the whole's edges. Work grows with voxels and classes in both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from hardware import write
from numpy.typing import NDArray
from planning_scale import intensities

from medseg.dataset import CaseFiles, Channel, Dataset, LabelClass, Labels, Modality
from medseg.device import Machine
from medseg.domains.base import find_domain
from medseg.domains.grid.maps import HalfMap
from medseg.fingerprint import CaseStats, ClassStats, Fingerprint
from medseg.geometry import Grid
from medseg.interop.nnunet.folder import export_model
from medseg.io.images import read_case, read_label, write_label
from medseg.io.nifti import Nifti
from medseg.models.weights import save_weights
from medseg.planning.fingerprinting import Gathered
from medseg.planning.planner import make_plans
from medseg.plans import Plan
from medseg.tasks.base import find_task
from medseg.tasks.semantic import HEAD
from medseg.workspace import RunFolder, network_file

SHAPE, SPACING, TARGET = (400, 512, 512), 0.8, 1.5
WINDOW, WIDTHS = (96, 96, 96), (8, 16, 32, 64)
MEMORY_CLASSES = (8, 104, 208)
GIB = 2**30


@dataclass
class Cost:
    """What one process took."""

    seconds: float
    cpu_seconds: float
    peak_gib: float


def plan_of(classes: int) -> Plan:
    """nnU-Net's preparation and a small network of its kind."""
    rng = np.random.default_rng(0)
    names = tuple(f"class {k}" for k in range(1, classes + 1))
    files = tuple(CaseFiles(id=f"c{i}", images=(Path(f"i{i}.nii.gz"),), label=Path(f"l{i}.nii.gz"), group=f"c{i}") for i in range(8))
    labels = Labels(classes=tuple(LabelClass(name=name, values=(k,)) for k, name in enumerate(names, 1)))
    channels = (Channel(name="CT", modality=Modality.ct),)
    dataset = Dataset(
        name="large CT",
        root=Path("nowhere"),
        layout="msd",
        task="semantic",
        domain="grid",
        ndim=3,
        channels=channels,
        labels=labels,
        cases=files,
    )
    box = tuple((4, n - 4) for n in SHAPE)
    found = ClassStats(voxels=50_000, volume=50_000.0, components=1, sizes=(50_000,) * 5, box=box)
    gathered = Gathered()
    for file in files:
        gathered.add(
            CaseStats(
                id=file.id,
                digest=f"{rng.integers(2**63):016x}",
                shape=SHAPE,
                spacing=(TARGET,) * 3,
                cropped=SHAPE,
                zeros=0.2,
                channels=(intensities(rng),),
                classes=(found,) * classes,
            )
        )
    fingerprint: Fingerprint = gathered.fingerprint(dataset)
    plans = make_plans(dataset, fingerprint, task="semantic", domain="grid", network="nnunet", machine=Machine("cpu", 8.0))
    stages = len(WIDTHS)
    edits = {
        "window": WINDOW,
        "space.spacing": (TARGET,) * 3,
        "space.crop": True,
        "space.axes": (0, 1, 2),
        "space.orientation": "ras",
        "space.interpolation": "nnunet",
        "space.blending": "nnunet",
        "inference.mirror": (),
        "inference.overlap": 0.5,
    }
    plan = next(plan for plan in plans if plan.name == "3d").edited({name: json.dumps(value) for name, value in edits.items()}, "benchmark")
    network = plan.network.model_copy(
        update={
            "features": WIDTHS,
            "strides": ((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
            "kernels": ((3, 3, 3),) * stages,
            "encoder": (1,) * stages,
            "decoder": (1,) * (stages - 1),
            "deep_supervision": 0,
        }
    )
    return plan.model_copy(update={"network": network})


def model_in(run: Path, classes: int) -> Plan:
    """A model folder with random weights."""
    plan = plan_of(classes)
    folder = RunFolder(run)
    run.mkdir(parents=True)
    plan.save(folder.plan_file)
    torch.manual_seed(0)
    save_weights(network_file(folder.fold(0), 0), find_task(plan.task)(plan).network().state_dict(), plan.trained_digest())
    return plan


def image_in(path: Path, shape: tuple[int, ...]) -> None:
    """Smooth structures and noise, in Hounsfield units, 16 bits."""
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.normal(0, 300, (1, 1, *(n // 16 for n in shape))).astype(np.float32))
    image = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0].numpy()
    for plane in image[0]:
        plane += rng.normal(0, 20, plane.shape)
    grid = Grid.plain(shape, (SPACING,) * 3)
    Nifti().write(path, image.astype(np.int16), grid, None)


def logits_of(classes: int, shape: tuple[int, ...], kind: str) -> NDArray[np.float16]:
    """Logits `(classes + 1, *shape)`: of smooth structures of about 16 voxels with some noise, or of noise alone, where every class can win."""
    rng = np.random.default_rng(2)
    logits = np.empty((classes + 1, *shape), np.float16)
    for channel in logits:
        noise = rng.standard_normal(shape, dtype=np.float32)
        if kind == "smooth":
            coarse = torch.from_numpy(rng.normal(0, 8, (1, 1, *(max(2, n // 16) for n in shape))).astype(np.float32))
            channel[...] = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0, 0].numpy() + 0.3 * noise
        else:
            channel[...] = noise
    return logits


def run_measured(command: list[str], threads: int) -> tuple[Cost, str]:
    """Run a program; the system tells its peak."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "nnUNet_def_n_proc": str(threads)}
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        output.seek(0)
        text = output.read()
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    return Cost(round(time.monotonic() - start, 1), round(used.ru_utime + used.ru_stime, 1), round(used.ru_maxrss * 1024 / GIB, 2)), text


def memory_rows(work: Path, threads: int, classes: tuple[int, ...]) -> list[dict[str, object]]:
    image = work / "ct.nii.gz"
    image_in(image, SHAPE)
    rows = []
    for count in classes:
        run = work / f"run_{count}"
        model_in(run, count)
        command = [
            sys.executable,
            str(Path(__file__).parents[1] / "cli.py"),
            "predict",
            str(run),
            str(image),
            "-o",
            str(work / f"out_{count}"),
        ]
        cost, said = run_measured([*command, "--device", "cpu"], threads)
        rows.append({"classes": count, **asdict(cost), "said": [line for line in said.splitlines() if "GiB" in line]})
        print(f"{count} classes: {cost.peak_gib} GiB, {cost.seconds} s ({cost.cpu_seconds} s of CPU)", flush=True)
    return rows


def export_once(run: Path, logits: Path, image: Path, out: Path) -> None:
    """medseg's half of the comparison: prints seconds and seconds of CPU."""
    plan = Plan.load(RunFolder(run).plan_file)
    values: NDArray[np.float16] = np.load(logits)
    domain, task = find_domain(plan.domain)(plan), find_task(plan.task)(plan)
    files = CaseFiles(id="case", images=(image,), group="case")
    trail = domain.prepare(read_case(files)).trail
    start, cpu = time.monotonic(), time.process_time()
    decoded = task.decode(domain.native({HEAD: HalfMap(values)}, trail), "case")
    write_label(out, domain.restore(decoded.labels, trail), like=image)
    print(json.dumps({"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}))


def export_rows(work: Path, python: Path, threads: int, side: float, repeats: int, classes: int) -> list[dict[str, object]]:
    shape = tuple(round(n * side) for n in SHAPE)
    image, run, exported = work / "small.nii.gz", work / "run_export", work / "nnunet"
    image_in(image, shape)
    model_in(run, classes)
    export_model(run, exported)
    prepared = tuple(round(n * SPACING / TARGET) for n in shape)
    rows = []
    for kind in ("smooth", "noise"):
        logits = work / f"{kind}.npy"
        np.save(logits, logits_of(classes, prepared, kind))
        commands = {
            "nnunet": [
                str(python),
                str(Path(__file__).with_name("large_ct_nnunet.py")),
                str(exported),
                str(logits),
                str(image),
                str(work / f"{kind}_nnunet"),
            ],
            "medseg": [sys.executable, __file__, "--export-once", str(run), str(logits), str(image), str(work / f"{kind}_medseg.nii.gz")],
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, command in commands.items():
                cost, said = run_measured(command, threads)
                found[name].append({**json.loads(said.strip().splitlines()[-1]), "peak_gib": cost.peak_gib})
        theirs, ours = (read_label(work / f"{kind}_{name}.nii.gz").array for name in ("nnunet", "medseg"))
        medians = {name: {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]} for name, runs in found.items()}
        rows.append(
            {
                "logits": kind,
                "classes": classes,
                "voxels": int(np.prod(shape)),
                "share_of_the_whole": side**3,
                **medians,
                "times_faster": round(medians["nnunet"]["seconds"] / medians["medseg"]["seconds"], 1),
                "equal_voxels": float((theirs == ours).mean()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet-python", type=Path, help="Python of an environment with nnunetv2; without it memory alone is measured.")
    parser.add_argument("--side", type=float, default=0.5, help="Edges of the image that is exported, as a share of the whole's.")
    parser.add_argument("--classes", type=int, nargs="*", default=list(MEMORY_CLASSES), help="Numbers of classes for memory.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--export-once", type=Path, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.export_once:
        export_once(*arguments.export_once)
        return
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if arguments.nnunet_python:
            results["export"] = export_rows(work, arguments.nnunet_python, arguments.threads, arguments.side, arguments.repeats, 104)
        results["memory"] = memory_rows(work, arguments.threads, tuple(arguments.classes))
    size = " x ".join(map(str, reversed(SHAPE)))
    note = f"{size} voxels at {SPACING} mm, networks at {TARGET} mm, {arguments.threads} threads; medians of {arguments.repeats}"
    print(write("large_ct", results, note))


if __name__ == "__main__":
    main()
