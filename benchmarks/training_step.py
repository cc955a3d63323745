"""One training step of the same network, window and batch in medseg and in nnU-Net, in turn, on this CPU; and where the time of ours goes.

    python benchmarks/training_step.py DATASET --nnunet-python NNUNET_VENV/bin/python [--rounds 3] [--count 6]

DATASET is a Decathlon dataset. Both programs plan it: nnU-Net itself, medseg with `--preset nnunet`, which must give the same network. Each
round runs both in fresh processes, one after the other, with whatever precision each takes on its own. nnU-Net's `train_step` is fed a batch
that lies ready. Ours is `workflow.train`, timed from outside: a step is what lies between Lightning's hooks at the begin and the end of a batch
(augmentation, forward, loss, backward, clipping, optimiser, averaging); what lies between two steps is cutting windows from the prepared
cases and whatever else a training does. medseg's recommended plan is measured alike. The floor is the step's arithmetic at the rate of the
fastest large matrix product or convolution, in CPU seconds, which say most on a machine that does other things, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from hardware import write
from planning_speed import NUMBER, raw_dataset, reference_version
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg import workflow
from medseg.case import Batch
from medseg.device import autocast_dtype
from medseg.interop.nnunet.planning import Presets
from medseg.planning.memory import training_cost
from medseg.plans import Plan
from medseg.tasks.base import find_task
from medseg.training import train as training
from medseg.training.module import Learner
from medseg.workspace import Workspace

WARM = 3  # steps that are not counted: new pages, generated code
THEIRS = """
import json, os, resource, sys, torch
sys.path.insert(0, {folder!r})
from nnunet_training import steps, trainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.utils.flop_counter import FlopCounterMode
used, step = [], nnUNetTrainer.train_step
def timed(self, batch):
    before = os.times()
    done, after = step(self, batch), os.times()
    used.append(after.user + after.system - before.user - before.system)
    return done
nnUNetTrainer.train_step = timed
found = steps({number}, {count})
found["cpu_seconds"] = used[1:]
found["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
made = trainer({number}, 0)
made.initialize()
found["parameters"] = sum(p.numel() for p in made.network.parameters() if p.requires_grad)
with torch.no_grad(), FlopCounterMode(display=False) as counter:
    made.network(torch.zeros(1, made.num_input_channels, *made.configuration_manager.patch_size))
found["forward_gflop"] = counter.get_total_flops() * made.batch_size / 1e9
print(json.dumps(found))
"""


class Timed(Learner):
    """Notes when each step begins and ends, the CPU seconds at both, and how long its augmentation takes."""

    marks: ClassVar[list[tuple[float, float, float, float]]] = []
    begun = (0.0, 0.0)
    augmenting = 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """A batch lies ready."""
        Timed.begun = (time.perf_counter(), cpu_seconds())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """All of the step is done."""
        Timed.marks.append((Timed.begun[0], time.perf_counter(), Timed.augmenting, cpu_seconds() - Timed.begun[1]))

    def augmented(self, image: Tensor, label: Tensor, prior: Tensor | None = None) -> Batch:
        """As it is, with a watch."""
        start = time.perf_counter()
        found = super().augmented(image, label, prior)
        Timed.augmenting = time.perf_counter() - start
        return found


def cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system


def ours(plan_file: Path, count: int, out: Path) -> dict[str, Any]:
    """Train for a few steps, as users do."""
    training.Learner = Timed  # type: ignore[misc]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = workflow.train(plan_file, out, fold=None, epochs=1, edits={"training.steps": str(count + WARM)}, device="cpu")
    marks = Timed.marks[WARM:]
    return {
        "seconds": [end - start for start, end, _, _ in marks],
        "cpu_seconds": [cpu for *_, cpu in marks],
        "augmentation": [augmenting for _, _, augmenting, _ in marks],
        "between": [later[0] - earlier[1] for earlier, later in itertools.pairwise(marks)],
        "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "before_gib": before / 2**20,
        "steps": result.steps,
    }


def described(plan: Plan) -> dict[str, Any]:
    """Size and work of a plan's network."""
    task = find_task(plan.task)(plan)
    network = task.network()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, task.channels, *plan.window))
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_gflop": counter.get_total_flops() * plan.training.batch_size / 1e9,
        "step_gflop": training_cost(plan).flops / 1e9,
        "window": list(plan.window),
        "batch": plan.training.batch_size,
    }


