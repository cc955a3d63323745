"""Work over cases: order, failures, bugs, and worker processes that die."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from medseg.domains.base import find_domain
from medseg.errors import DatasetError, ResourceError
from medseg.parallel import Aside, map_cases, shared_workers
from medseg.registry import domains
from medseg.steps import READING


def double(item: int) -> int:
    if item == 3:
        raise DatasetError.of("three is no case", where="case 3", fix="Leave it out.")
    if item == 99:
        raise RuntimeError("a bug")
    if item == 77:
        os._exit(1)
    return 2 * item


@pytest.mark.parametrize("workers", [1, 2])
def test_results_in_order_and_failures_beside_them(workers: int) -> None:
    outcomes = list(map_cases(double, [5, 3, 1, 2], workers))
    assert [o.result for o in outcomes] == [10, None, 2, 4]
    assert str(outcomes[1].failure) == "case 3: three is no case. Leave it out."


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_is_not_a_failure(workers: int) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        list(map_cases(double, [1, 99, 2], workers))


def test_a_killed_worker_is_named() -> None:
    with pytest.raises(ResourceError, match="worker process did not start or was killed"):
        list(map_cases(double, [1, 77, 2, 4], 2))


def process(_: int) -> int:
    return os.getpid()


def heavy(_: int) -> list[str]:
    for name in domains.names():
        find_domain(name)
    return sorted({"torch", "lightning", "mlflow", "monai", "nibabel", "SimpleITK", "pydicom"} & set(sys.modules))


def test_shared_workers_serve_all_work_within() -> None:
    with shared_workers(2, ("colorsys",)):
        first = {o.result for o in map_cases(process, list(range(6)), 2)}
        second = {o.result for o in map_cases(process, list(range(6)), 2)}
        (one,) = map_cases(process, [0], 2)
        assert len(first | second) <= 2
        assert one.result in first | second
        assert os.getpid() not in first | second
        with pytest.raises(RuntimeError, match="a bug"):
            list(map_cases(double, [1, 99, 2], 2))
        assert {o.result for o in map_cases(process, list(range(6)), 2)} <= first | second
    assert not {o.result for o in map_cases(process, list(range(6)), 2)} & (first | second)


def test_the_end_of_one_thread_leaves_anothers_work_alone() -> None:
    borrowed, ended = threading.Event(), threading.Event()

    def other() -> list[int | None]:
        with shared_workers(2, ()):
            borrowed.set()
            assert ended.wait(60)
            return [o.result for o in map_cases(double, [1, 2, 4], 2)]

    with shared_workers(2, ()):
        aside = Aside(other)
        assert borrowed.wait(60)
    ended.set()
    assert aside.result() == [2, 4, 8]


def test_one_worker_is_this_process() -> None:
    with shared_workers(1, ()):
        assert {o.result for o in map_cases(process, [0, 1, 2], 1)} == {os.getpid()}
    (alone,) = map_cases(process, [0], 2)
    assert alone.result == os.getpid()


def test_a_process_that_reads_cases_imports_nothing_heavy() -> None:
    with shared_workers(2, READING):
        assert [o.result for o in map_cases(heavy, list(range(4)), 2)] == [[]] * 4


def test_aside() -> None:
    begun, may = threading.Event(), threading.Event()

    def work() -> int:
        begun.set()
        may.wait(10)
        raise DatasetError.of("it went wrong", where="there")

    aside = Aside(work)
    assert begun.wait(10)
    aside.check()  # not yet
    may.set()
    with pytest.raises(DatasetError, match="it went wrong"):
        aside.result()
    with pytest.raises(DatasetError, match="it went wrong"):
        aside.check()
    assert Aside(lambda: 5).result() == 5
