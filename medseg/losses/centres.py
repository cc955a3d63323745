"""Where the voxels of an object find its centre: the target of dense instance segmentation, and its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NEAR = 2  # voxels, along the axis of the largest scale
BORDER = 3.0  # further times that a voxel near another object counts

# What `custom_op` makes imports PyTorch's compiler when it is first called.
_LIBRARY = torch.library.Library("medseg", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("centre_offsets(Tensor objects, float[] scale) -> Tensor")  # type: ignore[no-untyped-call]


def centre_offsets(objects: Tensor, scale: Sequence[float]) -> Tensor:
    """The way from each voxel of an object to the object's centre, the object's size, and whether another object is near.

    The centre is the object's voxel next to its centroid, the first of equal ones, so no two objects share one, however they are entangled. On
    the tensor's device. An operator of its own, so that a training step can be measured without values.

    Args:
        objects: `(N, *spatial)` integers, one value per object of a window, 0 where there is none.
        scale: `(d,)` voxels along each axis that are equally far, for what is the nearest and for what is near.

    Returns:
        `(N, d + 2, *spatial)` float32: offsets in voxels along each axis, then the object's voxels, then 1 where a voxel
        of another object is at most `NEAR` voxels away along every axis, in thick slices fewer, but at least 1; 0 outside.
    """
    found: Tensor = torch.ops.medseg.centre_offsets.default(objects, list(scale))
    return found


def _centre_offsets(objects: Tensor, scale: Sequence[float]) -> Tensor:
    shape, axes = objects.shape[1:], objects.ndim - 1
    found = torch.zeros((len(objects), axes + 2, *shape), dtype=torch.float32, device=objects.device)
    # Sums of coordinates are exact in it, so they do not depend on the order of threads; Apple's GPUs have no longer one.
    real = torch.float32 if objects.device.type == "mps" else torch.float64
    flat, voxels = objects.flatten(), shape.numel()
    inside = flat.nonzero()[:, 0]
    if not len(inside):
        return found
    window = inside.div(voxels, rounding_mode="floor")
    owner, sizes = _numbered(flat[inside].long(), window)
    place = inside - window * voxels
    lines = _coordinates(place, shape)
    distance = torch.zeros(len(inside), dtype=real, device=objects.device)
    for line, side in zip(lines, scale, strict=True):
        centroid = torch.zeros(len(sizes), dtype=real, device=objects.device).scatter_add(0, owner, line.to(real)) / sizes
        distance += ((line - centroid[owner]) / (side / min(scale))).square()
    # Rounded, so that equal ones are equal on every machine: the first in index order wins.
    distance = (distance * 1e6).round()
    least = torch.full_like(distance[: len(sizes)], torch.inf).scatter_reduce(0, owner, distance, "amin")
    nearest = (distance == least[owner]).nonzero()[:, 0]
    centre = torch.full_like(least, voxels).scatter_reduce(0, owner[nearest], place[nearest].to(real), "amin").long()
    target = found.view(-1)
    start = inside + window * (voxels * (axes + 1))  # of the voxel's first channel
    for axis, (line, middle) in enumerate(zip(lines, _coordinates(centre, shape), strict=True)):
        target[start + axis * voxels] = (middle[owner] - line).float()
    target[start + axes * voxels] = sizes[owner].float()
    numbers = torch.full((2, len(flat)), -len(sizes), dtype=torch.int32, device=objects.device)
    numbers[0, inside], numbers[1, inside] = owner.int(), -owner.int()
    most, least = _highest(numbers.view(2, *objects.shape), scale).view(2, -1)[:, inside]
    target[start + (axes + 1) * voxels] = (most != -least).float()
    return found


def _shaped(objects: Tensor, scale: Sequence[float]) -> Tensor:
    return torch.empty((len(objects), objects.ndim + 1, *objects.shape[1:]), dtype=torch.float32, device=objects.device)


_LIBRARY.impl("centre_offsets", _centre_offsets, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("centre_offsets", _shaped, "Meta")  # type: ignore[no-untyped-call]


def _numbered(values: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Of voxels `(n,)` the number of the object from 0 on, one for each value of a window, and the voxels of each object."""
    # Neighbours are of one object most often, so runs of them are fewer to sort.
    runs, run = torch.unique_consecutive(window * (values.max() + 1) + values, return_inverse=True)
    keys, key = torch.unique(runs, return_inverse=True)
    owner = key[run]
    return owner, torch.bincount(owner, minlength=len(keys))


def _coordinates(place: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """Along each axis, of voxels by their index in a window."""
    lines: list[Tensor] = []
    for side in reversed(shape):
        rest = place.div(side, rounding_mode="floor")
        lines.insert(0, place - rest * side)
        place = rest
    return lines


def _highest(values: Tensor, scale: Sequence[float]) -> Tensor:
    """Of `values` `(2, N, *spatial)`, the highest of all that are near."""
    for axis, side in enumerate(scale, 2):
        reach = max(1, round(NEAR * side / max(scale)))
        found, length = values.clone(), values.shape[axis]
        for step in range(1, min(reach, length - 1) + 1):
            for low, high in ((0, step), (step, 0)):
                part = found.narrow(axis, low, length - step)
                torch.maximum(part, values.narrow(axis, high, length - step), out=part)
        values = found
    return values


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
