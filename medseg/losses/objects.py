"""The objects of windows as tables: what detectors learn from."""

from __future__ import annotations

import torch
from torch import Tensor

# What `custom_op` makes imports PyTorch's compiler when it is first called.
_LIBRARY = torch.library.Library("medseg_objects", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("object_table(Tensor objects, int places) -> Tensor")  # type: ignore[no-untyped-call]


def object_table(objects: Tensor, places: int) -> Tensor:
    """Value and box of each object of windows, the largest ones first.

    On the tensor's device. An operator of its own, so that a training step can be measured without values.

    Args:
        objects: `(N, *spatial)` integers, one value per object of a window, 0 where there is none.
        places: rows of a table; smaller objects beyond them are left out.

    Returns:
        `(N, places, 1 + 2 d)` int64: value, first voxel along each axis, voxel after the last; zeros in rows without an object.
    """
    found: Tensor = torch.ops.medseg_objects.object_table.default(objects, places)
    return found


def _object_table(objects: Tensor, places: int) -> Tensor:
    shape, axes = objects.shape[1:], objects.ndim - 1
    table = objects.new_zeros((len(objects), places, 1 + 2 * axes), dtype=torch.int64)
    flat = objects.flatten(1)
    window, place = flat.nonzero().unbind(1)
    if not len(place):
        return table
    value = flat[window, place].long()
    span = value.max() + 1  # so that one number tells both window and value
    keys, owner, sizes = torch.unique(window * span + value, return_inverse=True, return_counts=True)
    window = keys.div(span, rounding_mode="floor")
    first, last = [], []
    edge = torch.zeros(len(keys), device=keys.device)  # of float32, which tells all sides of windows exactly: not all GPUs compare int64
    for axis, side in enumerate(shape):
        line = place.div(shape[axis + 1 :].numel(), rounding_mode="floor") % side
        first.append((edge + side).scatter_reduce(0, owner, line.float(), "amin").long())
        last.append(edge.scatter_reduce(0, owner, line.float(), "amax").long() + 1)
    order = (window * (sizes.max() + 1) - sizes).argsort(stable=True)  # by window, then the largest first
    sorted_by = window[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(sorted_by, sorted_by)
    kept = rank < places
    table[sorted_by[kept], rank[kept]] = torch.stack([keys - window * span, *first, *last], 1)[order][kept]
    return table


def _shaped(objects: Tensor, places: int) -> Tensor:
    return torch.empty((len(objects), places, 1 + 2 * (objects.ndim - 1)), dtype=torch.int64, device=objects.device)


_LIBRARY.impl("object_table", _object_table, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("object_table", _shaped, "Meta")  # type: ignore[no-untyped-call]
