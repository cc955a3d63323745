"""A network slides over a case, and its overlapping outputs are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.case import Batch, PreparedCase
from medseg.domains.grid.detections import Collector
from medseg.domains.grid.maps import BlendedMap, HalfMap
from medseg.geometry import Shape
from medseg.imaging.windows import coverage, cut, gaussian_weights, outer, overlap_slices, positions, window_starts
from medseg.models.base import Head, ObjectHead
from medseg.prediction import Stitched
from medseg.scratch import Scratch, release

Run = Callable[[Batch], Mapping[str, Tensor]]
Starts = tuple[tuple[int, ...], ...]
HALF_SCALE = 10  # the peak of nnU-Net's Gaussian: its smallest weights would underflow sooner

TOGETHER = 16  # channels that are brought into order at once
RESIDENT = 2**27  # bytes of files that are touched before pages are let go
Add = Callable[[tuple[int, ...], str, int, Tensor], None]
"""Takes the start of a window, a head, a channel and what the network said of it, `(*window)` in one piece."""


def layout(shape: Shape, window: Shape, overlap: float) -> tuple[Shape, Starts]:
    """The window with all axes of the case, and its first voxels along each of them."""
    lead = len(shape) - len(window)
    full = (1,) * lead + window
    return full, tuple(
        tuple(window_starts(n, w, overlap if axis >= lead else 0.0)) for axis, (n, w) in enumerate(zip(shape, full, strict=True))
    )


def stitch_case(
    case: PreparedCase, run: Run, heads: Sequence[Head], window: Shape, overlap: float, batch_size: int, memory: float
) -> dict[str, Stitched]:
    """Outputs per head: maps are blended with Gaussian weights (Isensee et al. 2021), objects are merged (`imaging.merging`).

    Windows with fewer axes than the case go through it slice by slice. A case smaller than the window is centred in zeros.

    Args:
        memory: bytes that the sums of all heads may take in memory; larger ones live in temporary files.
    """
    shape = case.shape
    full, starts = layout(shape, window, overlap)
    weights = tuple(coverage(n, w, s) for n, w, s in zip(shape, full, starts, strict=True))
    importance = torch.from_numpy(outer([gaussian_weights(w) for w in full]))
    totals, objects = _sums(heads, shape, np.float32, memory), _collectors(heads, shape, full, starts, memory)
    sums = {name: torch.from_numpy(total) for name, total in totals.items()}

    def add(start: tuple[int, ...], name: str, channel: int, value: Tensor) -> None:
        inside, part = _overlap(start, full, shape)
        sums[name][channel][inside].addcmul_(value[part], importance[part])

    _predict(case, run, window, full, starts, batch_size, totals, add, objects)
    return {name: BlendedMap(total, weights) for name, total in totals.items()} | _found(objects)


def stitch_as_nnunet(
    case: PreparedCase, run: Run, heads: Sequence[Head], window: Shape, overlap: float, batch_size: int, memory: float
) -> dict[str, Stitched]:
    """As `stitch_case`, but to the last bit as nnU-Net: sums and weights are 16-bit numbers, and the Gaussian peaks after the middle.

    That moves a voxel in some thousands of an object's surface, more where a network is unsure; half the memory, too.
    Source: nnU-Net 2.8.1, `inference/predict_from_raw_data.py` and `inference/sliding_window_prediction.py`.
    """
    shape = case.shape
    full, starts = layout(shape, window, overlap)
    gaussian = reduce(np.multiply.outer, [gaussian_weights(w, centred=False) for w in full])
    importance = torch.from_numpy(HALF_SCALE * gaussian).half()
    # What underflows would divide by zero at the corners of a case.
    importance[importance == 0] = importance[importance > 0].min()
    totals, objects = _sums(heads, shape, np.float16, memory), _collectors(heads, shape, full, starts, memory)
    sums = {name: torch.from_numpy(total) for name, total in totals.items()}
    weights = torch.from_numpy(Scratch(memory).zeros(shape, np.float16))

    def add(start: tuple[int, ...], name: str, channel: int, value: Tensor) -> None:
        inside, part = _overlap(start, full, shape)
        if channel == 0 and name == next(iter(totals)):
            weights[inside] += importance[part]
        sums[name][channel][inside] += value[part] * importance[part]

    _predict(case, run, window, full, starts, batch_size, totals, add, objects)
    for name, total in sums.items():
        for channel in total:
            channel /= weights
            release(totals[name])
    return {name: HalfMap(total) for name, total in totals.items()} | _found(objects)


def _sums(heads: Sequence[Head], shape: Shape, dtype: Any, memory: float) -> dict[str, NDArray[Any]]:
    scratch = Scratch(memory / max(1, len(heads)))
    return {head.name: scratch.zeros((head.channels, *shape), dtype) for head in heads if not isinstance(head, ObjectHead)}


def _collectors(heads: Sequence[Head], shape: Shape, full: Shape, starts: Starts, memory: float) -> dict[str, Collector]:
    return {head.name: Collector(head, shape, full, starts, memory / len(heads)) for head in heads if isinstance(head, ObjectHead)}


def _found(objects: Mapping[str, Collector]) -> dict[str, Stitched]:
    return {name: collector.found() for name, collector in objects.items()}


def _predict(
    case: PreparedCase,
    run: Run,
    window: Shape,
    full: Shape,
    starts: Starts,
    batch_size: int,
    totals: Mapping[str, NDArray[Any]],
    add: Add,
    objects: Mapping[str, Collector],
) -> None:
    """Give each channel of each window's maps to `add`, in order, and let go of the pages of `totals` and of the case now and then; slots of
    each window go to `objects`.

    The outputs of a hundred classes are large: those of one batch are gone before the next is predicted.
    """
    touched = 0
    row = math.prod(full[:-1]) * case.shape[-1]  # a page of a file holds several rows of the case
    with torch.inference_mode():
        for group in _groups(positions(starts), max(1, batch_size)):
            outputs = run(_batch(case, group, window, full))
            for name, total in totals.items():
                maps = outputs[name].to("cpu", torch.float32).reshape(len(group), len(total), *full)
                for start, value in zip(group, maps, strict=True):
                    for first in range(0, len(total), TOGETHER):
                        # Networks leave channels last: to take them one by one would read everything for each.
                        some = value[first : first + TOGETHER].contiguous()
                        for k, channel in enumerate(some, first):
                            add(start, name, k, channel)
                        touched += len(some) * row * total.itemsize
                        # Pages read and written stay in memory until they are let go, and coming back to them costs time.
                        if touched > RESIDENT:
                            touched = 0
                            for array in (case.image, *totals.values()):
                                release(array)
                del maps, value, some, channel
            for name, collector in objects.items():
                for start, slots in zip(group, outputs[name].to("cpu", torch.float32), strict=True):
                    collector.add(start, slots)
            if not totals:
                touched += len(group) * row * case.image.itemsize * len(case.image)
                if touched > RESIDENT:
                    touched = 0
                    release(case.image)
            del outputs


def _batch(case: PreparedCase, group: Sequence[tuple[int, ...]], window: Shape, full: Shape) -> Batch:
    batch = Batch(torch.from_numpy(np.stack([cut(case.image, start, full, np.float32).reshape(-1, *window) for start in group])))
    if case.prior is not None:
        batch.prior = torch.from_numpy(np.stack([cut(case.prior, start, full, np.int16).reshape(window) for start in group]))
    return batch


def _overlap(start: tuple[int, ...], full: Shape, shape: Shape) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window lies within the case, and which part of it does."""
    pairs = [overlap_slices(s, w, n) for s, w, n in zip(start, full, shape, strict=True)]
    return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)


def _groups(items: Iterator[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    while group := list(itertools.islice(items, size)):
        yield group
