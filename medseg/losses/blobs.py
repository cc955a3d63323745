"""Blob loss: every connected component counts the same, however small (Kofler et al. 2022, arXiv:2205.08209)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medseg.imaging.components import label_components

BLOBS = 256  # components per window and class that are told apart; those beyond count as one


@torch.library.custom_op("medseg::number_blobs", mutates_args=())
def number_blobs(classes: Tensor) -> Tensor:
    """Number of each voxel's connected component within its window and class.

    Runs on the CPU, wherever the tensor lies, which a GPU waits for: once per batch, at full resolution. An operator of its own, so that a training step can be
    measured without values.

    Args:
        classes: `(N, *spatial)` integer class indices; 0 and below belong to no component.

    Returns:
        `(N, *spatial)` int16, from 1 on, at most `BLOBS`; 0 outside. Corners touch.
    """
    from scipy import ndimage

    values = classes.to("cpu", torch.int16).clamp_min_(0).numpy()
    numbers = np.zeros(values.shape, dtype=np.int16)
    for window, found in zip(values, numbers, strict=True):
        for index, box in enumerate(ndimage.find_objects(window), 1):
            if box is not None:
                labelled, _ = label_components(window[box] == index)
                found[box] += np.minimum(labelled, BLOBS).astype(np.int16)
    return torch.from_numpy(numbers).to(classes.device)


@number_blobs.register_fake
def _(classes: Tensor) -> Tensor:
    return torch.empty_like(classes, dtype=torch.int16)


def exclusive_blobs(probabilities: Tensor, classes: Tensor, blobs: Tensor, missed: float, smooth: float) -> Tensor:
    """Mean over components of 1 - soft Dice, for classes that exclude each other.

    Args:
        probabilities: `(N, K, *spatial)` of the foreground classes, 0 at voxels that do not count.
        classes: `(N, *spatial)`, 0 for background and below for voxels that do not count, 1 to K.
        blobs: `(N, *spatial)` from `number_blobs`.
        missed, smooth: see `mean_of_blobs`.
    """
    count = probabilities.shape[1]
    flat = probabilities.flatten(2)
    kind, number = classes.flatten(1).long() - 1, blobs.flatten(1).long() - 1
    inside = (kind >= 0) & (number >= 0)
    # Voxels outside add nothing, but would wait for each other in one entry.
    places = torch.where(inside, kind * BLOBS + number, torch.arange(kind.shape[1], device=kind.device) % (count * BLOBS))
    own = flat.gather(1, kind.clamp_min(0)[:, None])[:, 0] * inside
    hits, sizes = (torch.zeros_like(own[:, :1]).repeat(1, count * BLOBS).scatter_add(1, places, v) for v in (own, inside.to(own)))
    shape = (len(flat), count, BLOBS)
    return mean_of_blobs(hits.view(shape), sizes.view(shape), flat.sum(2), missed, smooth)


def region_blobs(probabilities: Tensor, blobs: Tensor, missed: float, smooth: float) -> Tensor:
    """As `exclusive_blobs`, for regions that may overlap: `blobs` `(N, K, *spatial)` numbers the components of each region."""
    flat, number = probabilities.flatten(2), blobs.flatten(2).long() - 1
    inside = number >= 0
    places = torch.where(inside, number, torch.arange(number.shape[2], device=number.device) % BLOBS)
    hits, sizes = (torch.zeros_like(flat[:, :, :1]).repeat(1, 1, BLOBS).scatter_add(2, places, v) for v in (flat * inside, inside.to(flat)))
    return mean_of_blobs(hits, sizes, flat.sum(2), missed, smooth)


def mean_of_blobs(hits: Tensor, sizes: Tensor, total: Tensor, missed: float, smooth: float) -> Tensor:
    """1 - Tversky index of each component, as if it were alone in its window: mean over components, then over the classes that have any.

    Voxels of the other components of the class do not count. 0 where there is no component.

    Args:
        hits: `(N, K, BLOBS)` sum of the class's probability within each component.
        sizes: `(N, K, BLOBS)` voxels of each component; 0: there is none.
        total: `(N, K)` sum of the class's probability over the window.
        missed: weight of missed voxels; 0.5 makes it the Dice.
        smooth: see `medseg.losses.dice.SMOOTH`.
    """
    invented = (total - hits.sum(2)).clamp_min(0)[..., None]
    index = (2 * hits + smooth) / (2 * (missed * sizes + (1 - missed) * (hits + invented)) + smooth)
    there = (sizes > 0).to(index)
    blobs = there.sum((0, 2))
    classes = ((1 - index) * there).sum((0, 2)) / blobs.clamp_min(1)
    return classes.sum() / (blobs > 0).sum().clamp_min(1)
