"""How long training lasts, and how far it has come: everything that follows a schedule asks here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medseg.errors import UsageError


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


NEAR_SHARE, NEAR_STEPS = 0.02, 20  # the end is near when less than this share of the time, or this many steps, are left


def length(seconds: float | None, epochs: int | None) -> str:
    """A length of training in words."""
    if seconds is None:
        return f"{epochs} epoch{'' if epochs == 1 else 's'}"
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"


class Clock:
    """Measures training and says how far it is, from 0 to 1; survives interruptions, because `elapsed` is saved and restored.

    Attributes:
        seconds: the time allowed, or None.
        epochs: the epochs allowed, or None when the time decides.
        reserve: seconds kept for the last validation.
        before: seconds and epochs of the interrupted training that was restored; empty when none was.
    """

    def __init__(self, budget: Budget, planned_epochs: int, steps: int, synchronise: Callable[[], object] | None = None) -> None:
        """From a budget.

        Args:
            synchronise: waits for the device. A GPU is told what to do faster than it does it, so near the end of the time, and only
                there, a step has ended when the device has.
        """
        self.seconds = budget.seconds
        self.epochs = None if budget.seconds is not None else (budget.epochs or planned_epochs)
        self.steps = steps
        self.reserve = 0.0
        self.before: tuple[float | None, int | None] | None = None
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

    def tick(self) -> None:
        """Call after every step: learns how long a step takes, so that the last one ends before the time is over."""
        if self._synchronise is not None and self._near():
            self._synchronise()
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
        """From 0 to 1: what the learning rate follows."""
        if self.epochs is not None:
            return min(1.0, step / (self.epochs * self.steps))
        assert self.seconds is not None
        return min(1.0, self.elapsed / max(self.seconds - self.reserve, 1e-9))

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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._before, self.reserve, self._step = float(state["elapsed"]), float(state["reserve"]), float(state["step"])
        self.before = (state["seconds"], state["epochs"])
