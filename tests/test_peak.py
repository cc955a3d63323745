from __future__ import annotations

import mmap
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.peak import GIB, PeakMemory

SIZE = 64 * 2**20


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.peak._watched", set())


def test_the_highest_moment_counts() -> None:
    """In a process of its own: here memory that other tests have freed would be used again."""
    script = (
        "import time, numpy as np, torch; from medseg.peak import PeakMemory\n"
        "peak = PeakMemory(torch.device('cpu'))\n"
        f"held = np.ones({SIZE}, np.uint8); time.sleep(0.5); del held\n"
        "first = peak.stop()\n"
        f"held = np.ones({2 * SIZE}, np.uint8)\n"
        "print(first, peak.stop())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    first, again = map(float, done.stdout.split())
    assert first == again == pytest.approx(SIZE / GIB, rel=0.3)


def test_only_the_first_watch_of_a_process_tells() -> None:
    """What the first one's tensors held is used again by the second one's without new pages."""
    first = PeakMemory(torch.device("cpu"))
    assert first.stop() is not None
    second = PeakMemory(torch.device("cpu"))
    assert second.stop() is None
    assert second.stop() is None
    assert first.stop() is not None


def test_gpus_tell_what_tensors_held_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator keeps what it has reserved: only what it has lent counts."""
    lent = {"now": GIB, "highest": 9 * GIB}

    def reset(device: torch.device) -> None:
        lent["highest"] = lent["now"]

    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", reset)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: lent["now"])
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: lent["highest"])
    for _ in range(2):
        peak = PeakMemory(torch.device("cuda"))
        lent["highest"] = 3 * GIB
        assert peak.stop() == 2
        lent["highest"] = 5 * GIB
        assert peak.stop() == 2


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux tells mapped files apart")
def test_mapped_files_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(SIZE))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        peak = PeakMemory(torch.device("cpu"))
        assert not np.frombuffer(mapped, np.uint8).any()
        time.sleep(0.05)
        measured = peak.stop()
        assert measured is not None
        assert measured < SIZE / GIB / 2
