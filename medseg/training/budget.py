"""How long training lasts, and how far it has come: everything that follows a schedule asks here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medseg.errors import UsageError
from medseg.plans import TrainingPlan


@dataclass(frozen=True)
class Budget:
    """The length of training: `seconds` of wall-clock (validation included), or `epochs`, or, with neither, the plan's epochs."""

    seconds: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and self.epochs is not None:
            raise UsageError.of("training ends at a time or after a number of epochs, not both", where="--time, --epochs")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError.of("the time must be positive", where="--time", found=f"{self.seconds} s")
        if self.epochs is not None and self.epochs < 1:
            raise UsageError.of("at least one epoch is needed", where="--epochs", found=str(self.epochs))


WORTH = 0.5  # of `network_steps`: fewer give a network that makes the average worse
FEW_STEPS, FEW_PASSES = 100, 2  # in less than these a network has hardly begun to learn
SLOW_START = 10  # steps that are not typical, at most
NEAR_SHARE, NEAR_STEPS = 0.02, 20  # the end is near when less than this share of the time, or this many steps, are left


def length(seconds: float | None, epochs: int | None) -> str:
    """A length of training in words."""
    if seconds is None:
        return f"{epochs} epoch{'' if epochs == 1 else 's'}"
    if seconds >= 7200:
        return f"{seconds / 3600:.3g} hours"
    return f"{seconds / 60:.3g} minutes" if seconds >= 120 else f"{seconds:g} seconds"


def amount(steps: int, windows: int, cases: int, timed: bool) -> str:
    """How much training there was, in words; where the time decided and gave too little to learn from, a warning.

    Args:
        steps: of all networks together.
        windows: in a step.
        cases: to train on.
        timed: whether the length was a time.
    """
    passes = steps * windows / cases
    count = f"{steps} training step{'' if steps == 1 else 's'}, {passes:.3g} windows per case"
    if timed and (steps < FEW_STEPS or passes < FEW_PASSES):
        return f"warning: only {count}: the result says little; give it more time (--time)"
    return count


class Clock:
    """Measures training and says how far it is; survives interruptions, because its state is saved and restored.

    A length that is enough for several networks (`TrainingPlan.network_steps` each) is divided among them, in whole epochs. How many they
    are is decided anew when a network begins, from the steps that are left at the measured pace, so that a pace that changes lengthens or
    shortens the networks to come and the last one ends with the time. Where the time decides, the pace is known after the first epoch; a
    pace that falls so far that no further network would be worth its time gives the present one all that is left.

    Attributes:
        seconds: the time allowed, or None.
        epochs: the epochs allowed, or None when the time decides.
        reserve: seconds kept for the last validation.
        before: seconds and epochs of the interrupted training that was restored; empty when none was.
        network: the present network, counted from 0.
        begun: the step at which it began.
        end: the step at which it ends and the next one begins; None for the last.
    """

    def __init__(self, budget: Budget, plan: TrainingPlan, networks: int, synchronise: Callable[[], object] | None = None) -> None:
        """From a budget.

        Args:
            plan: how many steps an epoch has, and a network needs.
            networks: at most so many.
            synchronise: waits for the device. A GPU is told what to do faster than it does it, so near the end of the time, and only
                there, a step has ended when the device has.
        """
        self.seconds = budget.seconds
        self.epochs = None if budget.seconds is not None else (budget.epochs or plan.epochs)
        self.steps = plan.steps
        self.reserve = 0.0
        self.before: tuple[float | None, int | None] | None = None
        self.network = self.begun = 0
        self.end: int | None = None
        self._network_steps, self._networks = plan.network_steps, networks
        self._begun_at = 0.0
        self._mark = (0, 0.0)
        self._synchronise = synchronise
        self._before = 0.0
        self._started: float | None = None
        self._last: float | None = None
        self._step = 0.0

    def start(self) -> None:
        """Start, or go on after a restored interruption."""
        self._started = self._last = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, all sessions together."""
        return self._before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def tick(self, step: int) -> None:
        """Call after every step: learns how long a step takes, so that the last one ends before the time is over."""
        if self._synchronise is not None and self._near():
            self._synchronise()
        if step <= min(SLOW_START, self.steps // 2):
            self._mark = (step, self.elapsed)
        now = time.monotonic()
        if self._last is not None:
            # The slower of the usual and the latest step, because running over the time is worse than ending one step early.
            self._step = max(now - self._last, 0.9 * self._step)
        self._last = now

    def _near(self) -> bool:
        if self.seconds is None:
            return False
        return self.seconds - self.reserve - self.elapsed <= max(NEAR_SHARE * self.seconds, NEAR_STEPS * self._step)

    def skip(self) -> None:
        """Call after a pause between steps (validation, saving), so that it does not count as a step."""
        self._last = time.monotonic()

    def progress(self, step: int) -> float:
        """How far the present network is, from 0 to 1: what the learning rate follows."""
        end = self.end if self.end is not None or self.epochs is None else self.epochs * self.steps
        if end is not None:
            return min(1.0, (step - self.begun) / (end - self.begun))
        assert self.seconds is not None
        return min(1.0, (self.elapsed - self._begun_at) / max(self.seconds - self.reserve - self._begun_at, 1e-9))

    def allot(self, step: int) -> None:
        """Decide where the present network ends, from the steps since its begin and those that are left."""
        left = self.epochs * self.steps - step if self.epochs is not None else self._left(step)
        whole = step - self.begun + left
        count = min(self._networks - self.network, round(whole / self._network_steps))
        epochs = max(round(whole / count / self.steps), (step - self.begun) // self.steps + 1) if count > 1 else 0
        self.end = self.begun + epochs * self.steps if count > 1 else None

    def reconsider(self, step: int) -> None:
        """Where the time decides: give the present network the rest if the next one could not become what a network should be."""
        if self.seconds is not None and self.end is not None and self._left(step) - (self.end - step) < WORTH * self._network_steps:
            self.end = None

    def worth(self, step: int) -> bool:
        """Whether the present network has had steps enough to be averaged with those before it; the first one always has."""
        return self.network == 0 or step - self.begun >= WORTH * self._network_steps

    def _left(self, step: int) -> float:
        """Steps in the rest of the time at the present network's pace.

        The first steps of all, in which a device warms up and compiles, tell nothing about it.
        """
        assert self.seconds is not None
        first, since = (self.begun, self._begun_at) if step > self.begun > 0 else self._mark
        pace = (self.elapsed - since) / (step - first) if step > first else math.inf
        return max(0.0, self.seconds - self.reserve - self.elapsed) / max(pace, 1e-9)

    def renew(self, step: int) -> None:
        """Go on to the next network; `allot` says where it ends."""
        self.network, self.begun, self._begun_at, self.end = self.network + 1, step, self.elapsed, None

    def time_is_up(self) -> bool:
        """Whether another step, and the last validation, would end after the time."""
        return self.seconds is not None and self.elapsed + self._step + self.reserve >= self.seconds

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "elapsed": self.elapsed,
            "reserve": self.reserve,
            "step": self._step,
            "seconds": self.seconds,
            "epochs": self.epochs,
            "network": self.network,
            "begun": self.begun,
            "begun_at": self._begun_at,
            "end": self.end,
            "mark": self._mark,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._before, self.reserve, self._step = float(state["elapsed"]), float(state["reserve"]), float(state["step"])
        self.before = (state["seconds"], state["epochs"])
        self.network, self.begun, self.end = state["network"], state["begun"], state["end"]
        self._begun_at, self._mark = float(state["begun_at"]), state["mark"]
