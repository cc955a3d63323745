"""Who takes the cores while something is measured: this process, or others."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Taken:
    """What was taken of the cores for a while.

    Attributes:
        cores: that this process and those that it started kept busy, on average.
        others: share, 0 to 1, of the cores that this process may use, by all other processes; None where the system does not count it.
    """

    cores: float
    others: float | None


class Load:
    """Counts from its making until `stop`."""

    def __init__(self) -> None:
        self._busy, self._whole = _system()
        self._own, self._began = _own(), time.perf_counter()

    def stop(self) -> Taken:
        """Since the beginning; the system counts in hundredths of a second."""
        own, spent = _own() - self._own, max(time.perf_counter() - self._began, 1e-9)
        busy, whole = _system()
        passed = whole - self._whole
        others = min(1.0, max(0.0, (busy - self._busy - own) / passed)) if passed > 0 else None
        return Taken(max(0.0, own) / spent, others)


def _system() -> tuple[float, float]:
    """Seconds that the cores which this process may use were busy, and all that passed on them."""
    cores = psutil.cpu_times(percpu=True)
    process = psutil.Process()
    allowed = set(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else set(range(len(cores)))
    busy = whole = 0.0
    for core in (one for place, one in enumerate(cores) if place in allowed):
        taken = sum(getattr(core, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
        busy += taken
        whole += taken + core.idle + getattr(core, "iowait", 0.0)
    return busy, whole


def _own() -> float:
    """Seconds of this process and those that it started and that still run."""
    process = psutil.Process()
    spent = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended
            times = one.cpu_times()
            spent += times.user + times.system
    return spent
