"""How long one training step (forward, backward) takes with variants of the planned network, side by side in one run.

    python benchmarks/step_time.py DATASET

Variants take turns, step by step, so that drifts of the machine hit all alike; medians and ratios to the recommended plan are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hardware import write
from torch import nn

from medseg import workflow
from medseg.case import Batch
from medseg.device import autocast_dtype, choose_device
from medseg.plans import Plan
from medseg.tasks.base import find_task

VARIANTS: dict[str, tuple[dict[str, str], bool, bool]] = {  # plan edits, autocast, channels-last
    "recommended plan": ({}, True, True),
    "float32": ({}, False, True),
    "channels first": ({}, True, False),
    "concatenated skips": ({"network.skip": "concat"}, True, True),
    "width 16": ({"network.features": "[16, 32, 64, 96]"}, True, True),
    "width 24": ({"network.features": "[24, 48, 96, 144]"}, True, True),
    "two convolutions at full resolution": ({"network.encoder": "[1, 1, 1, 1]"}, True, True),
    "deep supervision": ({"network.deep_supervision": "2"}, True, True),
}


def prepared_step(plan: Plan, autocast: bool, channels_last: bool) -> Callable[[], None]:
    device = choose_device()
    task = find_task(plan.task)(plan)
    torch.manual_seed(0)
    network = task.network().to(device)
    layout = torch.channels_last_3d if len(plan.window) == 3 else torch.channels_last
    if channels_last:
        network = network.to(memory_format=layout)
    else:  # the network asks for channels-last inputs itself; an own forward hook would hide the cost, so its convolutions are asked
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    image = torch.randn(plan.training.batch_size, task.channels, *plan.window, device=device)
    label = torch.zeros(plan.training.batch_size, *plan.window, dtype=torch.int16, device=device)
    targets = task.targets(Batch(image, label))
    dtype = autocast_dtype(device)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=autocast and dtype is not None):
            outputs = network(image)
        torch.stack(list(task.loss(outputs, targets).values())).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        plans = workflow.plan(arguments.dataset, Path(temporary))
    plan = next(p for p in plans if p.recommended)
    steps = {name: prepared_step(plan.edited(edits), autocast, last) for name, (edits, autocast, last) in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    base = times["recommended plan"]
    results = [
        {
            "variant": name,
            "median_ms": round(1e3 * statistics.median(values), 1),
            "fastest_ms": round(1e3 * min(values), 1),
            "times_recommended": round(statistics.median(v / b for v, b in zip(values, base, strict=True)), 2),
        }
        for name, values in times.items()
    ]
    for row in results:
        print(row)
    write(
        "step_time",
        results,
        f"forward and backward of one step, window {list(plan.window)}, batch {plan.training.batch_size}; ratios turn by turn",
    )


if __name__ == "__main__":
    main()
