"""COCO's run lengths: masks as counts of voxels, off and on in turn, column by column (Lin et al. 2014, ECCV, arXiv:1405.0312).

Equal to `pycocotools.mask`, whose compiled code is not needed, to the byte of the compressed form. COCO's masks are 2D; a volume's first axis
varies fastest, likewise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ImageError

Integers = NDArray[np.int64]
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
        if (self.counts < 0).any() or self.counts.sum() != prod(self.shape):
            raise ImageError.of(
                "run lengths do not fill their image",
                found=f"{int(self.counts.sum())} voxels" + (", with negative counts" if (self.counts < 0).any() else ""),
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


def shared(a: Rle, b: Rle) -> int:
    """Voxels of both masks, which have one shape."""
    starts, stops = a.runs
    if not len(starts) or not b.area:
        return 0
    knots = np.stack([starts, stops], 1).ravel()
    covered = np.cumsum(stops - starts)
    filled = np.stack([covered - (stops - starts), covered], 1).ravel()  # voxels of `a` before each knot; linear between knots
    return round(float((np.interp(b.runs[1], knots, filled) - np.interp(b.runs[0], knots, filled)).sum()))
