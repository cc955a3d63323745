from __future__ import annotations

import mmap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.peak import GIB, PeakMemory

SIZE = 64 * 2**20


def test_the_highest_moment_counts() -> None:
    peak = PeakMemory(torch.device("cpu"))
    held = np.ones(SIZE, np.uint8)
    time.sleep(0.1)
    del held
    measured = peak.stop()
    assert measured == pytest.approx(SIZE / GIB, rel=0.3)
    held = np.ones(2 * SIZE, np.uint8)
    assert peak.stop() == measured
    del held


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux tells mapped files apart")
def test_mapped_files_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(SIZE))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        peak = PeakMemory(torch.device("cpu"))
        assert not np.frombuffer(mapped, np.uint8).any()
        time.sleep(0.05)
        assert peak.stop() < SIZE / GIB / 2
