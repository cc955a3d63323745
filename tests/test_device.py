"""How much memory there is: the machine's, or what a container or batch system leaves of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

import medseg.device
from medseg.device import CPU_SHARE, Machine, choose_device, control_group_limit, machine, memory_per_array, physical_memory
from medseg.errors import ResourceError

GIB = 2**30


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_version_2_takes_the_smallest_limit_on_the_way_up(tmp_path):
    write(tmp_path / "slurm" / "memory.max", 6 * GIB)
    write(tmp_path / "slurm" / "job_7" / "memory.max", 4 * GIB)
    write(tmp_path / "slurm" / "job_7" / "step" / "memory.max", "max")
    assert control_group_limit("0::/slurm/job_7/step\n", tmp_path) == 4 * GIB
    assert control_group_limit("0::/slurm/other\n", tmp_path) == 6 * GIB
    assert control_group_limit("0::/elsewhere\n", tmp_path) is None


def test_version_1_within_a_container(tmp_path):
    """The path is the host's and does not exist below the mount, which is the container's own group."""
    write(tmp_path / "memory" / "memory.limit_in_bytes", 2 * GIB)
    membership = "12:cpuset:/docker/ab\n5:memory,hugetlb:/docker/ab\n1:name=systemd:/docker/ab\n"
    assert control_group_limit(membership, tmp_path) == 2 * GIB
    assert control_group_limit("12:cpuset:/docker/ab\n", tmp_path) is None


@pytest.mark.parametrize("text", ["max", "", "much", "0", "-1"])
def test_no_limit(tmp_path, text):
    write(tmp_path / "memory.max", text)
    assert control_group_limit("0::/\n", tmp_path) is None
    assert control_group_limit("", tmp_path) is None
    assert control_group_limit("nonsense", tmp_path) is None


@pytest.mark.skipif(not Path("/proc/self/cgroup").is_file(), reason="control groups are Linux's")
def test_everything_follows_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB))
    monkeypatch.setattr(medseg.device, "CONTROL_GROUPS", tmp_path)
    assert physical_memory() == 64 * GIB
    for folder in (tmp_path, tmp_path / "memory"):
        write(folder / "memory.max", 10 * GIB)
        write(folder / "memory.limit_in_bytes", 10 * GIB)
    assert physical_memory() == 10 * GIB
    assert machine("cpu").memory == 10 * CPU_SHARE
    assert memory_per_array(workers=5, arrays=2) == GIB * CPU_SHARE
    write(tmp_path / "memory.max", 100 * GIB)
    write(tmp_path / "memory" / "memory.limit_in_bytes", 2**63 - 4096)
    assert physical_memory() == 64 * GIB


def test_planning_for_a_gpu_needs_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine("cuda", 24) == Machine("cuda", 24)
    assert machine("cuda:1", 24) == Machine("cuda", 24)
    assert machine("mps", 16) == Machine("mps", 16)
    for ask in (lambda: machine("cuda"), lambda: choose_device("cuda")):
        with pytest.raises(
            ResourceError, match=r"not available here; found 'cuda'. .* To plan for another machine, say what it has with --memory"
        ):
            ask()


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "xpu"])
def test_unknown_devices(name):
    with pytest.raises(ResourceError, match=f"unknown device; found '{name}', expected auto, cpu, cuda, cuda:N or mps"):
        machine(name, 8)
