"""Networks that know the answer: slots of windows that are cut out of a true map of codes, and scores of what comes back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medseg.case import Batch, PreparedCase
from medseg.dataset import NUMBER_BITS
from medseg.domains.grid.stitch import stitch_case
from medseg.geometry import Grid, Shape
from medseg.imaging.painting import paint_objects
from medseg.metrics.instances import Contingency, Tally, match
from medseg.models.base import ObjectHead
from medseg.models.slots import Slots
from medseg.prediction import FoundObjects

HEAD = "objects"


def perfect_slots(codes: NDArray[np.int32], slots: int, mask: int, score: float = 0.9) -> Slots:
    """`(1, slots)`: each object of a window of codes, as sharp as its cells show it."""
    axes = codes.ndim
    found = Slots(
        torch.zeros(1, slots),
        torch.zeros(1, slots, dtype=torch.int64),
        torch.zeros(1, slots, 2 * axes),
        torch.zeros(1, slots, *(mask,) * axes),
    )
    ids, places = np.unique(codes, return_inverse=True)
    places = places.reshape(codes.shape) + (0 if ids[0] == 0 else 1)
    ids = ids[ids != 0]
    assert len(ids) <= slots
    for k, (code, box) in enumerate(zip(ids.tolist(), ndimage.find_objects(places), strict=True)):
        cells = [
            np.minimum(((np.arange(mask) + 0.5) * (part.stop - part.start) / mask).astype(int), part.stop - part.start - 1) for part in box
        ]
        found.scores[0, k] = score
        found.classes[0, k] = code >> NUMBER_BITS
        found.boxes[0, k] = torch.tensor([*(part.start for part in box), *(part.stop for part in box)], dtype=torch.float32)
        found.masks[0, k] = torch.from_numpy((places[box] == k + 1)[np.ix_(*cells)].astype(np.float32))
    return found


def seen_codes(image: torch.Tensor) -> NDArray[np.int32]:
    """Codes that lie in an image `(1, *window)` as class and number (float32 holds no code)."""
    return (image[0].numpy().astype(np.int32) << NUMBER_BITS) | image[1].numpy().astype(np.int32)


def case_of(codes: NDArray[np.int32]) -> PreparedCase:
    """A case that shows its own objects: class and number are its channels."""
    image = np.stack([codes >> NUMBER_BITS, codes & 0xFFFF]).astype(np.float32)
    return PreparedCase("x", image, None, (), Grid.plain(codes.shape), ())


def found_in(
    codes: NDArray[np.int32], window: Shape, mask: int, overlap: float = 0.5, slots: int = 100, run=None, memory: float = 2**30
) -> FoundObjects:
    """The objects that a perfect network finds window by window, stitched."""
    head = ObjectHead(HEAD, slots=slots, mask=mask, axes=len(window))

    def perfect(windows: Batch) -> dict[str, torch.Tensor]:
        return {HEAD: torch.cat([perfect_slots(seen_codes(image), slots, mask).pack() for image in windows.image])[:, None]}

    return stitch_case(case_of(codes), run or perfect, (head,), window, overlap, 4, memory)[HEAD]


def painted(found: FoundObjects, **how) -> tuple[NDArray[np.int32], dict[int, float]]:
    return paint_objects(found, tuple(range(1, 10)), "case 'x'", **how)


def same_objects(found: NDArray[np.int32], truth: NDArray[np.int32]) -> bool:
    """Whether two maps hold the same objects of the same classes, whatever their numbers."""
    pairs = np.unique(np.stack([found.ravel(), truth.ravel()]), axis=1)
    alike = (pairs[0] >> NUMBER_BITS == pairs[1] >> NUMBER_BITS).all()
    return bool(alike and len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1])


def quality(found: NDArray[np.int32], truth: NDArray[np.int32]) -> float:
    """Panoptic quality of the objects of all classes together."""
    pairs = Contingency.between(found, truth, classes=lambda codes: codes >> NUMBER_BITS)
    return sum(match(pairs, 0.5, strict=True).tallies().values(), Tally()).pq


def scattered(shape: Shape, count: int, radius: tuple[float, float], seed: int = 0, classes: int = 2) -> NDArray[np.int32]:
    """Discs, balls and boxes of random sizes at random places; later ones lie over earlier ones, but leave no crumbs."""
    rng = np.random.default_rng(seed)
    codes = np.zeros(shape, np.int32)
    for number in range(1, count + 1):
        size = rng.uniform(*radius, len(shape)) if number % 3 == 0 else np.full(len(shape), rng.uniform(*radius))
        middle = rng.uniform(0, shape)
        box = tuple(slice(max(0, int(m - r)), int(m + r) + 2) for m, r in zip(middle, size, strict=True))
        grid = np.meshgrid(*(np.arange(b.start, min(b.stop, n)) - m for b, n, m in zip(box, shape, middle, strict=True)), indexing="ij")
        inside = (
            np.max([np.abs(g) / r for g, r in zip(grid, size, strict=True)], 0)
            if number % 3 == 0
            else np.sqrt(sum((g / r) ** 2 for g, r in zip(grid, size, strict=True)))
        )
        free = (inside <= 1) & (codes[box] == 0)
        if ndimage.label(free)[1] == 1:
            codes[box][free] = ((number % classes + 1) << NUMBER_BITS) | number
    return codes
