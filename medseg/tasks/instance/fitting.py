"""How heads follow from the objects of a dataset: how far votes reach; of a detector pyramid levels, anchors, and how many objects a window may hold.

Sizes are those of the boxes that fingerprints sample, in voxels of a configuration's window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Labels
from medseg.device import Kind
from medseg.fingerprint import MOST_BOXES, CaseStats, Fingerprint
from medseg.geometry import Shape
from medseg.tasks.base import Frame
from medseg.tasks.instance.head import Planned
from medseg.tasks.instance.settings import (
    ENOUGH_OBJECTS,
    DenseSettings,
    PrototypeSettings,
    RegionSettings,
    Touching,
    frequencies,
    smallest_for,
)

CELLS = 6.0  # of a level's map along a typical object: with fewer its neighbours share its cells, with more the level costs for nothing
FINEST = 2.0  # voxels; a level at full resolution would cost more than all others
APART = 1.5  # voxels between the cells of a flat mask: outlines of 28 cells overlap discs 42 voxels across by 0.99
LARGE = 0.75  # quantile of the sizes whose masks there is a fine enough level for
MASKS = {2: (14, 28, 56), 3: (8, 14, 20, 28)}  # cells along each axis of a mask, for windows of so many axes
MOST_SHAPES = 3  # anchors of a cell
WELL_FITTED = 0.95  # of the boxes overlap an anchor by half, when both have one centre
HALF = 0.5
ROOM = 1.5  # places for so many times the objects that a window of the densest case shows on average, because they are not spread evenly
FEWEST, MOST = 16, 512  # places for objects in a window
QUANTUM = 8
LARGEST_OVERLAP = 0.75
NEARLY_ALL = 0.95  # of the objects are to be whole in a window
CHANNELS = {"cpu": 64, "gpu": 128}
PROPOSED = 2
FEWEST_SAMPLES, MOST_SAMPLES = 32, 128
PROTOTYPES = 32
REACH = 2.0
MEAN = "An object's confidence is the mean over all windows"
FLAT = "Thresholds from 0.15 to 0.5 make little difference: on 28 images of nuclei left out a detector's PQ was 0.732 to 0.739."

Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class Pyramid:
    """Where objects of which size are looked for.

    Attributes:
        levels: decoder stages.
        anchors: of each level, sides in voxels of the anchors of a cell; equally many on all.
        recall: share of the sampled boxes that overlap an anchor of their level by half, when both have one centre.
    """

    levels: tuple[int, ...]
    anchors: tuple[tuple[tuple[float, ...], ...], ...]
    recall: float


def boxes_in(fingerprint: Fingerprint, frame: Frame) -> Boxes:
    """Sides `(n, d)` of the sampled boxes in voxels of a window, along its axes, at least 1; one box of 8 voxels where no case has an object."""
    sides = [[box[axis] for axis in frame.axes] for case in fingerprint.cases for one in case.objects for box in one.boxes]
    found = np.array(sides, np.float64).reshape(-1, len(frame.axes))
    return np.maximum(found / frame.spacing, 1) if len(found) else np.full((1, len(frame.axes)), 8.0)


def dense_settings(fingerprint: Fingerprint, labels: Labels, frame: Frame) -> Planned:
    """The dense head for these objects in these windows."""
    smallest, of_smallest = smallest_for(fingerprint)
    boxes = boxes_in(fingerprint, frame)
    sides = np.median(boxes, axis=0)
    scale = tuple(float(f"{max(1.0, side / 2):.3g}") for side in sides)
    counts = [sum(one.count for one in case.objects) for case in fingerprint.cases]
    touching, because = touching_for(fingerprint, labels)
    apart = touching == "apart"
    settings = DenseSettings(
        frequencies=frequencies(fingerprint),
        dice=1.0,
        cross_entropy=1.0,
        offset=3.0 if apart else 1.0,
        scale=scale,
        smallest=smallest,
        reach=REACH,
        blob=0.0 if apart else 1.0,
        touching=touching,
    )
    size = " x ".join(f"{side:.3g}" for side in sides)
    reasons = {
        "kind": f"{_objects(fingerprint)}, {np.median(counts):g} in the median case. A class for every voxel, and the way to the centre of its object.",
        "frequencies": "Measured: a network that starts from them need not first learn that most voxels are background.",
        "dice": "Optimises the overlap, whatever the class imbalance.",
        "cross_entropy": "Smooth gradients where the Dice has none.",
        "offset": "Errors are counted in radii of the object, so small and large ones are worth the same; "
        + ("three times, because most errors are objects that are not told apart." if apart else "once, because objects do not touch."),
        "scale": f"Half of the median object's sides, {size} voxels of a window, at least 1, so that outputs are about 1 along each axis."
        if any(counts)
        else "No case has an object.",
        "smallest": of_smallest,
        "reach": "Votes for one centre scatter about it, those for two centres lie further apart than they scatter.",
    }
    if not apart:
        reasons["blob"] = "Each connected component is an object, and each object counts the same, however small."
        reasons["touching"] = because
    return Planned(settings, reasons, *overlap_for(fingerprint, frame))


def touching_for(fingerprint: Fingerprint, labels: Labels) -> tuple[Touching, str]:
    """Whether objects of a class may touch, and the reason."""
    if labels.objects == "components":
        return "corners", "In the labels each connected component is an object, so what touches is one."
    seen = [one for case in fingerprint.cases for one in case.objects if one.count]
    count = sum(one.count for one in seen)
    if count >= ENOUGH_OBJECTS and not any(one.touching for one in seen):
        return "faces", f"None of {count} objects shares a face of a voxel with another one of its class, so what does so is one."
    return "apart", "Objects touch, and votes tell them apart."


def fit_pyramid(boxes: Boxes, strides: tuple[Shape, ...], cells: int) -> Pyramid:
    """Levels for these boxes, and on each the anchors that fit them best.

    Args:
        boxes: `(n, d)` sides in voxels.
        strides: of the decoder stages, finest first.
        cells: per axis, of the map that shows the mask of an object.
    """
    steps = np.array([np.mean(np.log(stride)) for stride in strides])
    able = [level for level, step in enumerate(steps) if step >= math.log(FINEST)] or [len(strides) - 1]
    sizes = np.log(boxes).mean(1)
    nearest = np.abs(sizes[:, None] - (steps[able] + math.log(CELLS))).argmin(1)
    outlined = np.abs(np.quantile(sizes, LARGE, method="nearest") - math.log(cells) - steps[able]).argmin()
    low, high = np.quantile(nearest, [0.02, 0.98], method="nearest")
    low = min(low, outlined)
    levels = able[low : high + 1]
    place = np.clip(nearest - low, 0, len(levels) - 1)
    for shapes in range(1, MOST_SHAPES + 1):
        anchors = [_centres(np.log(boxes[place == k]), shapes, float(steps[level])) for k, level in enumerate(levels)]
        recall = float(np.mean([_overlap(box, np.exp(anchors[k])).max() >= HALF for box, k in zip(boxes, place, strict=True)]))
        if recall >= WELL_FITTED:
            break
    rounded = tuple(tuple(tuple(float(f"{side:.3g}") for side in shape) for shape in np.exp(level)) for level in anchors)
    return Pyramid(tuple(levels), rounded, recall)


def _centres(logs: Boxes, count: int, step: float) -> Boxes:
    """`(count, d)` sides that stand for boxes, all as logarithms: k-means from quantiles of the size, so the same on every machine."""
    if not len(logs):
        return np.full((count, logs.shape[1]), step + math.log(CELLS)) + np.linspace(0, 0.1, count)[:, None]
    order = logs[np.argsort(logs.mean(1), kind="stable")]
    centres = order[np.linspace(0, len(order) - 1, 2 * count + 1).astype(int)[1::2]]
    for _ in range(20):
        nearest = np.square(logs[:, None] - centres).sum(-1).argmin(1)
        centres = np.stack([logs[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)])
    ordered: Boxes = centres[np.argsort(centres.mean(1), kind="stable")]
    return ordered


def _overlap(box: NDArray[np.float64], others: Boxes) -> NDArray[np.float64]:
    """Intersection over union of one box with others about the same centre, from their sides."""
    shared = np.minimum(box, others).prod(-1)
    result: NDArray[np.float64] = shared / (box.prod() + others.prod(-1) - shared)
    return result


def most_objects(fingerprint: Fingerprint, frame: Frame) -> tuple[int, str]:
    """Places for the objects of one window, and the reason."""
    counts = [(_in_window(case, frame), case.id) for case in fingerprint.cases if case.objects]
    densest, name = max(counts, default=(0.0, ""))
    room = -(-math.ceil(ROOM * densest) // QUANTUM) * QUANTUM
    places = min(max(room, FEWEST), MOST)
    if not name:
        return places, "No case has an object."
    because = f"A window of the densest case shows {densest:.3g} object{'s' if densest != 1 else ''} on average; {ROOM:g} times as many, because they "
    because += f"are not spread evenly, at least {FEWEST} and at most {MOST}."
    return places, because


def _in_window(case: CaseStats, frame: Frame) -> float:
    """Objects of a case that a window shows, whole or cut, on average over its places; all of them where the case is no larger."""
    count = sum(one.count for one in case.objects)
    sides = np.array([box for one in case.objects for box in one.boxes], np.float64).reshape(-1, len(case.shape))
    window = dict(zip(frame.axes, np.multiply(frame.window, frame.spacing), strict=True))
    share = 1.0
    for axis, (n, spacing) in enumerate(zip(case.shape, case.spacing, strict=True)):
        reach = window.get(axis, spacing) + (sides[:, axis].mean() if len(sides) else 0.0)  # without an axis here it is one slice
        share *= 1.0 if window.get(axis, 0.0) >= n * spacing else min(1.0, reach / (n * spacing))
    return count * float(share)


def overlap_for(fingerprint: Fingerprint, frame: Frame) -> tuple[float, str]:
    """The overlap of neighbouring windows, as a fraction, in which nearly every object is whole in one of them, and the reason.

    Along an axis on which a case has one window nothing is cut.
    """
    needed = np.concatenate([np.zeros(0), *(_cut(case, frame) for case in fingerprint.cases)])
    if not len(needed):
        return 0.0, "No case has an object."
    if not needed.any():
        return 0.0, "Cases are no larger than a window, so no object is cut."
    largest = float(np.quantile(needed, NEARLY_ALL, method="nearest"))
    overlap = float(f"{math.ceil(100 * min(largest, LARGEST_OVERLAP) - 1e-6) / 100:g}")
    size = " x ".join(f"{n:.3g}" for n in np.quantile(boxes_in(fingerprint, frame), NEARLY_ALL, axis=0, method="nearest"))
    because = (
        f"{NEARLY_ALL:.0%} of the objects are at most {size} voxels; {np.mean(needed <= overlap):.0%} are whole in one of the windows."
    )
    if largest > LARGEST_OVERLAP:
        because += f" For {NEARLY_ALL:.0%} that would take an overlap of {largest:.2g}; more than {LARGEST_OVERLAP:g} would take too long."
    return overlap, because


def _cut(case: CaseStats, frame: Frame) -> NDArray[np.float64]:
    """Of each sampled object, the share of a window's side that it has at most, along the axes on which the case is longer than a window."""
    boxes = np.array([box for one in case.objects for box in one.boxes], np.float64).reshape(-1, len(case.shape))
    shares = np.zeros(len(boxes))
    for axis, n, spacing in zip(frame.axes, frame.window, frame.spacing, strict=True):
        if round(case.shape[axis] * case.spacing[axis] / spacing) > n:
            shares = np.maximum(shares, np.maximum(boxes[:, axis] / spacing, 1) / n)
    return shares


