"""COCO's run lengths: masks as counts of voxels, off and on in turn, column by column (Lin et al. 2014, ECCV, arXiv:1405.0312).

Equal to `pycocotools.mask`, whose compiled code is not needed, to the byte of the compressed form. COCO's masks are 2D; a volume's first axis
varies fastest, likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.errors import ImageError
from medseg.scratch import row_slabs

Integers = NDArray[np.int64]
_FINER = 5  # polygons are drawn on a grid so many times as fine
_CENTRE = _FINER // 2
_AT_ONCE = 2**18  # columns that lines are compared with at once
FARTHEST = 2**31 // _FINER
"""Pixels. Coordinates of polygons are smaller: beyond, the fine grid's do not fit into the 32 bits that `pycocotools` has for them."""
_LONGEST = 13  # characters of 5 bits that one number of 64 bits takes at most


@dataclass(frozen=True, eq=False)
class Rle:
    """A mask as run lengths.

    Attributes:
        shape: of the mask, e.g. (height, width).
        counts: `(n,)` voxels off, on, off, ... in the order in which the first axis varies fastest; the first may be 0.
    """

    shape: tuple[int, ...]
    counts: Integers = field(repr=False)

    def __post_init__(self) -> None:
        total, reached = prod(self.shape), np.cumsum(self.counts)
        # each sum is compared, as one of too many bits may come out as any number
        if (self.counts < 0).any() or (reached > total).any() or (reached[-1] if reached.size else 0) != total:
            raise ImageError.of(
                "run lengths do not fill their image",
                found=f"{sum(self.counts.tolist())} voxels" + (", with negative counts" if (self.counts < 0).any() else ""),
                expected=f"{prod(self.shape)} for {' x '.join(map(str, self.shape))}",
                fix="The annotation is damaged, or belongs to an image of another size.",
            )

    @classmethod
    def encode(cls, mask: NDArray[Any]) -> Rle:
        """Run lengths of the elements that are not 0."""
        flat = np.asarray(mask, dtype=bool).ravel(order="F")
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        bounds = np.concatenate([[0] * (1 + bool(flat.size and flat[0])), changes, [flat.size] * bool(flat.size)])
        return cls(mask.shape, np.diff(bounds).astype(np.int64))

    @classmethod
    def of_part(cls, mask: NDArray[Any], lower: tuple[int, ...], shape: tuple[int, ...]) -> Rle:
        """Of an image of this shape in which nothing lies but a smaller mask, whose first voxel is `lower`; slab by slab of the mask."""
        apart = np.cumprod([1, *shape[:-1]], dtype=np.int64)  # neighbours along each axis
        lines = [(first + np.arange(n)) * step for first, n, step in zip(lower, mask.shape, apart, strict=True)][::-1]
        turned, total = mask.T, prod(shape)
        ends = [np.zeros(0, np.int64)]  # where runs begin and end
        for rows in row_slabs(turned.shape):
            first, *rest = np.nonzero(turned[rows])
            positions = lines[0][rows][first]
            for line, at in zip(lines[1:], rest, strict=True):
                positions += line[at]
            ends += [positions[np.diff(positions, prepend=-2) != 1], positions[np.diff(positions, append=-1) != 1] + 1]
        flips, times = np.unique(np.concatenate(ends), return_counts=True)
        # A run that goes on in the next slab ends and begins at once.
        return cls(shape, np.diff(flips[(times == 1) & (flips < total)], prepend=0, append=total))

    @classmethod
    def of_string(cls, text: str | bytes, shape: tuple[int, ...]) -> Rle:
        """From COCO's compressed string: each number in groups of 5 bits, lowest first, from the third on as the difference to the one before last.

        Raises:
            ImageError: no such string, or it does not fill the shape.
        """
        raw = text.encode("ascii", "replace") if isinstance(text, str) else text
        digits = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
        if (digits < 0).any() or (digits > 63).any() or (digits.size and digits[-1] & 32):
            raise ImageError.of("not a string of run lengths", found=repr(raw[:40])[1:], expected="COCO's compressed counts")
        starts = np.concatenate([[True], (digits[:-1] & 32) == 0]).nonzero()[0] if digits.size else np.zeros(0, np.int64)
        place = np.arange(digits.size) - np.repeat(starts, np.diff(starts, append=digits.size))
        if (place >= _LONGEST - 1).any():
            raise ImageError.of("not a string of run lengths", found="a number of more than 60 bits", expected="COCO's compressed counts")
        ends = np.append(starts[1:], digits.size) - 1 if digits.size else starts
        values = np.add.reduceat((digits & 31) << (5 * place), starts) if digits.size else starts
        values = np.where(digits[ends] & 16, values - (1 << (5 * (place[ends] + 1))), values) if digits.size else values
        for first in (1, 2):
            values[first::2] = np.cumsum(values[first::2])
        return cls(shape, values)

    @classmethod
    def of_polygon(cls, points: ArrayLike, shape: tuple[int, int]) -> Rle:
        """The pixels of a polygon `(n, 2)` of COCO's points (x, y), drawn as `pycocotools` draws it: its outline on a grid five times as fine.

        An object of several polygons is the `union` of them.

        Raises:
            ImageError: fewer than three points, or numbers that are not finite, or not below `FARTHEST`.
        """
        xy = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        near = bool((np.abs(xy) < FARTHEST).all())
        if len(xy) < 3 or not near:
            what = "" if near else f", not all nearer than {FARTHEST} pixels" if np.isfinite(xy).all() else ", not all finite"
            raise ImageError.of("no polygon", found=f"{len(xy)} points{what}", expected="at least 3")
        height, width = shape
        corners = (_FINER * xy + 0.5).astype(np.int64)
        ends = np.roll(corners, -1, axis=0)
        some = max(_AT_ONCE // max(width, 1), 1)
        flips = np.zeros(0, np.int64)  # where inside and outside change; where they do so an even number of times, nothing changes
        for first in range(0, len(xy), some):
            columns, rows = _crossings(corners[first : first + some], ends[first : first + some], width)
            crossed = columns * height + np.ceil(np.clip((rows + 0.5) / _FINER - 0.5, 0, height)).astype(np.int64)
            places, times = np.unique(crossed, return_counts=True)
            flips = np.setxor1d(flips, places[times % 2 == 1], assume_unique=True)
        flips = flips[flips < height * width]
        return cls(shape, np.diff(flips, prepend=0, append=height * width))

    def to_string(self) -> str:
        """COCO's compressed string."""
        values = self.counts.copy()
        values[3:] -= self.counts[1:-2]
        needed = np.ones(len(values), np.int64)
        for more in range(1, _LONGEST):
            limit = 1 << (5 * more - 1)
            needed += (values < -limit) | (values >= limit)
        at = np.repeat(np.arange(len(values)), needed)
        place = np.arange(len(at)) - np.repeat(np.cumsum(needed) - needed, needed)
        digits = (values[at] >> (5 * place)) & 31
        return (digits + 32 * (place + 1 < needed[at]) + 48).astype(np.uint8).tobytes().decode("ascii")

    def decode(self) -> NDArray[np.bool_]:
        """The mask."""
        flat = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        return flat.reshape(self.shape, order="F")

    @property
    def area(self) -> int:
        """Voxels of the mask."""
        return int(self.counts[1::2].sum())

    @cached_property
    def runs(self) -> tuple[Integers, Integers]:
        """First and one-past-last position of each run, empty ones left out."""
        ends = np.cumsum(self.counts)
        starts, stops = (ends - self.counts)[1::2], ends[1::2]
        some = stops > starts
        return starts[some], stops[some]

    @cached_property
    def box(self) -> NDArray[np.float64]:
        """`(2, ndim)` the corners of the smallest box, first the lower ones, then one past the upper ones; all 0 for an empty mask.

        A run that goes beyond a column fills that axis (as in `pycocotools`), and so on for further axes.
        """
        starts, stops = self.runs
        box = np.zeros((2, len(self.shape)))
        if not len(starts):
            return box
        low, high = starts, stops - 1
        crossed = np.zeros(len(starts), bool)  # the run spans several lines of the axes so far
        for axis in range(len(self.shape)):
            size = self.shape[axis]
            a, b = low % size, high % size
            low, high = low // size, high // size
            crossed = low != high
            box[:, axis] = (0, size) if crossed.any() else (a.min(), b.max() + 1)
        return box


def union(parts: Sequence[Rle]) -> Rle:
    """The voxels of any of several masks of one shape, of which there is at least one."""
    starts, stops = (np.concatenate(ends) for ends in zip(*(part.runs for part in parts), strict=True))
    places, at = np.unique(np.concatenate([starts, stops]), return_inverse=True)
    steps = np.repeat([1, -1], len(starts))
    inside = np.cumsum(np.bincount(at, weights=steps, minlength=len(places))) > 0
    flips = places[np.diff(inside, prepend=False)]
    size = prod(parts[0].shape)
    return Rle(parts[0].shape, np.diff(flips[flips < size], prepend=0, append=size))


def _crossings(starts: Integers, ends: Integers, width: int) -> tuple[Integers, Integers]:
    """Where lines `(n, 2)` of the fine grid pass the centres of columns of pixels: the columns, from 0 to `width` - 1, and the fine rows.

    A line is made of one point for each step along its longer axis. Points beyond the image are not made, however long it is.
    """
    extent = np.abs(ends - starts)
    steep = extent[:, 0] < extent[:, 1]
    edge = np.arange(len(starts))
    long = np.where(steep, 1, 0)
    flip = starts[edge, long] > ends[edge, long]  # lines are drawn upwards along their longer axis, so both directions give the same points
    low, high = np.where(flip[:, None], ends, starts), np.where(flip[:, None], starts, ends)
    slope = (high - low)[edge, 1 - long] / np.maximum(extent[edge, long], 1)
    left, right = np.minimum(low[:, 0], high[:, 0]), np.maximum(low[:, 0], high[:, 0])
    # the centre of column c lies between the fine columns 5 c + 2 and 5 c + 3
    first = np.maximum(-((_CENTRE - left) // _FINER), 0)
    counts = np.maximum(np.minimum((right - _CENTRE - 1) // _FINER, width - 1) - first + 1, 0)
    of = np.repeat(edge, counts)
    columns = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    x, y = low[of].T
    across, fine = slope[of], _FINER * columns + _CENTRE
    flat = np.minimum(*((y + across * (fine + more - x) + 0.5).astype(np.int64) for more in (0, 1)))
    return columns, np.where(steep[of], y + _passed(x, across, fine, extent[of, 1]), flat)


def _passed(x: Integers, slope: NDArray[np.float64], fine: Integers, length: Integers) -> Integers:
    """The last step, from 0 to `length`, before lines from the fine columns `x` with less than one column a step pass from `fine` to the next, or back."""
    below, above = np.zeros_like(length), length.copy()  # steps on this side of it, and on the other
    rising = slope > 0
    while (above - below > 1).any():
        middle = (below + above) // 2
        there = ((x + slope * middle + 0.5).astype(np.int64) > fine) == rising
        below, above = np.where(there, below, middle), np.where(there, middle, above)
    return below
