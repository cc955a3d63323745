"""Requests to stop: SIGTERM, SIGUSR1 (SLURM's warning before the end of a job) and Ctrl-C save the training and end it in order."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")


class StopRequest:
    """While active, remembers the first of these signals instead of letting it end the process; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals, where this thread may (the main thread) and the system has them (Windows lacks SIGUSR1).

        Called again, it takes them back from whoever took them in between; `remove` still restores the first handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None:
                previous = signal.signal(number, self._receive)
                self._previous.setdefault(number, previous)

    def remove(self) -> None:
        """Give the signals back."""
        for number, previous in self._previous.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name


def requeue() -> bool:
    """Ask SLURM to run this job again; False outside SLURM."""
    job, array, task = (os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
    scontrol = shutil.which("scontrol")
    if not job or scontrol is None:
        return False
    return subprocess.run([scontrol, "requeue", f"{array}_{task}" if array else job], check=False).returncode == 0