def cells_for(boxes: Boxes, axes: int) -> tuple[int, str]:
    """Cells of an object's mask along each axis, and the reason."""
    steps, apart = MASKS[axes], APART if axes == 2 else 1.0
    side = float(np.quantile(boxes.max(1), LARGE, method="nearest"))
    chosen = next((n for n in steps if n * apart >= side), steps[-1])
    because = f"Three quarters of the objects are at most {side:.3g} voxels long; the first of {', '.join(map(str, steps))} cells, {apart:g} voxels apart"
    return chosen, f"{because} at most, or the last: outlines are drawn between cells, which costs little accuracy."


def said_of_levels(pyramid: Pyramid, boxes: Boxes, strides: tuple[Shape, ...], mask: int) -> str:
    """Why these levels."""
    steps = np.array([np.mean(np.log(strides[level])) for level in pyramid.levels])
    sizes = np.log(boxes).mean(1)
    cells = np.exp(sizes - steps[np.abs(sizes[:, None] - (steps + math.log(CELLS))).argmin(1)])
    low, middle, high = np.quantile(cells, [0.05, 0.5, 0.95], method="nearest")
    several = ", ".join("x".join(map(str, strides[level])) for level in pyramid.levels)
    return (
        f"Strides {several}: along an axis objects have {middle:.2g} cells of the level that is nearest to {CELLS:g} ({low:.2g} to {high:.2g} for nine in "
        f"ten), and there is one from which a mask of {mask} cells, drawn from half as many, can be read."
    )


