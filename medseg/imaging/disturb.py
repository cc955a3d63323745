"""Damages label maps as an imperfect predictor would: borders too wide or too narrow, gaps closed, parts missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

CHANGES = ("grow", "shrink", "open", "close")
STEPS = {"grow": "+", "shrink": "-", "open": "-+", "close": "+-"}
MOST = 8  # values of one map that change in shape: with a hundred classes more would cost more than the network
Box = tuple[slice, ...]


def change_shape(label: Tensor, value: int, box: Box, how: str, radius: int, in_plane: bool) -> None:
    """Grow, shrink, open or close one value of a map `(*window)`, in place; voxels that it loses become 0.

    Args:
        box: holds all voxels of the value (see `boxes`); only it and `2 * radius` around it are looked at.
        radius: of the cube (the square of the last two axes if `in_plane`), in samples.
    """
    size = tuple(0 if in_plane and axis < label.ndim - 2 else radius for axis in range(label.ndim))
    near = label[tuple(slice(max(0, part.start - 2 * s), part.stop + 2 * s) for part, s in zip(box, size, strict=True))]
    before = now = near == value
    for step in STEPS[how]:
        now = _grown(now, size) if step == "+" else ~_grown(~now, size)
    near.masked_fill_(before & ~now, 0).masked_fill_(now, value)


def boxes(label: Tensor, values: Sequence[int]) -> list[Box | None]:
    """The smallest box around each of these values in a map `(*window)`, None where there is none. Waits for a GPU once."""
    if not values:
        return []
    others = [tuple(a for a in range(label.ndim) if a != axis) for axis in range(label.ndim)]
    lines = torch.stack([torch.cat([mask.any(rest) for rest in others]) for mask in (label == value for value in values)]).cpu()
    found: list[Box | None] = []
    for line in lines:
        places = [torch.nonzero(part)[:, 0].tolist() for part in line.split(list(label.shape))]
        found.append(tuple(slice(p[0], p[-1] + 1) for p in places) if places[0] else None)
    return found


def empty_box(label: Tensor, centre: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Set a box of a map `(*window)` to 0, in place; parts outside the map are left out."""
    label[tuple(slice(max(0, c - s // 2), max(0, c - s // 2 + s)) for c, s in zip(centre, size, strict=True))] = 0


def disturb(
    label: Tensor,
    values: tuple[int, ...],
    change: float,
    change_size: int,
    lose: float,
    lose_size: float,
    in_plane: bool,
    generator: Generator,
) -> Tensor:
    """Each value of each map changed in shape with probability `change`, and a box around one of its voxels emptied with `lose`.

    As nnU-Net treats the previous stage of a cascade, with boxes in place of connected components. Where more than `MOST` values of a map
    would change, `MOST` of them do, drawn at random.

    Args:
        label: `(N, *window)` integer values, 0 being background.
        values: every value that it may hold.
        change_size: largest radius in samples.
        lose_size: largest side of a box as a fraction of the window.
        generator: on the CPU; the same state gives the same damage on every device.
    """
    label = label.clone()
    candidates = sorted(set(values) - {0})
    for one in label:
        draws = torch.rand(len(candidates), 4, generator=generator).tolist()
        chosen = [(order, value, how, size) for value, (p, size, how, order) in zip(candidates, draws, strict=True) if p < change]
        if len(chosen) > MOST:
            held = _held(one, candidates)
            chosen = [entry for entry in sorted(chosen) if entry[1] in held][:MOST]
        for (_, value, how, size), box in zip(chosen, boxes(one, [value for _, value, *_ in chosen]), strict=True):
            if box is not None:
                change_shape(one, value, box, CHANGES[int(how * len(CHANGES))], 1 + int(size * change_size), in_plane)
        _lose(one, lose, lose_size, torch.rand(2 + one.ndim, generator=generator).tolist())
    return label


def _lose(label: Tensor, lose: float, lose_size: float, draws: list[float]) -> None:
    """Empty a box around a random voxel of the foreground of a map `(*window)`, in place, or do nothing."""
    if draws[0] >= lose:
        return
    counts = (label != 0).sum(tuple(range(1, label.ndim))).tolist()
    rank = int(draws[1] * sum(counts))
    for row, count in enumerate(counts):
        if rank < count:
            centre = (row, *torch.nonzero(label[row])[rank].tolist())
            empty_box(label, centre, tuple(max(1, round(d * lose_size * n)) for d, n in zip(draws[2:], label.shape, strict=True)))
            return
        rank -= count


def _held(label: Tensor, values: list[int]) -> set[int]:
    """Which of these values a map holds."""
    lowest, highest = min(0, *values), max(0, *values)
    there = torch.zeros(highest - lowest + 1, dtype=torch.bool, device=label.device)
    there[label.flatten().long() - lowest] = True
    return {lowest + index for index, held in enumerate(there.tolist()) if held}


def _grown(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Whether there is a true element within a box of half-width `size`: axis by axis, because boxes are separable."""
    for axis, radius in enumerate(size):
        length, grown = mask.shape[axis], mask.clone()
        for step in range(1, min(radius, length - 1) + 1):
            grown.narrow(axis, step, length - step).bitwise_or_(mask.narrow(axis, 0, length - step))
            grown.narrow(axis, 0, length - step).bitwise_or_(mask.narrow(axis, step, length - step))
        mask = grown
    return mask
