"""What limits a training, in words, from what was measured of it."""

from __future__ import annotations

import math
from typing import Literal

import psutil

from medseg.record import Record

WAITING = 0.05  # of a step: less is not worth a thought
LARGE = 0.4  # of a step: a phase of this share, other than the network, is what limits
COMPUTING = 0.5  # of the time of reading a window: less is waiting for the disk
BUSY = 0.2  # of the cores: others that take more slow what is measured
FEW = 10  # steps: fewer tell little
POOR = 0.15  # of the rate of a large matrix product: so little needs an explanation
LOW = 0.2  # of the rate of a large matrix product: a device could do much more
ROOM = 0.5  # of the memory: as much as this free allows a larger batch
GIB = 2**30


class TrainingSpeed(Record):
    """How fast a plan trains.

    Attributes:
        steps: that were measured.
        steps_per_second, windows_per_second: as `medseg train` takes them.
        fastest, slowest: seconds of single steps.
        cores: that the training kept busy, on average.
        others: share of the cores that other processes took meanwhile; None where that is not known.
        phases: seconds per step (see `medseg.training.probe.Pace`).
        waiting: share of a step that waits for its windows.
        memory: GiB at the peak; None where it cannot be measured.
        memory_predicted: GiB, as the plan predicts it for this kind of device.
        portion: windows at once, where a whole batch does not fit.
        flops: per step, as the planner counts them.
        rate, peak_rate, utilisation: FLOP/s of training steps and of a large matrix product in the same precision, and their ratio.
        workers: processes that cut windows; 0: the training process itself.
        window_seconds, window_computing: for one window in one process, and the share of it that is no waiting for the disk.
        compiled: whether the network was compiled.
        float32_steps_per_second: on a CPU that trains in bfloat16, for comparison.
        epoch_seconds, plan_seconds: for an epoch, and for all epochs of the plan, validation apart.
    """

    steps: int
    steps_per_second: float
    windows_per_second: float
    fastest: float
    slowest: float
    cores: float
    others: float | None
    phases: dict[str, float]
    waiting: float
    memory: float | None
    memory_predicted: float
    portion: int | None
    flops: int
    rate: float
    peak_rate: float
    utilisation: float
    workers: int
    window_seconds: float
    window_computing: float
    compiled: bool
    float32_steps_per_second: float | None
    epoch_seconds: float
    plan_seconds: float


class Verdict(Record):
    """What limits training steps, that in a sentence, and what would help."""

    limit: Literal["network", "augmentation", "optimiser", "data", "disk"]
    sentence: str
    advice: tuple[str, ...]


def judge(speed: TrainingSpeed, batch: int, budget: float, kind: str, cores: int, prepared: float | None, precision: str) -> Verdict:
    """The verdict on a training.

    Args:
        batch: windows per step.
        budget: GiB that the plan allows.
        kind: of device.
        cores: that this process may use.
        prepared: GiB of all prepared cases; None where only a few were read.
        precision: of the network's arithmetic.
    """
    found = _limit(speed, batch, budget, kind, cores, prepared, precision)
    busy = speed.others is not None and speed.others > BUSY
    before = f"other processes took {speed.others:.0%} of the cores: repeat when the machine is quiet; " if busy else ""
    after = f"; {speed.steps} steps of {lasting(speed.fastest, speed.slowest)}"
    return found.model_copy(
        update={"sentence": before + found.sentence + after, "advice": (*_doubts(speed, kind, precision), *found.advice)}
    )


def lasting(fastest: float, slowest: float) -> str:
    """`12 to 15 ms`."""
    factor, unit = (1e3, "ms") if slowest < 1 else (1.0, "s")
    return f"{factor * fastest:.3g} to {factor * slowest:.3g} {unit}"


def _doubts(speed: TrainingSpeed, kind: str, precision: str) -> list[str]:
    """What makes the figures less than certain, or odd."""
    found = []
    if speed.steps < FEW:
        found.append(f"so few steps tell little: measure {FEW} or more (--seconds or --steps)")
    if speed.float32_steps_per_second is not None and speed.steps_per_second < speed.float32_steps_per_second:
        found.append(
            f"{precision} is slower than float32 on this CPU: small layers cost more to convert than they save, and other processes may have held up "
            "one of the two; a repetition tells"
        )
    if speed.utilisation < POOR:
        small = "layers with few channels, small windows or batches, or operations that wait for memory instead of computing"
        found.append(
            f"{speed.utilisation:.0%} of a large matrix product's rate is little: "
            + (f"{small}; or cores that others took" if kind == "cpu" else small)
        )
    return found


