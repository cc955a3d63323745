"""Votes or regions: which way finds the objects of a dataset better in the windows of a configuration, and why."""

from __future__ import annotations

import math

import numpy as np

from medseg.dataset import Labels
from medseg.fingerprint import Fingerprint
from medseg.tasks.base import Frame
from medseg.tasks.instance.fitting import LARGE, MASKS, boxes_in, touching_for

SLENDER = 0.1  # of a box that an object fills; a disc or ball fills more than half, a thread across it next to nothing


def prefers_regions(fingerprint: Fingerprint, labels: Labels, frame: Frame) -> tuple[bool, str]:
    """Whether Mask R-CNN finds these objects better than votes for their centres, and the reason.

    Where objects never touch, a class for every voxel says nearly all. Boxes tell objects apart that fill them. In volumes outlines decide: a
    detector's mask has few cells along each of three axes and is read from a level at half the resolution at best, while classes and votes are said
    of every voxel.
    """
    touching, because = touching_for(fingerprint, labels)
    if touching != "apart":
        return (
            False,
            f"{because} So objects follow from a class for every voxel, whose outlines are finer than a detector's; --folds all compares both.",
        )
    share = _filled(fingerprint)
    if share is None:
        return False, "No case has an object whose box could be measured, so boxes are not relied on."
    if share < SLENDER:
        return (
            False,
            f"Objects fill {share:.0%} of their boxes (less than {SLENDER:.0%}), so boxes of neighbours are much the same, and votes tell more.",
        )
    if len(frame.window) == 3:
        return False, _of_volumes(fingerprint, frame)
    return True, (
        f"Objects fill {share:.0%} of their boxes (at least {SLENDER:.0%}), so boxes tell them apart. Not proven: on one set of nuclei, one run of each, "
        "Mask R-CNN was ahead after half an hour (intervals overlap), votes after a few minutes (benchmarks/README.md); --folds all compares both."
    )


def _filled(fingerprint: Fingerprint) -> float | None:
    """The share of its box that the typical object fills."""
    shares = [
        np.median(one.sizes) * math.prod(case.spacing) / np.median([math.prod(box) for box in one.boxes])
        for case in fingerprint.cases
        for one in case.objects
        if one.boxes
    ]
    return float(np.median(shares)) if shares else None


def _of_volumes(fingerprint: Fingerprint, frame: Frame) -> str:
    """Why votes in windows of three axes."""
    most, side = MASKS[3][-1], float(np.quantile(boxes_in(fingerprint, frame).max(1), LARGE, method="nearest"))
    because = "Votes draw outlines voxel by voxel; in volumes a detector reads them from every second voxel at best."
    if side > most:
        because += f" A quarter of the objects are at least {side:.3g} voxels long, of which {side / most:.2g} share one of the at most {most} cells of a mask;"
        because += " perfect masks of vertebrae with 2.3 voxels in a cell have a PQ of 0.94."
    because += " On single volumes of nuclei and vertebrae votes had the higher PQ after about as many steps (benchmarks/README.md)"
    return f"{because}; --folds all compares both."
