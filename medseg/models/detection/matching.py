"""Which anchors and regions should find which true object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.geometry import Shape
from medseg.models.detection.anchors import Level
from medseg.models.detection.boxes import iou, sides
from medseg.models.detection.truth import IGNORED, Truth, at_centres

NEAR = 3  # cells per axis about an object's centre: 9 in two dimensions, as many as ATSS takes
NEARER = 0.01  # of overlap is worth a side of an anchor: of those that hold an object within them the nearest is the best
ROUNDS = 2  # in which objects whose best anchor is another one's get the best that is free
ALIKE = 0.5  # an anchor that overlaps an object by so much, but is not chosen for it, is no background either


def match_anchors(truth: Truth, levels: Sequence[Level]) -> Tensor:
    """`(N, A)` int64: place of the true object of each anchor plus 1; 0: background; `IGNORED`: counts nowhere.

    By ATSS (Zhang et al. 2020, arXiv:1912.02424): of the anchors nearest to its centre on every level an object takes those that overlap it by more than
    the mean plus the standard deviation of all of them, and lie about its voxels. Fixed thresholds would leave small objects without any
    anchor; this one follows from each object, so it is the same in two and three dimensions, and needs one anchor per cell. Beyond the paper,
    the best anchor of an object is its own, however small the object is; of several objects with one best anchor the one that overlaps it most has it,
    and the others get the best of theirs that is free, as far as `ROUNDS` go. Where objects are denser than anchors some have none. The nearest anchors
    lie on a grid, so they are known without a table of all anchors by all objects.
    """
    window, boxes = truth.window, truth.boxes
    index, anchors = _nearest(levels, window, boxes)
    overlap = iou(boxes[:, :, None], anchors)[..., 0, :]  # (N, M, candidates)
    lower, upper = boxes[:, :, None].chunk(2, -1)
    centre = (anchors[..., : lower.shape[-1]] + anchors[..., lower.shape[-1] :]) / 2
    inside = ((centre > lower) & (centre < upper)).all(-1)
    limit = overlap.mean(-1, keepdim=True) + overlap.std(-1, correction=0, keepdim=True)
    worth = overlap - NEARER * ((centre - (lower + upper) / 2) / sides(anchors)).square().sum(-1)
    best = _first(worth)
    there = truth.there[..., None]
    chosen = there & (best | (inside & (overlap >= limit)))
    rank = torch.where(chosen, 1 + overlap + best, 0.0).flatten(1)
    place = torch.arange(1, boxes.shape[1] + 1, device=boxes.device, dtype=torch.float32)[:, None].expand(overlap.shape[1:]).flatten()
    flat = index.flatten(1)
    count = sum(_count(level, window) for level in levels)
    empty = torch.zeros(len(boxes), count, device=boxes.device)
    match = _won(empty, flat, rank, place)
    for _ in range(ROUNDS):
        without = truth.there & ~_matched(match, boxes.shape[1])
        free = match.gather(1, flat).view(overlap.shape) == 0
        worth = torch.where(without[..., None] & free, worth, -torch.inf)
        chosen = _first(worth) & (worth > -torch.inf)
        match = match + _won(empty, flat, torch.where(chosen, 1 + overlap, 0.0).flatten(1), place)
    alike = empty.scatter_reduce(1, flat, (there & (overlap >= ALIKE)).float().flatten(1), "amax") > 0
    unknown = torch.cat([_spread(at_centres(truth.map, level.cells(window)) == IGNORED, len(level.sizes)) for level in levels], 1)
    return torch.where((match == 0) & (alike | unknown), IGNORED, match)


def match_regions(boxes: Tensor, valid: Tensor, truth: Truth, threshold: float) -> Tensor:
    """`(N, R)` int64, as `match_anchors`: the object that each region `(N, R, 2 d)` overlaps most, if by `threshold` at least.

    Regions that are not valid, and those without an object whose centre is not annotated, count nowhere.
    """
    best, place = (iou(boxes, truth.boxes) * truth.there[:, None]).max(-1)
    match = torch.where(best >= threshold, place + 1, 0)
    unknown = truth.at(boxes, 1)[..., 0] == IGNORED
    return torch.where(valid & ~((match == 0) & unknown), match, IGNORED)


def _won(empty: Tensor, flat: Tensor, rank: Tensor, place: Tensor) -> Tensor:
    """`(N, A)` place of the object that wants each anchor most, 0 where none does.

    Args:
        empty: `(N, A)` zeros.
        flat: `(N, n)` anchors.
        rank: `(N, n)` how much each is wanted, 0: not at all.
        place: `(n,)` of the object that wants it.
    """
    highest = empty.scatter_reduce(1, flat, rank, "amax")
    wins = (rank > 0) & (rank >= highest.gather(1, flat))
    return empty.scatter_reduce(1, flat, torch.where(wins, place, 0.0), "amax").long()


def _matched(match: Tensor, objects: int) -> Tensor:
    """Which objects `(N, M)` have an anchor."""
    return torch.zeros(len(match), objects + 1, device=match.device).scatter(1, match, 1.0)[:, 1:] > 0


def _nearest(levels: Sequence[Level], window: Shape, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Indices `(N, M, candidates)` and boxes `(N, M, candidates, 2 d)` of the anchors nearest to the centre of each box."""
    lower, upper = boxes.chunk(2, -1)
    middle = (lower + upper) / 2
    indices, found, start = [], [], 0
    for level in levels:
        cells, count = level.cells(window), len(level.sizes)
        flat = torch.zeros_like(middle[..., :1], dtype=torch.int64)
        lines = []
        for axis, (n, stride) in enumerate(zip(cells, level.stride, strict=True)):
            wide = min(NEAR, n)
            first = (middle[..., axis] / stride - wide / 2).round().long().clamp(0, n - wide)
            line = first[..., None] + torch.arange(wide, device=boxes.device)
            flat = (flat[..., :, None] * n + line[..., None, :]).flatten(-2)
            lines.append((line + 0.5) * stride)
        centres = _grid(lines)[..., :, None, :]
        half = boxes.new_tensor(level.sizes) / 2
        found.append(torch.cat([centres - half, centres + half], -1).flatten(-3, -2))
        indices.append((start + flat[..., None] * count + torch.arange(count, device=boxes.device)).flatten(-2))
        start += _count(level, window)
    return torch.cat(indices, -1), torch.cat(found, -2)


def _grid(lines: Sequence[Tensor]) -> Tensor:
    """Points `(..., n1 * n2 * ..., d)` of a grid, in C order, from its lines `(..., n)` along each axis."""
    points = lines[0][..., None]
    for line in lines[1:]:
        shape = (*points.shape[:-1], line.shape[-1])
        points = torch.cat([points[..., :, None, :].expand(*shape, -1), line[..., None, :, None].expand(*shape, 1)], -1).flatten(-3, -2)
    return points


def _first(values: Tensor) -> Tensor:
    """Which one of `(..., n)` is the largest."""
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, values.argmax(-1, keepdim=True), True)


def _spread(flags: Tensor, count: int) -> Tensor:
    """Flags `(N, *cells)` of the cells as those of their anchors `(N, cells * count)`."""
    return flags.flatten(1)[..., None].expand(-1, -1, count).flatten(1)


def _count(level: Level, window: Shape) -> int:
    total = len(level.sizes)
    for n in level.cells(window):
        total *= n
    return total
