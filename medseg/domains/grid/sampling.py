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
from medseg.imaging.windows import cut

PER_CLASS = 4096  # locations kept per class and case: enough that no two windows of an epoch share one by necessity


def class_locations(label: NDArray[Any], labels: Labels) -> tuple[NDArray[np.int32], ...]:
    """For each class up to `PER_CLASS` voxel indices `(n, d)`, drawn evenly over the class by a fixed seed, in index order."""
    found = []
    for index, item in enumerate(labels.classes):
        flat = np.flatnonzero(np.isin(label, item.values))
        if flat.size > PER_CLASS:
            flat = np.sort(np.random.default_rng(index).choice(flat, PER_CLASS, replace=False))
        found.append(np.stack(np.unravel_index(flat, label.shape), axis=1).astype(np.int32))
    return tuple(found)


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


def sample_window(case: PreparedCase, window: Shape, source: Shape, rng: np.random.Generator, focus: int | None) -> Window:
    """A window centred on a voxel of class `focus`, or anywhere, enlarged evenly to `source`.

    The window itself stays within the case where it fits; only its margin may leave it. Where the class does not occur in the case,
    another one that does is taken; in a case without any class the window lies anywhere.
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
    label = np.zeros(full_source, dtype=np.int16) if case.label is None else cut(case.label, begin, full_source, np.int16)
    prior = None if case.prior is None else cut(case.prior, begin, full_source, np.int16).reshape(source)
    return Window(image.reshape(image.shape[0], *source), label.reshape(source), prior)


def _centre(case: PreparedCase, rng: np.random.Generator, focus: int | None) -> NDArray[np.int32] | None:
    if focus is None:
        return None
    places = case.locations[focus]
    if not len(places):
        others = [found for found in case.locations if len(found)]
        if not others:
            return None
        places = others[int(rng.integers(len(others)))]
    return np.asarray(places[int(rng.integers(len(places)))])
