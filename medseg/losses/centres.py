"""Where the voxels of an object find its centre: the target of dense instance segmentation, and its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEAR = 2  # voxels
BORDER = 3.0  # further times that a voxel near another object counts

# What `custom_op` makes imports PyTorch's compiler when it is first called.
_LIBRARY = torch.library.Library("medseg", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("centre_offsets(Tensor objects, float[] scale) -> Tensor")  # type: ignore[no-untyped-call]


def centre_offsets(objects: Tensor, scale: Sequence[float]) -> Tensor:
    """The way from each voxel of an object to the object's centre, the object's size, and whether another object is near.

    The centre is the object's voxel next to its centroid, so no two objects share one, however they are entangled. Runs on the CPU, wherever
    the tensor lies; an operator of its own, so that a training step can be measured without values.

    Args:
        objects: `(N, *spatial)` integers, one value per object of a window, 0 where there is none.
        scale: `(d,)` voxels along each axis that are equally far.

    Returns:
        `(N, d + 2, *spatial)` float32: offsets in voxels along each axis, then the object's voxels, then 1 where a voxel
        of another object is at most `NEAR` voxels away along every axis; 0 outside.
    """
    found: Tensor = torch.ops.medseg.centre_offsets.default(objects, list(scale))
    return found


def _centre_offsets(objects: Tensor, scale: Sequence[float]) -> Tensor:
    values = objects.to("cpu").numpy()
    result = np.zeros((len(values), values.ndim + 1, *values.shape[1:]), np.float32)
    for window, found in zip(values, result, strict=True):
        fill_offsets(window, found, scale)
    return torch.from_numpy(result).to(objects.device)


def _shaped(objects: Tensor, scale: Sequence[float]) -> Tensor:
    return torch.empty((len(objects), objects.ndim + 1, *objects.shape[1:]), dtype=torch.float32, device=objects.device)


_LIBRARY.impl("centre_offsets", _centre_offsets, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("centre_offsets", _shaped, "Meta")  # type: ignore[no-untyped-call]


def fill_offsets(window: NDArray[np.integer], out: NDArray[np.float32], scale: Sequence[float]) -> None:
    """What `centre_offsets` says of one window `(*spatial)`, into `out` `(d + 2, *spatial)` of zeros."""
    inside = np.flatnonzero(window)
    if not inside.size:
        return
    _, owner, sizes = np.unique(window.reshape(-1)[inside], return_inverse=True, return_counts=True)
    places = np.stack(np.unravel_index(inside, window.shape)).astype(np.float64)
    centroids = np.stack([np.bincount(owner, weights=line) / sizes for line in places])
    relative = np.array(scale)[:, None] / min(scale)
    # Rounded, so that equal ones are equal on every machine: the first in index order wins.
    distance = np.square((places - centroids[:, owner]) / relative).sum(0).round(6)
    order = np.lexsort((distance, owner))
    centres = places[:, order[np.concatenate([[0], np.cumsum(sizes)[:-1]])]]
    flat = out.reshape(len(out), -1)
    flat[:-2, inside] = centres[:, owner] - places
    flat[-2, inside] = sizes[owner]
    flat[-1, inside] = _near(inside, owner.reshape(-1), window.shape)


def _near(inside: NDArray[np.integer], owner: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Of each voxel `inside`, whether one with another `owner` is near."""
    from scipy import ndimage

    most, least = np.full(shape, -1, np.int32), np.full(shape, owner.max() + 1, np.int32)
    most.reshape(-1)[inside] = least.reshape(-1)[inside] = owner
    side = 2 * NEAR + 1
    differs = ndimage.maximum_filter(most, side) != ndimage.minimum_filter(least, side)
    return np.asarray(differs.reshape(-1)[inside])


def radius(sizes: Tensor, axes: int) -> Tensor:
    """Of the disk or ball with so many voxels."""
    return (sizes * {1: 0.5, 2: 1 / math.pi, 3: 3 / (4 * math.pi)}[axes]) ** (1 / axes)


def offset_loss(offsets: Tensor, truth: Tensor, sizes: Tensor, near: Tensor) -> Tensor:
    """Mean distance between predicted and true offsets, along each axis, in radii of the object; small objects count more than their voxels,
    and so do voxels where objects meet, because there a wrong way joins or divides them.

    Args:
        offsets, truth: `(N, d, *spatial)` in voxels; where these are longer along some axes than along others, in proportion to their lengths, which
            have the product 1.
        sizes: `(N, *spatial)` voxels of the object, 0 where there is none: there no offset counts.
        near: `(N, *spatial)` 1 where another object is near, else 0.

    Returns:
        A scalar, 0 where there is no object.
    """
    inside = (sizes > 0).float()
    whole = sizes.clamp_min(1)
    weight = inside / whole.sqrt()  # between the same for each voxel and the same for each object
    weight = weight * (1 + BORDER * near)
    error = (offsets.float() - truth).abs().mean(1) / radius(whole, truth.shape[1])
    return (error * weight).sum() / weight.sum().clamp_min(1e-6)
