"""Requests to stop: SIGTERM, SIGUSR1 (SLURM's warning before the end of a job) and Ctrl-C save the training and end it in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
ASKING = 30.0  # seconds that SLURM may take to answer


class StopRequest:
    """While active, remembers the first of these signals instead of letting it end the process; a second Ctrl-C interrupts at once.

    With several ranks the parent process hears the signals and tells its children through `shared`, a shared integer that holds the
    number of the signal (0: none), which works on Windows too, where a process cannot be asked to stop. Children do not listen to
    Ctrl-C, which a terminal sends to all of them.
    """

    def __init__(self, shared: Any = None) -> None:
        self.shared = shared
        self._name = ""
        self._previous: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """The signal that asked this process, or its parent, to stop; empty if none did."""
        if not self._name and self.shared is not None and self.shared.value:
            self._name = signal.Signals(self.shared.value).name
        return self._name

    def install(self) -> None:
        """Take over the signals, where this thread may (the main thread) and the system has them (Windows lacks SIGUSR1).

        Called again, it takes them back from whoever took them in between; `remove` still restores the first handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None:
                deaf = self.shared is not None and number == signal.SIGINT
                previous = signal.signal(number, signal.SIG_IGN if deaf else self._receive)
                self._previous.setdefault(number, previous)

    def remove(self) -> None:
        """Give the signals back."""
        for number, previous in self._previous.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._name = self._name or signal.Signals(number).name


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes started meanwhile are deaf to Ctrl-C from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous if previous is not None else signal.SIG_DFL)


def requeue() -> bool:
    """Ask SLURM to run this job again. False outside SLURM, for a job that was cancelled, and where SLURM refuses (`--no-requeue`)."""
    job, array, task = (os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
    scontrol = shutil.which("scontrol")
    if not job or scontrol is None:
        return False
    name = f"{array}_{task}" if array else job
    try:
        shown = subprocess.run([scontrol, "show", "job", "--oneliner", name], capture_output=True, text=True, timeout=ASKING, check=False)
        if "JobState=CANCELLED" in shown.stdout:  # `scancel` too begins with SIGTERM
            return False
        return subprocess.run([scontrol, "requeue", name], capture_output=True, timeout=ASKING, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def requeued() -> bool:
    """Whether SLURM runs this job again (after `requeue`, a preemption or a failed node), so that it has to go on where it was."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return count.isdigit() and int(count) > 0
