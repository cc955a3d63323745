"""Work over cases: order, failures, bugs, and worker processes that die."""

from __future__ import annotations

import os

import pytest

from medseg.errors import DatasetError, ResourceError
from medseg.parallel import map_cases


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
