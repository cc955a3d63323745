"""Batched spatial transforms: one interpolation for rotation, scaling, mirroring, shift and elastic deformation together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medseg.geometry import Shape

MOST_MAPS = 8  # label values interpolated at once: bounds memory for label maps with many values
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def rotation_matrices(angles: Tensor, ndim: int) -> Tensor:
    """Rotations `(N, d, d)` for angles in radians: `(N, 1)` in 2D, `(N, 3)` about the array axes in 3D."""
    c, s = torch.cos(angles), torch.sin(angles)
    matrix = torch.eye(ndim, device=angles.device).repeat(len(angles), 1, 1)
    for turn, (a, b) in enumerate([(0, 1)] if ndim == 2 else [(1, 2), (0, 2), (0, 1)]):
        part = torch.eye(ndim, device=angles.device).repeat(len(angles), 1, 1)
        part[:, a, a] = part[:, b, b] = c[:, turn]
        part[:, a, b], part[:, b, a] = -s[:, turn], s[:, turn]
        matrix = matrix @ part
    return matrix


def sampling_grid(source: Shape, window: Shape, matrix: Tensor, shift: Tensor, displacement: Tensor | None = None) -> Tensor:
    """Where each sample of the window lies in the source, as `grid_sample` wants it: `(N, *window, d)`, last axis reversed.

    Args:
        matrix: `(N, d, d)`, from offsets of window samples from the window's centre to offsets from the source's centre, in samples.
        shift: `(N, d)` in samples.
        displacement: `(N, d, *window)` in samples, added at the end.
    """
    lines = [torch.arange(n, dtype=torch.float32, device=matrix.device) - (n - 1) / 2 for n in window]
    points = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(1, -1, len(window))
    moved = points @ matrix.mT + shift[:, None]
    if displacement is not None:
        moved = moved + displacement.flatten(2).mT
    size = torch.tensor(source, dtype=torch.float32, device=matrix.device)
    return (moved * (2 / size)).flip(-1).reshape(len(matrix), *window, len(window))


def smooth_field(noise: Tensor, window: Shape) -> Tensor:
    """Control points `(N, d, *cells)` to a smooth field `(N, d, *window)`."""
    return functional.interpolate(noise, size=window, mode=MODES[len(window)], align_corners=True)


def warp(
    image: Tensor, maps: tuple[Tensor | None, ...], values: tuple[tuple[int, ...], ...], grid: Tensor
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Image `(N, C, *source)` and label maps `(N, *source)` on a sampling grid; outside the source all are 0.

    The image is interpolated linearly. Every label value is a 0/1 map interpolated linearly, and the largest wins, which keeps borders
    smooth where the nearest neighbour frays them; the values of the first map share the image's interpolation.

    Args:
        values: of each map every value that it may hold; none where these are not known, and the nearest neighbour is taken.
    """
    result: Tensor | None = None
    moved: list[Tensor | None] = []
    for label, known in zip(maps, values, strict=True):
        if label is None or not known:
            moved.append(None if label is None else _nearest(label, grid))
            continue
        sampled, found = _warp(image if result is None else image[:, :0], label, known, grid)
        result = sampled if result is None else result
        moved.append(found)
    return _sample(image, grid) if result is None else result, tuple(moved)


def _warp(image: Tensor, label: Tensor, values: tuple[int, ...], grid: Tensor) -> tuple[Tensor, Tensor]:
    """Image and one label map."""
    channels = image.shape[1]
    others = [v for v in values if v != 0]
    result = torch.zeros((len(label), *grid.shape[1:-1]), dtype=label.dtype, device=label.device)
    best = torch.zeros(result.shape, dtype=torch.float32, device=label.device)
    background = torch.ones_like(best)
    for first in range(0, max(1, len(others)), MOST_MAPS):
        part = others[first : first + MOST_MAPS]
        maps = torch.stack([label == v for v in part], 1).to(torch.float32) if part else image[:, :0]
        sampled = _sample(torch.cat([image, maps], 1) if first == 0 else maps, grid)
        if first == 0:
            image, sampled = sampled[:, :channels], sampled[:, channels:]
        # Comparisons one by one: an argmax over the channel axis takes ten times as long on a CPU.
        for value, weight in zip(part, sampled.unbind(1), strict=True):
            result = torch.where(weight > best, value, result)
            best = torch.maximum(best, weight)
            background = background - weight
    return image, torch.where(best > background, result, 0)


def _nearest(label: Tensor, grid: Tensor) -> Tensor:
    """A map of integers below 2^31; float32 holds those below 2^24, so their halves are moved apart."""
    halves = torch.stack([label >> 16, label & 0xFFFF], 1).to(torch.float32)
    high, low = _sample(halves, grid, "nearest").round().to(label.dtype).unbind(1)
    return high << 16 | low


def _sample(values: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    if values.device.type == "mps" and values.ndim == 5:
        # The oldest torch that medseg runs with has no 3D interpolation on MPS.
        return _sample(values.cpu(), grid.cpu(), mode).to(values.device)
    return functional.grid_sample(values, grid, mode=mode, padding_mode="zeros", align_corners=False)
