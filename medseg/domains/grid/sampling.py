"""Training windows out of prepared cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.case import PreparedCase, Window
from medseg.dataset import Labels
from medseg.domains.grid.settings import Augmentation
from medseg.geometry import Shape
from medseg.imaging.components import label_components
from medseg.imaging.crop import union, value_boxes
from medseg.imaging.windows import cut

INT16 = np.dtype(np.int16)
PER_CLASS = 4096  # locations kept per class and case: enough that no two windows of an epoch share one by necessity


def window_locations(label: NDArray[Any], labels: Labels) -> tuple[NDArray[np.int32], ...]:
    """See `Domain.locations`: up to `PER_CLASS` voxel indices `(n, d)` per entry, drawn by fixed seeds, in index order.

    Half of a class's locations are drawn evenly over its voxels, half evenly over its connected components (of things: its objects), each
    of which has the same share, one location at least while there are fewer than `PER_CLASS`; so large components do not hide small ones.
    Small components give the same voxel several times.
    """
    codes, label = label, labels.semantic(label)
    boxes = value_boxes(label, labels.values)
    found = []
    for index, item in enumerate(labels.classes):
        box = union([boxes[value] for value in item.values if value in boxes], label.ndim)
        mask = np.isin(label[box], item.values)
        parts = _objects(codes[box], mask) if item.name in labels.things else label_components(mask)
        within = _of_class(mask, *parts, np.random.default_rng(index))
        found.append(within + np.array([part.start for part in box], dtype=np.int32))
    if labels.ignore is not None:
        found.append(_drawn(label != labels.ignore, PER_CLASS, np.random.default_rng(len(found))))
    return tuple(found)


def _objects(codes: NDArray[Any], mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """As `label_components`, of the things that codes tell apart."""
    ids, places = np.unique(codes[mask], return_inverse=True)
    labelled = np.zeros(codes.shape, np.int32)
    labelled[mask] = places.reshape(-1) + 1
    return labelled, len(ids)


def _of_class(mask: NDArray[np.bool_], labelled: NDArray[np.int32], count: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Half evenly over voxels, half evenly over components; voxels where there is one component only."""
    if count < 2:
        return _drawn(mask, PER_CLASS, rng)
    half = min(int(np.count_nonzero(mask)), PER_CLASS // 2)
    alike = _of_components(labelled, count, max(1, half // count), rng)
    places = np.concatenate([alike, _drawn(mask, min(half, PER_CLASS - len(alike)), rng)])
    return places[np.lexsort(places.T[::-1])]


def _of_components(labelled: NDArray[np.int32], count: int, share: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """`share` voxels of every component, spread evenly over it from a random one on; of `PER_CLASS` random components where there are more."""
    sizes, seen = np.zeros(count + 1, dtype=np.int64), np.zeros(count + 1, dtype=np.int64)
    for row in labelled:  # one by one: a list of all voxels of a large class would take several times its memory
        sizes += np.bincount(row.reshape(-1), minlength=count + 1)
    chosen = (np.sort(rng.choice(count, PER_CLASS, replace=False)) if count > PER_CLASS else np.arange(count)) + 1
    steps = (np.arange(share) + rng.random((chosen.size, 1))) / share
    ranks = np.minimum((steps * sizes[chosen, None]).astype(np.int64), sizes[chosen, None] - 1).reshape(-1)
    owners = np.repeat(chosen, share)
    flat = []
    for index, row in enumerate(labelled):
        inside = np.flatnonzero(row)
        numbers = row.reshape(-1)[inside]
        here = np.bincount(numbers, minlength=count + 1)
        wanted = np.flatnonzero((ranks >= seen[owners]) & (ranks < seen[owners] + here[owners]))
        if wanted.size:
            starts = np.cumsum(here) - here - seen
            order = np.argsort(numbers, kind="stable")
            flat.append(inside[order[starts[owners[wanted]] + ranks[wanted]]] + index * row.size)
        seen += here
    return _indices(np.concatenate(flat), labelled.shape)


def _drawn(mask: NDArray[np.bool_], most: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Up to `most` true elements, evenly, in index order."""
    counts = np.count_nonzero(mask, axis=tuple(range(1, mask.ndim)))
    total = int(counts.sum())
    ranks = np.sort(rng.choice(total, most, replace=False)) if total > most else np.arange(total)
    ends = np.cumsum(counts)
    flat, row_size = [np.zeros(0, dtype=np.int64)], math.prod(mask.shape[1:])
    for row in np.unique(np.searchsorted(ends, ranks, side="right")):
        wanted = ranks[(ranks >= ends[row] - counts[row]) & (ranks < ends[row])] - (ends[row] - counts[row])
        flat.append(np.flatnonzero(mask[row])[wanted] + row * row_size)
    return _indices(np.concatenate(flat), mask.shape)


def _indices(flat: NDArray[np.int64], shape: Shape) -> NDArray[np.int32]:
    return np.stack(np.unravel_index(flat, shape) if flat.size else [flat] * len(shape), axis=1).astype(np.int32)


def source_window(window: Shape, how: Augmentation) -> Shape:
    """The window plus the margin that rotations and zooms look into, so that moved windows show data and not padding.

    The margin is a quarter of the window at most: farther corners are rare, and reading is not free.
    """
    if how.spatial == 0:
        return window
    angle = min(math.radians(how.rotation), math.pi / 4)
    zoom = math.exp(how.scale + how.stretch)
    sizes = []
    for axis, size in enumerate(window):
        turns = axis >= len(window) - 2 or not how.in_plane
        others = [n for a, n in enumerate(window) if a != axis and (not how.in_plane or a >= len(window) - 2)] if turns else []
        need = zoom * (size * math.cos(angle) + max(others, default=0) * math.sin(angle) if turns else size) + 2 * how.shift
        sizes.append(size + 2 * math.ceil(min(max(need - size, 0) / 2, size / 8)))
    return tuple(sizes)


def sample_window(
    case: PreparedCase, window: Shape, source: Shape, rng: np.random.Generator, focus: int | None, dtype: np.dtype[Any] = INT16
) -> Window:
    """A window centred on one of the locations of entry `focus`, or anywhere, enlarged evenly to `source`.

    The window itself stays within the case where it fits; only its margin may leave it. Where the entry is empty the window lies anywhere.
    `dtype` is that of the label.
    """
    full_window = (1,) * (len(case.shape) - len(window)) + window
    full_source = (1,) * (len(case.shape) - len(window)) + source
    centre = _centre(case, rng, focus)
    start = []
    for axis, (size, length) in enumerate(zip(case.shape, full_window, strict=True)):
        if size <= length:
            start.append(-((length - size) // 2))
        elif centre is None:
            start.append(int(rng.integers(0, size - length + 1)))
        else:
            start.append(int(np.clip(centre[axis] - length // 2, 0, size - length)))
    begin = tuple(s - (big - small) // 2 for s, big, small in zip(start, full_source, full_window, strict=True))
    image = cut(case.image, begin, full_source, np.float32)
    label = np.zeros(full_source, dtype=dtype) if case.label is None else cut(case.label, begin, full_source, dtype)
    prior = None if case.prior is None else cut(case.prior, begin, full_source, np.int16).reshape(source)
    return Window(image.reshape(image.shape[0], *source), label.reshape(source), prior)


def _centre(case: PreparedCase, rng: np.random.Generator, focus: int | None) -> NDArray[np.int32] | None:
    if focus is None or not len(case.locations[focus]):
        return None
    places = case.locations[focus]
    return np.asarray(places[int(rng.integers(len(places)))])