def told(pyramid: Pyramid, boxes: Boxes, strides: tuple[Shape, ...]) -> str:
    """The anchors in words."""
    parts = [
        f"stride {'x'.join(map(str, strides[level]))}: {', '.join('x'.join(f'{side:g}' for side in shape) for shape in shapes)}"
        for level, shapes in zip(pyramid.levels, pyramid.anchors, strict=True)
    ]
    return (
        f"Fitted to {len(boxes)} boxes, at most {MOST_BOXES} of a class in a case, evenly by size. Recall {pyramid.recall:.0%}: so many overlap an anchor "
        f"of their level by half, where both have one centre ({'; '.join(parts)} voxels)."
    )


def region_settings(fingerprint: Fingerprint, labels: Labels, frame: Frame) -> Planned:
    """Mask R-CNN for these objects in these windows."""
    common = _common(fingerprint, labels, frame)
    settings = RegionSettings(
        **common.settings,
        proposals=PROPOSED * common.settings["slots"],
        cells=7 if len(frame.window) == 2 else 5,
    )
    reasons = {
        "kind": f"{_objects(fingerprint)}. Regions that may hold an object, then its class, box and mask (He et al. 2017).",
        "proposals": f"{PROPOSED} for each place in a window: most turn out to be the same objects.",
        "cells": "7 x 7 as published; 5 along each of three axes, which are about as many cells as are worth their cost.",
    }
    return common._replace(settings=settings, reasons=common.reasons | reasons)


