"""How fast a plan trains on a device, and on what its steps spend their time: the training itself, watched for a while and thrown away."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from medseg.load import Load, Taken
from medseg.peak import PeakMemory
from medseg.plans import Plan
from medseg.progress import Progress
from medseg.training.budget import Budget, Clock
from medseg.training.data import TrainingData, Windows
from medseg.training.module import AUGMENTATION, Learner
from medseg.training.signals import StopRequest
from medseg.training.trainer import compiles, make_trainer, memory_kept, memory_told, quiet, synchroniser

PHASES = ("data", "augmentation", "network", "optimiser")
WARM = 3  # steps that are not typical: kernels are chosen and compiled, memory is reserved
FEWEST = 3  # steps that are measured, however long they take
ENDLESS = 10**6  # epochs; `Watch` ends the training
FAR = 10**7  # items of training that no measured step has come to, so that their windows have not been read
MANY = 256  # windows that tell how long one takes
SIZES = {"cuda": 8192, "mps": 4096, "cpu": 2048}  # edge of a matrix whose product takes a device long enough


@dataclass(frozen=True)
class Pace:
    """What training steps took.

    Attributes:
        steps: that were measured.
        step: seconds per step, as in training.
        fastest, slowest: seconds of single steps; on a GPU of those at whose phases the device is waited for.
        taken: of the cores, meanwhile.
        phases: seconds per step by phase (`PHASES`); on a GPU of further steps, at whose phases the device is waited for, so that they may come
            to more than `step`. `data` is what a step waits for its windows, until they are on the device.
        memory: GiB at the peak, above what the process held before; None where it cannot be measured.
        portion: windows that went through the network at once, where the whole batch did not fit.
        workers: processes that cut windows; 0: the training process itself.
        compiled: whether the network was compiled, as in a training as long as the plan's.
    """

    steps: int
    step: float
    fastest: float
    slowest: float
    taken: Taken
    phases: dict[str, float]
    memory: float | None
    portion: int | None
    workers: int
    compiled: bool


class Watch(Callback):
    """Times the steps of a training, and ends it."""

    def __init__(
        self,
        seconds: float,
        steps: int | None,
        synchronise: Callable[[], object] | None,
        stop: StopRequest,
        progress: Progress,
        fewest: int = FEWEST,
    ) -> None:
        """From what is enough.

        Args:
            seconds: of measured steps, about; `steps` of them, if given, instead. Steps before these take no longer, but for one.
            synchronise: waits for the device. Where there is one, half of the time is for steps that run freely, which tell the pace, and half for
                those in which every phase is waited for.
            stop: what a signal asked for.
            progress: told how far it is.
            fewest: steps that are measured, however long they take.
        """
        self.seconds, self.steps, self.synchronise, self.stop, self.progress = seconds, steps, synchronise, stop, progress
        self.fewest = fewest
        self.each: list[float] = []
        self.taken: Taken | None = None
        self._load: Load | None = None
        self.spent = dict.fromkeys(PHASES, 0.0)
        self.paced, self.timed = 0, 0
        self.pace = 0.0
        self.waiting = synchronise is not None
        self._free = synchronise is not None  # steps run freely now
        self._warm = 0
        self._since = self._mark = self._step = 0.0
        self._augmenting = 0.0

    def augmentation(self, begins: bool) -> None:
        """Told by `Sections`."""
        now = self._now()
        self._augmenting = now if begins else now - self._augmenting

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals, and say what takes long."""
        self.stop.install()
        self._since = self._mark = self._now()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The step's windows are there."""
        self._spend("data")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Gradients are there."""
        self._spend("network")
        self.spent["augmentation"] += self._augmenting if self._measures else 0
        self.spent["network"] -= self._augmenting if self._measures else 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The step is over: is it enough?"""
        self._spend("optimiser")
        if self.stop.name:
            trainer.should_stop = True
        elif self._warm < WARM:
            self._warm = self._warm + 1 if self._mark - self._since < self.seconds else WARM
            self.progress.update("warming up", self._warm, WARM)
            if self._warm == WARM:
                self._begin()
        else:
            self._count(trainer)

    @property
    def _measures(self) -> bool:
        return self._warm == WARM and not self._free

    def _count(self, trainer: Trainer) -> None:
        if self._free:
            self.paced += 1
        else:
            self.timed += 1
            self.each.append(self._mark - self._step)
            self._step = self._mark
        done, spent = (self.paced if self._free else self.timed), time.perf_counter() - self._since
        share = self.seconds / 2 if self.waiting else self.seconds
        before = share if self.waiting and not self._free else 0.0
        self.progress.update("training", min(self.seconds, before + spent), self.seconds, f"{done} steps", seconds=True)
        if done < (self.steps or self.fewest) or (self.steps is None and spent < share):
            return
        if self._free:
            self.pace = (self._now(whatever=True) - self._since) / done
            self._free = False
            self._begin()
        else:
            if not self.waiting:
                self.pace = spent / done
            self.taken = self._load.stop() if self._load is not None else None
            trainer.should_stop = True

    def _begin(self) -> None:
        self._load = self._load or Load()
        self._since = self._mark = self._step = self._now(whatever=True)

    def _now(self, whatever: bool = False) -> float:
        if self.synchronise is not None and (whatever or not self._free):
            self.synchronise()
        return time.perf_counter()

    def _spend(self, phase: str) -> None:
        now = self._now()
        if self._measures:
            self.spent[phase] += now - self._mark
        self._mark = now


