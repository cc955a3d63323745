"""Large arrays go to files, and hold the same values."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import ResourceError
from medseg.scratch import IN_MEMORY, Scratch, copy, release, row_slabs


def test_small_in_memory_large_on_disk():
    scratch = Scratch(100)
    assert not isinstance(scratch.zeros((25,), np.float32), np.memmap)
    large = scratch.zeros((26,), np.float32)
    assert isinstance(large, np.memmap)
    assert not large.any()
    assert not isinstance(IN_MEMORY.zeros((1000, 1000), np.uint8), np.memmap)


def test_released_pages_keep_their_content():
    array = Scratch(0).zeros((3, 5, 7), np.int16)
    values = np.arange(105, dtype=np.int16).reshape(3, 5, 7)
    copy(values, array)
    release(array[1:].transpose(2, 0, 1))
    assert np.array_equal(array, values)
    kept = Scratch(0).keep(values)
    assert isinstance(kept, np.memmap)
    assert np.array_equal(kept, values)
    assert IN_MEMORY.keep(values) is values


def test_a_full_disk_is_an_error(monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medseg.scratch.tempfile.TemporaryFile", full)
    with pytest.raises(ResourceError, match=r"no room for a temporary file; found No space left on device, expected 0\.0 GiB"):
        Scratch(0).zeros((10,), np.float32)


def test_slabs_cover_all_rows_once():
    slabs = list(row_slabs((1000, 64, 128)))
    assert [row for part in slabs for row in range(1000)[part]] == list(range(1000))
    assert max(part.stop - part.start for part in slabs) * 64 * 128 <= 2**22