def prototype_settings(fingerprint: Fingerprint, labels: Labels, frame: Frame) -> Planned:
    """YOLACT for these objects in these windows."""
    common = _common(fingerprint, labels, frame)
    reasons = {
        "kind": f"{_objects(fingerprint)}. One pass: each anchor says class, box and how its mask is made of maps common to all (Bolya et al. 2019).",
        "prototypes": "As published.",
    }
    return common._replace(
        settings=PrototypeSettings(**common.settings, prototypes=PROTOTYPES),
        reasons=common.reasons | reasons | {"score": f"{MEAN} that could see it; one that missed it counts as 0. {FLAT}"},
        one_view="None: this network is for real time; views would take several times as long.",
    )


def _objects(fingerprint: Fingerprint) -> str:
    return f"Labels tell objects apart: {sum(one.count for case in fingerprint.cases for one in case.objects)} of them"


def _common(fingerprint: Fingerprint, labels: Labels, frame: Frame) -> Planned:
    """What detectors have in common; `settings` are those as a mapping."""
    boxes, gpu, axes = boxes_in(fingerprint, frame), frame.device != "cpu", len(frame.window)
    stuff = len(labels.things) < len(labels.names)
    mask, length = cells_for(boxes, axes)
    pyramid = fit_pyramid(boxes, frame.levels, mask // 2)
    slots, density = most_objects(fingerprint, frame)
    overlap, cut = overlap_for(fingerprint, frame)
    smallest, of_smallest = smallest_for(fingerprint)
    settings = {
        "levels": pyramid.levels,
        "channels": CHANNELS["gpu" if gpu else "cpu"],
        "anchors": pyramid.anchors,
        "samples": min(max(slots, FEWEST_SAMPLES), MOST_SAMPLES),
        "slots": slots,
        "mask": mask,
        "score": 0.3,
        "smallest": smallest,
    }
    reasons = {
        "levels": said_of_levels(pyramid, boxes, frame.levels, mask),
        "channels": "As in feature pyramid networks, halved."
        if gpu
        else "As many as a level needs to tell objects apart; more would cost a CPU more than the network itself.",
        "anchors": told(pyramid, boxes, frame.levels),
        "samples": f"As many as places, from {FEWEST_SAMPLES} to {MOST_SAMPLES}: more teach little and cost memory.",
        "slots": density,
        "mask": length,
        "score": f"{MEAN} and views (mirrored ones, where inference.mirror plans them) that could see it; one that missed it counts as 0. {FLAT}",
        "smallest": of_smallest,
    }
    if stuff:
        settings |= {"contested": "confident", "semantic": 1.0, "frequencies": frequencies(fingerprint)}
        reasons |= {
            "contested": "As published (Kirillov et al. 2019). On two sections of electron microscopy left out of one training probable had a PQ of 0.661 "
            "against 0.656.",
            "semantic": "Each voxel's class counts as much as an object's.",
            "frequencies": "Measured: a network that starts from them need not first learn that most voxels are background.",
        }
    one_network = (
        "One: what two networks find in half the time each is hardly better together than what one of them finds, so one learns for longer."
    )
    return Planned(settings, reasons, overlap, cut, one_network=one_network)


def nominal(fingerprint: Fingerprint, device: Kind = "cpu") -> Frame:
    """A frame for what is decided before there is any: the median case at its own spacing."""
    shape = np.median([case.shape for case in fingerprint.cases], axis=0)
    spacing = np.median([case.spacing for case in fingerprint.cases], axis=0)
    axes = fingerprint.ndim
    return Frame(
        tuple(int(n) for n in shape), tuple(map(float, spacing)), tuple(range(axes)), tuple((2**k,) * axes for k in range(5)), device
    )
