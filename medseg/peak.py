"""How much memory a process really takes on its device, to hold against what a plan predicts."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

EVERY = 0.01  # seconds; the peak of a training step lasts far longer
GIB = 2**30


_watched: set[str] = set()  # kinds of device without exact figures that this process has been watched on


class PeakMemory:
    """The most that this process has held on a device since the object was made, above what it held then.

    CUDA: tensors, exactly as the allocator counts them. CPU: the process's own pages, looked at every `EVERY` seconds by a thread; pages of
    mapped files do not count, because the system takes them back when it needs them. Apple's GPUs: what the driver has allocated, looked at
    like a CPU's memory. In the last two, memory that was freed stays with the process and is used again unseen, so that only the first
    watch of a process tells the truth, and later ones tell nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._result: float | None = None
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None
        if device.type == "cuda":
            import torch

            gc.collect()  # networks of earlier trainings would be freed on the way, and seem to make room
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        if device.type in _watched:
            self._ended.set()
            return
        _watched.add(device.type)
        self._held = _on_apple() if device.type == "mps" else own_memory
        self._before = self._highest = self._held()
        self._watch = threading.Thread(target=self._look, name="peak memory", daemon=True)
        self._watch.start()

    def stop(self) -> float | None:
        """GiB at the peak until the first call, None where it cannot be known; later calls repeat it."""
        if self._ended.is_set():
            return self._result
        self._ended.set()
        if self._watch is None:
            import torch

            self._highest = torch.cuda.max_memory_allocated(self._device)
        else:
            self._watch.join()
        self._result = max(0, self._highest - self._before) / GIB
        return self._result

    def _look(self) -> None:
        while not self._ended.wait(EVERY):
            self._highest = max(self._highest, self._held())
        self._highest = max(self._highest, self._held())


def own_memory() -> int:
    """Bytes of main memory that belong to this process alone, as far as the system says: on Linux without mapped files."""
    held = psutil.Process().memory_info()
    return int(held.rss - getattr(held, "shared", 0))


def _on_apple() -> Callable[[], int]:
    import torch

    return torch.mps.driver_allocated_memory