class Sections(PassThroughProfiler):
    """Lightning's profiler, which the learner tells when it augments."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def start(self, action_name: str) -> None:
        """See `Profiler`."""
        if action_name == AUGMENTATION:
            self._watch.augmentation(True)

    def stop(self, action_name: str) -> None:
        """See `Profiler`."""
        if action_name == AUGMENTATION:
            self._watch.augmentation(False)


def train_pace(
    plan: Plan,
    prepared: Path,
    ids: Sequence[str],
    device: torch.device,
    seconds: float,
    steps: int | None,
    workers: int | None,
    progress: Progress,
    full_precision: bool = False,
    fewest: int = FEWEST,
) -> Pace:
    """Train for about so many seconds, or steps, on prepared cases, and keep nothing.

    Raises:
        KeyboardInterrupt: a signal ended it.
        ResourceError: memory does not suffice, even for one window at a time.
    """
    stop = StopRequest()
    watch = Watch(seconds, steps, synchroniser(device), stop, progress, fewest)
    compiled = compiles(device, Clock(Budget(), plan.training, 1))
    clock = Clock(Budget(epochs=ENDLESS), plan.training, 1)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medseg-")))
        stack.callback(stop.remove)
        stack.enter_context(memory_kept(device, full_precision))
        stack.enter_context(quiet())
        stack.enter_context(memory_told(device))
        peak = PeakMemory(device)
        stack.callback(peak.stop)
        data = TrainingData(plan, prepared, ids, None, device.type, workers=workers)  # type: ignore[arg-type]
        learner = Learner(plan, None, clock, device, progress=progress)
        if compiled:
            progress.say("the network is compiled first, as in a training of the plan's length")
            learner.network.compile()
        trainer = make_trainer(plan, folder, device, 1, clock, watch, full_precision=full_precision, profiler=Sections(watch))
        trainer.fit(learner, datamodule=data)
        memory = peak.stop()
    if stop.name:
        raise KeyboardInterrupt
    phases = {phase: spent / watch.timed for phase, spent in watch.spent.items()}
    assert watch.taken is not None
    return Pace(
        watch.timed + watch.paced,
        watch.pace,
        min(watch.each),
        max(watch.each),
        watch.taken,
        phases,
        memory,
        learner.portion,
        data.workers,
        compiled,
    )


@dataclass(frozen=True)
class Cutting:
    """What it takes one process to read a window from the prepared cases: seconds, and the share of them that it computes instead of waiting."""

    seconds: float
    computing: float


def cutting_pace(plan: Plan, prepared: Path, ids: Sequence[str], seconds: float) -> Cutting:
    """Cut windows, other ones than `train_pace`, for so many seconds at most."""
    windows = Windows(plan, prepared, ids, None)
    windows[FAR]
    count, wall, computed = 0, time.perf_counter(), time.thread_time()
    while count == 0 or (time.perf_counter() - wall < seconds and count < MANY):
        count += 1
        windows[FAR + count]
    spent = max(time.perf_counter() - wall, 1e-9)
    return Cutting(spent / count, min(1.0, (time.thread_time() - computed) / spent))


def product_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a large matrix product, the best of those that fit into so many seconds: what a device gives when nothing holds it up."""
    size, wait = SIZES[device.type], synchroniser(device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best, began = 0.0, time.perf_counter()
    while not best or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if wait is not None:
            wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
