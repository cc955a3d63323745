"""Memory at the peak of a training step: what the planner predicts against what a fresh process takes.

    python benchmarks/memory.py [--device cuda] [--networks unet swinunetr]

Each plan trains a few steps as `medseg train` does (augmentation, autocast, loss, optimiser, averaged weights) in a process of its own. On a
CPU every plan is measured twice: in float32, which the planner predicts because any CPU can do it, and as this CPU trains.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from hardware import write

from medseg.case import Batch, PreparedCase
from medseg.device import Machine, autocast_dtype, choose_device
from medseg.domains.base import find_domain
from medseg.errors import MedsegError
from medseg.geometry import Grid
from medseg.io.layouts.base import open_dataset
from medseg.models.base import find_network
from medseg.models.blocks import memory_format
from medseg.pages import kept_pages
from medseg.peak import PeakMemory
from medseg.planning.fingerprinting import make_fingerprint
from medseg.planning.memory import UNSEEN, training_memory
from medseg.planning.planner import make_plans
from medseg.plans import Plan
from medseg.sample import sample_dataset
from medseg.tasks.base import find_task
from medseg.training.data import collate
from medseg.training.optim import make_optimizer

STEPS = 3
WINDOWS = {  # network -> window -> batches; a GPU takes the second list too
    "unet": (
        {(40, 56, 40): (2, 8), (64, 64, 64): (2, 4), (96, 96, 96): (2,), (56, 40): (32,), (256, 256): (4, 16), (512, 512): (4,)},
        {(128, 128, 128): (2, 4), (160, 192, 160): (2,), (512, 512): (16, 32)},
    ),
    "segresnet": (
        {(40, 56, 40): (2, 8), (64, 64, 64): (2, 4), (256, 256): (4, 16)},
        {(128, 128, 128): (2,), (512, 512): (16,)},
    ),
    "swinunetr": (
        {(64, 64, 64): (1, 2), (256, 256): (2, 8)},
        {(96, 96, 96): (2, 4), (128, 128, 128): (2,), (512, 512): (8,)},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", nargs="+", default=list(WINDOWS), choices=list(WINDOWS))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--float32", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    if arguments.measure:
        keeps = device.type == "cpu" and not arguments.float32 and autocast_dtype(device) is not None
        with kept_pages() if keeps else contextlib.nullcontext():
            print(json.dumps(measured(Plan.load(arguments.measure), device, arguments.float32)))
        return
    rows = []
    for plan in plans(device.type, arguments.networks):
        predicted = training_memory(plan)
        factor, share = UNSEEN[device.type]  # type: ignore[index]
        row: dict[str, object] = {
            "network": plan.network.kind,
            "window": list(plan.window),
            "batch": plan.training.batch_size,
            "predicted_gib": round(predicted, 3),
        }
        modes = {"float32": True, "as_trained": False} if device.type == "cpu" else {"as_trained": False}
        for name, float32 in modes.items():
            found = in_fresh_process(plan, arguments.device, float32)
            row[f"{name}_gib"] = round(found, 3)
            row[f"{name}_over_predicted"] = round(found / predicted, 2)
            row[f"{name}_over_tensors"] = round(found / (predicted - share) * factor, 2)
        rows.append(row)
        print(row, flush=True)
    note = (
        f"peak of {STEPS} training steps above what the process held before the network was built; predicted is for float32 on a CPU and for "
        f"16-bit autocast on a GPU: tensors x {UNSEEN[device.type][0]:g} + {UNSEEN[device.type][1]:g} GiB"  # type: ignore[index]
    )
    write(f"memory_{device.type}", rows, note)


def plans(kind: str, networks: list[str]) -> list[Plan]:
    """The sample's plans with other networks, windows and batches."""
    dataset = open_dataset(sample_dataset())
    fingerprint = make_fingerprint(dataset, dataset.domain, cache=None)
    machine = Machine(kind, 8.0)  # type: ignore[arg-type]
    usual = make_plans(dataset, fingerprint, task=dataset.task, domain=dataset.domain, network="unet", machine=machine)
    found = []
    for name in networks:
        few, more = WINDOWS[name]
        for window, batches in [*few.items(), *(more.items() if kind == "cuda" else ())]:
            base = next(p for p in usual if len(p.window) == len(window))
            configured = find_network(name).configure(window, (1.0,) * len(window), machine)
            for batch in batches:
                plan = base.model_copy(update={"window": configured.window, "network": configured.settings, "reasons": {}})
                found.append(plan.edited({"training.batch_size": str(batch)}))
    return found


def in_fresh_process(plan: Plan, device: str, float32: bool) -> float:
    """GiB."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        plan.save(file)
        command = [sys.executable, __file__, "--measure", str(file), "--device", device, *(["--float32"] if float32 else [])]
        return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measured(plan: Plan, device: torch.device, float32: bool) -> float:
    """GiB at the peak of a few training steps."""
    task, domain = find_task(plan.task)(plan), find_domain(plan.domain)(plan)
    rng = np.random.default_rng(0)
    shape = (1,) * (plan.data.ndim - len(plan.window)) + plan.window
    channels = len(plan.data.channels)
    case = PreparedCase("x", rng.standard_normal((channels, *shape), dtype=np.float32), np.ones(shape, np.int16), (), Grid.plain(shape), ())
    windows = collate([domain.sample(case, rng, None) for _ in range(plan.training.batch_size)])
    assert not isinstance(windows, MedsegError)
    batch = Batch(*windows)
    dtype = None if float32 else autocast_dtype(device)
    layout = memory_format(device, len(plan.window))
    import_module("monai.networks.nets")  # which networks import only when they are built
    torch.zeros(1, device=device)
    peak = PeakMemory(device)
    network = task.network().to(device, memory_format=layout)
    average = copy.deepcopy(network)
    optimizer = make_optimizer(network, plan.training)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            label = batch.label.to(device) if batch.label is not None else None
            augmented = domain.augment(Batch(batch.image.to(device), label), torch.Generator().manual_seed(step))
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            outputs = network(task.inputs(augmented).contiguous(memory_format=layout))
            terms = task.loss(outputs, task.targets(augmented))
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 0.1)
    highest = peak.stop()
    assert highest is not None
    return highest


if __name__ == "__main__":
    main()
