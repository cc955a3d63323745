"""Who takes the cores: reckoned from what the system counts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from medseg import load
from medseg.load import Load


@pytest.fixture
def system(monkeypatch):
    """Two cores, of which this process may use the second; what it and a process that it started took; the time."""
    found = SimpleNamespace(now=5.0, cores=[{"user": 9.0, "idle": 1.0}, {"user": 1.0, "idle": 3.0}], own=[1.0, 0.5], ends=False)

    class Process:
        def __init__(self, place=0):
            self.place = place

        def cpu_affinity(self):
            return [1]

        def children(self, recursive):
            assert recursive
            return [Process(1)]

        def cpu_times(self):
            if found.ends and self.place:
                raise load.psutil.NoSuchProcess(1)
            return SimpleNamespace(user=found.own[self.place], system=0.0)

    monkeypatch.setattr(load.psutil, "Process", Process)
    monkeypatch.setattr(load.psutil, "cpu_times", lambda percpu: [SimpleNamespace(system=0.0, **core) for core in found.cores])
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def test_others_are_what_the_own_processes_have_not_taken(system):
    watched = Load()
    system.now += 10.0
    system.cores = [{"user": 19.0, "idle": 1.0}, {"user": 9.0, "idle": 5.0}]
    system.own = [4.0, 1.5]
    taken = watched.stop()
    assert taken.cores == pytest.approx(0.4)  # 4 of 10 seconds
    assert taken.others == pytest.approx(0.4)  # 8 - 4 of the 10 that passed on the core that may be used


def test_a_system_that_counts_nothing(system):
    watched = Load()
    system.now += 1.0
    assert watched.stop().others is None


def test_a_process_that_has_ended_meanwhile_takes_less_than_nothing(system):
    watched = Load()
    system.now += 1.0
    system.ends = True
    assert watched.stop().cores == 0.0


def test_what_this_process_takes_is_its_own():
    watched = Load()
    while watched.stop().cores == 0.0:  # until the system has counted something
        sum(range(10**5))
    taken = watched.stop()
    assert taken.cores > 0
    assert taken.others is None or 0 <= taken.others <= 1