def fastest_rate() -> float:
    """GFLOP per CPU second of the fastest of a large matrix product and a 3D convolution, in the type that this CPU trains in."""
    dtype = autocast_dtype(torch.device("cpu")) or torch.float32
    square = torch.randn(2048, 2048).to(dtype)
    image = torch.randn(7, 64, 20, 28, 20).to(dtype).to(memory_format=torch.channels_last_3d)
    layer = nn.Conv3d(64, 64, 3, padding=1, bias=False).to(dtype).to(memory_format=torch.channels_last_3d)
    work = {2 * 2048**3: lambda: square @ square, 2 * 27 * 64 * image.numel(): lambda: layer(image)}
    rates = []
    with torch.no_grad():
        for flop, run in work.items():
            for _ in range(15):
                start = time.process_time()
                run()
                rates.append(flop / (time.process_time() - start) / 1e9)
    return max(rates)


def child(command: list[str | Path], environment: dict[str, str]) -> dict[str, Any]:
    """A process's last line."""
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summary(runs: list[dict[str, Any]], rate: float, about: dict[str, Any]) -> dict[str, Any]:
    """Medians over all steps of all rounds."""

    def middle(name: str) -> float:
        return statistics.median(value for run in runs for value in run[name])

    floor = about["step_gflop"] / rate
    row = {"step_s": round(middle("seconds"), 3), "fastest_s": round(min(value for run in runs for value in run["seconds"]), 3)}
    for name in ("cpu_seconds", "augmentation", "between"):
        if name in runs[0]:
            row[f"{name.removesuffix('_seconds')}_s"] = round(middle(name), 4)
    row |= {"memory_gib": round(max(run["memory_gib"] for run in runs), 2), "floor_cpu_s": round(floor, 3)}
    return row | {"floor_over_cpu": round(floor / row["cpu_s"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--nnunet-python", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=6, help="steps of the same network per round and program")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(ours(arguments.measure, arguments.count, arguments.out)), flush=True)
        return
    if arguments.nnunet_python is None:
        parser.error("--nnunet-python is needed")
    python, here = arguments.nnunet_python, Path(__file__).parent
    with tempfile.TemporaryDirectory() as temporary:
        work, environment = Path(temporary), dict(os.environ)
        raw_dataset(arguments.dataset, work / "raw")
        for part in ("raw", "preprocessed", "results"):
            (work / part).mkdir(exist_ok=True)
            environment[f"nnUNet_{part}"] = str(work / part)
        with (work / "prepare.log").open("w") as log:
            command = [str(python), str(here / "nnunet_training.py"), "prepare", str(NUMBER)]
            subprocess.run(command, env=environment, check=True, stdout=log, stderr=subprocess.STDOUT)
        files = {}
        for name, rules in (("same network", Presets("nnunet")), ("recommended plan", None)):
            plans = workflow.plan(arguments.dataset, work / name.replace(" ", "_"), rules=rules, prepare=True)
            chosen = next(plan for plan in plans if plan.recommended)
            files[name] = Workspace(work / name.replace(" ", "_")).plan_file(chosen.name)
        theirs = THEIRS.format(folder=str(here), number=NUMBER, count=arguments.count)
        runs: dict[str, list[dict[str, Any]]] = {"nnunet": [], **{name: [] for name in files}}
        rates = []
        for turn in range(arguments.rounds):
            runs["nnunet"].append(child([python, "-c", theirs], environment))
            rates.append(fastest_rate())
            for name, file in files.items():
                count = arguments.count * (1 if name == "same network" else 5)
                out = work / f"{turn}_{name.replace(' ', '_')}"
                command = [sys.executable, __file__, arguments.dataset, "--measure", file, "--count", count, "--out", out]
                runs[name].append(child(command, environment))
            print({name: round(statistics.median(found[-1]["seconds"]), 3) for name, found in runs.items()}, flush=True)
        plans = {name: Plan.load(file) for name, file in files.items()}
        about = {name: described(plan) for name, plan in plans.items()}
    peer, same = runs["nnunet"][0], about["same network"]
    for what in ("parameters", "batch", "window"):
        if peer[what] != same[what]:
            raise SystemExit(f"the networks differ in {what}: {peer[what]} and {same[what]}")
    if abs(peer["forward_gflop"] / same["forward_gflop"] - 1) > 1e-3:
        raise SystemExit(f"the networks differ in GFLOP: {peer['forward_gflop']} and {same['forward_gflop']}")
    rate = max(rates)
    rows = {name: summary(found, rate, about.get(name, same)) for name, found in runs.items()}
    rows["ratio"] = {what: round(rows["nnunet"][what] / rows["same network"][what], 2) for what in ("step_s", "cpu_s", "memory_gib")}
    print(json.dumps(rows, indent=1))
    note = f"medians over {arguments.rounds} rounds; {torch.get_num_threads()} threads; load {os.getloadavg()}; {rate:.0f} GFLOP per CPU second at most"
    write("training_step", {"nnunet": reference_version(python), "plans": about, "rows": rows}, note)


if __name__ == "__main__":
    main()
