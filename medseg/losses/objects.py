"""The objects of windows as tables: what detectors learn from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# What `custom_op` makes imports PyTorch's compiler when it is first called.
_LIBRARY = torch.library.Library("medseg_objects", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("object_table(Tensor objects, int places) -> Tensor")  # type: ignore[no-untyped-call]


def object_table(objects: Tensor, places: int) -> Tensor:
    """Value and box of each object of windows, the largest ones first.

    Runs on the CPU, wherever the tensor lies; an operator of its own, so that a training step can be measured without values.

    Args:
        objects: `(N, *spatial)` integers, one value per object of a window, 0 where there is none.
        places: rows of a table; smaller objects beyond them are left out.

    Returns:
        `(N, places, 1 + 2 d)` int64: value, first voxel along each axis, voxel after the last; zeros in rows without an object.
    """
    found: Tensor = torch.ops.medseg_objects.object_table.default(objects, places)
    return found


def _object_table(objects: Tensor, places: int) -> Tensor:
    values = objects.to("cpu").numpy()
    table = np.zeros((len(values), places, 1 + 2 * (values.ndim - 1)), np.int64)
    for window, rows in zip(values, table, strict=True):
        _fill(window, rows)
    return torch.from_numpy(table).to(objects.device)


def _shaped(objects: Tensor, places: int) -> Tensor:
    return torch.empty((len(objects), places, 1 + 2 * (objects.ndim - 1)), dtype=torch.int64, device=objects.device)


_LIBRARY.impl("object_table", _object_table, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("object_table", _shaped, "Meta")  # type: ignore[no-untyped-call]


def _fill(window: NDArray[np.integer], rows: NDArray[np.int64]) -> None:
    inside = np.flatnonzero(window)
    if not inside.size:
        return
    ids, owner, sizes = np.unique(window.reshape(-1)[inside], return_inverse=True, return_counts=True)
    first = np.full((len(ids), window.ndim), np.iinfo(np.int64).max)
    last = np.zeros((len(ids), window.ndim), np.int64)
    for axis, line in enumerate(np.unravel_index(inside, window.shape)):
        np.minimum.at(first[:, axis], owner, line)
        np.maximum.at(last[:, axis], owner, line + 1)
    kept = np.argsort(-sizes, kind="stable")[: len(rows)]
    rows[: len(kept)] = np.concatenate([ids[:, None], first, last], 1)[kept]