def _limit(speed: TrainingSpeed, batch: int, budget: float, kind: str, cores: int, prepared: float | None, precision: str) -> Verdict:
    total = sum(speed.phases.values())
    shares = {phase: spent / total for phase, spent in speed.phases.items()}
    if speed.waiting >= WAITING:
        return _data(speed, batch, kind, cores, prepared, total)
    waiting = f"waiting {speed.waiting:.0%}"
    for phase in ("augmentation", "optimiser"):
        if shares[phase] >= LARGE and shares[phase] > shares["network"]:
            return Verdict(
                limit=phase, sentence=f"limited by {NAMES[phase]}: {shares[phase]:.0%} of the step ({waiting})", advice=ADVICE[phase]
            )
    sentence = f"limited by the network ({waiting}): {shares['network']:.0%} of the step, at {speed.utilisation:.0%} of a large matrix product's rate"
    return Verdict(limit="network", sentence=sentence, advice=tuple(_network(speed, batch, budget, kind, precision)))


NAMES = {"augmentation": "augmentation", "optimiser": "the optimiser"}
ADVICE = {
    "augmentation": ("no more data or memory helps; the plan's `space` section says what is varied (docs/plan.md)",),
    "optimiser": ("the weights are many for so small a batch: a larger one takes fewer steps (--set training.batch_size=N)",),
}


def _network(speed: TrainingSpeed, batch: int, budget: float, kind: str, precision: str) -> list[str]:
    found = []
    if speed.portion is not None:
        found.append("memory did not hold a whole batch, so each step runs the network twice: plan for less (`medseg plan --memory`)")
    elif kind != "cpu" and speed.utilisation < LOW and speed.memory is not None and speed.memory < ROOM * budget:
        found.append(
            f"{speed.memory:.1f} of {budget:g} GiB are used: a larger batch may fill the device better (--set training.batch_size={2 * batch})"
        )
    if kind == "cpu" and precision == "float32":
        found.append("this CPU has no fast bfloat16; one with AVX512-BF16 or AMX takes about half the time, a GPU a small part of it")
    return found


def _data(speed: TrainingSpeed, batch: int, kind: str, cores: int, prepared: float | None, total: float) -> Verdict:
    busy = total - speed.phases["data"]
    each = f"{1e3 * speed.window_seconds:.1f} ms"
    advice = []
    if speed.window_computing < COMPUTING:
        sentence = (
            f"limited by the disk: {speed.waiting:.0%} of the step waits; reading a window takes {each}, and for "
            f"{1 - speed.window_computing:.0%} of that the processor has nothing to do"
        )
        advice.append("put the workspace on a local SSD (-o of `medseg plan` or `medseg run`)")
        free = psutil.virtual_memory().available / GIB
        if prepared is not None and prepared > free:
            advice.append(
                f"prepared cases take about {prepared:.1f} GiB and {free:.1f} GiB of memory are free: with more, they would be read once"
            )
        if kind != "cpu":
            advice.append(f"more windows can be waited for at once: --workers {2 * max(1, speed.workers)} (now {speed.workers})")
        return Verdict(limit="disk", sentence=sentence, advice=tuple(advice))
    sentence = f"limited by data: {speed.waiting:.0%} of the step waits; a window takes {each} of a core, and {batch} of them the device {busy:.3g} s"
    needed = math.ceil(speed.window_seconds * batch / max(busy, 1e-9)) + 1
    if kind == "cpu":
        advice.append("on a CPU the training itself cuts its windows: processes aside would take the cores that it needs")
    elif speed.workers < min(needed, cores):
        advice.append(f"try --workers {min(needed, cores)} (now {speed.workers}; you have {cores} cores)")
    else:
        advice.append(f"about {needed} cores would keep the device busy, and you have {cores}")
    return Verdict(limit="data", sentence=sentence, advice=tuple(advice))
