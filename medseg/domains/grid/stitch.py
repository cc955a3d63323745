"""A network slides over a case, and its overlapping outputs are blended."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.case import PreparedCase
from medseg.domains.grid.maps import BlendedMap
from medseg.geometry import Shape
from medseg.imaging.windows import coverage, cut, gaussian_weights, outer, overlap_slices, positions, window_starts
from medseg.models.base import Head
from medseg.prediction import DenseMap
from medseg.scratch import Scratch, release

Run = Callable[[Tensor], Mapping[str, Tensor]]


def layout(shape: Shape, window: Shape, overlap: float) -> tuple[Shape, tuple[tuple[int, ...], ...]]:
    """The window with all axes of the case, and its first voxels along each of them."""
    lead = len(shape) - len(window)
    full = (1,) * lead + window
    return full, tuple(
        tuple(window_starts(n, w, overlap if axis >= lead else 0.0)) for axis, (n, w) in enumerate(zip(shape, full, strict=True))
    )


def stitch_case(
    case: PreparedCase,
    run: Run,
    heads: Sequence[Head],
    window: Shape,
    overlap: float,
    batch_size: int,
    memory: float,
    centred: bool = True,
) -> dict[str, DenseMap]:
    """Outputs per head, blended with Gaussian weights (Isensee et al. 2021).

    Windows with fewer axes than the case go through it slice by slice. A case smaller than the window is centred in zeros.

    Args:
        memory: bytes that the sums of all heads may take in memory; larger ones live in temporary files.
        centred: see `gaussian_weights`.
    """
    shape = case.shape
    full, starts = layout(shape, window, overlap)
    weights = tuple(coverage(n, w, s, centred) for n, w, s in zip(shape, full, starts, strict=True))
    importance = torch.from_numpy(outer([gaussian_weights(w, centred) for w in full]))
    scratch = Scratch(memory / max(1, len(heads)))
    totals: dict[str, NDArray[np.float32]] = {head.name: scratch.zeros((head.channels, *shape), np.float32) for head in heads}
    sums = {name: torch.from_numpy(total) for name, total in totals.items()}
    touched = 0
    with torch.inference_mode():
        for group in _groups(positions(starts), max(1, batch_size)):
            windows = np.stack([cut(case.image, start, full, np.float32).reshape(-1, *window) for start in group])
            outputs = run(torch.from_numpy(windows))
            for head in heads:
                values = outputs[head.name].detach().to("cpu", torch.float32)
                for start, value in zip(group, values, strict=True):
                    _add(sums[head.name], value.reshape(head.channels, *full), importance, start)
                touched += values.nbytes
            # Pages read and written stay in memory until they are let go, and coming back to them costs time.
            if touched > memory / 2:
                touched = 0
                for array in (case.image, *totals.values()):
                    release(array)
    return {name: BlendedMap(total, weights) for name, total in totals.items()}


def _add(total: Tensor, value: Tensor, importance: Tensor, start: tuple[int, ...]) -> None:
    """One pass over the window without a temporary, channel by channel: `addcmul_` is 20 times slower when it broadcasts."""
    pairs = [overlap_slices(s, w, n) for s, w, n in zip(start, importance.shape, total.shape[1:], strict=True)]
    inside, part = tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
    for sums, channel in zip(total, value, strict=True):
        sums[inside].addcmul_(channel[part], importance[part])


def _groups(items: Iterator[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    while group := list(itertools.islice(items, size)):
        yield group
