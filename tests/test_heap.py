"""Freed memory that stays with the process."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from medseg.heap import given_back, kept

SIZE = 2**26  # bytes; beyond what glibc ever keeps by itself


def faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def touched() -> int:
    """Pages that are new to the process when an array is made and written."""
    before = faults()
    np.empty(SIZE, np.uint8).fill(1)
    return faults() - before


@pytest.mark.skipif(sys.platform != "linux", reason="a switch of glibc")
def test_freed_memory_is_taken_again_until_it_is_given_back() -> None:
    from medseg.heap import _glibc

    if _glibc() is None:
        pytest.skip("a switch of glibc")
    touched()
    with kept():
        touched()
        again = touched()
    given_back()
    with kept():
        later = touched()
    given_back()
    assert again < 10
    assert later > 10  # huge pages count as one


def test_errors_within_pass() -> None:
    with pytest.raises(ValueError, match="within"), kept():
        raise ValueError("within")
    given_back()
