from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.losses.objects import object_table
from medseg.planning.shadows import Shadows


def test_rows_are_objects_by_size() -> None:
    window = torch.zeros(2, 5, 7, dtype=torch.int32)
    window[0, 1:3, 2:6] = 65537
    window[0, 4, 6] = 9
    window[1, :, :] = 3
    table = object_table(window, 3)
    assert table.dtype == torch.int64
    assert table[0].tolist() == [[65537, 1, 2, 3, 6], [9, 4, 6, 5, 7], [0] * 5]
    assert table[1].tolist() == [[3, 0, 0, 5, 7], [0] * 5, [0] * 5]
    assert object_table(window, 1)[0].tolist() == [[65537, 1, 2, 3, 6]]  # the largest ones have places


def test_an_object_in_pieces_is_one() -> None:
    window = torch.zeros(1, 4, 4, 4, dtype=torch.int32)
    window[0, 0, 0, 0] = window[0, 3, 2, 1] = 5
    assert object_table(window, 1)[0, 0].tolist() == [5, 0, 0, 0, 4, 3, 2]


def test_empty_windows_and_five_hundred_objects() -> None:
    assert not object_table(torch.zeros(2, 6, 6, dtype=torch.int32), 4).any()
    numbers = np.arange(1, 501, dtype=np.int32).reshape(20, 25).repeat(2, 0).repeat(2, 1)
    table = object_table(torch.from_numpy(numbers)[None], 512)[0].numpy()
    assert sorted(table[:500, 0]) == list(range(1, 501))
    assert (table[:500, 3:] - table[:500, 1:3] == 2).all()
    assert not table[500:].any()


def test_shapes_do_not_need_values() -> None:
    with Shadows():
        shown = object_table(torch.zeros(3, 8, 8, 8, dtype=torch.int32), 11)
        assert (shown.shape, shown.dtype) == ((3, 11, 7), torch.int64)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_any_integers(dtype: torch.dtype) -> None:
    assert object_table(torch.ones(1, 2, 2, dtype=dtype), 1).tolist() == [[[1, 0, 0, 2, 2]]]


def test_each_window_has_its_own_table_and_equals_keep_the_order_of_their_values() -> None:
    windows = torch.zeros(3, 6, 6, dtype=torch.int32)
    windows[1, 0, :2], windows[1, 2, 1:3], windows[1, 5, 5] = 9, 7, 8
    windows[2, 3, 3:6] = 7
    table = object_table(windows, 4)
    assert not table[0].any()
    assert table[1, :, 0].tolist() == [7, 9, 8, 0]
    assert table[2].tolist() == [[7, 3, 3, 4, 6], *[[0] * 5] * 3]
