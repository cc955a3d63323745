"""Votes or regions, as it follows from objects and windows."""

from __future__ import annotations

import pytest
from synthetic import TWO, make_dataset, make_fingerprint_of

from medseg.device import Machine
from medseg.fingerprint import Fingerprint, ObjectStats
from medseg.planning.planner import make_plans
from medseg.tasks.base import Frame
from medseg.tasks.instance.choice import prefers_regions

THINGS = TWO.as_objects("codes")
FLAT = Frame((64, 64), (1.0, 1.0), (0, 1), (), "cpu")
DEEP = Frame((32, 64, 64), (1.0, 1.0, 1.0), (0, 1, 2), (), "cpu")


def seen(side: float, share: float, shape: tuple[int, ...]) -> Fingerprint:
    """Every case has 20 objects in cubes with this side, of which they fill a share."""
    ndim = len(shape)
    made = make_fingerprint_of(make_dataset(THINGS, ndim), shape, (1.0,) * ndim)
    stats = ObjectStats(name=THINGS.names[0], count=20, sizes=(round(share * side**ndim),) * 7, boxes=((side,) * ndim,) * 20, touching=0.2)
    return made.model_copy(update={"cases": tuple(case.model_copy(update={"objects": (stats,)}) for case in made.cases)})


def test_boxes_decide_in_planes() -> None:
    boxed, because = prefers_regions(seen(10, 0.5, (128, 128)), THINGS, FLAT)
    assert boxed
    assert because.startswith("Objects fill 50% of their boxes (at least 10%), so boxes tell them apart.")
    boxed, because = prefers_regions(seen(10, 0.05, (128, 128)), THINGS, FLAT)
    assert not boxed
    assert because == "Objects fill 5% of their boxes (less than 10%), so boxes of neighbours are much the same, and votes tell more."
    none = make_fingerprint_of(make_dataset(THINGS, 2), (128, 128), (1.0, 1.0))
    assert prefers_regions(none, THINGS, FLAT) == (False, "No case has an object whose box could be measured, so boxes are not relied on.")


def test_classes_decide_where_nothing_touches() -> None:
    boxed, because = prefers_regions(seen(10, 0.5, (128, 128)), THINGS.model_copy(update={"objects": "components"}), FLAT)
    assert not boxed
    assert because.startswith("In the labels each connected component is an object, so what touches is one. So objects follow from a class")


def test_outlines_decide_in_volumes() -> None:
    fingerprint = seen(28, 0.5, (64, 128, 128))
    boxed, because = prefers_regions(fingerprint, THINGS, DEEP)
    assert not boxed
    assert because.startswith("Votes draw outlines voxel by voxel")
    assert "cells of a mask" not in because
    finer = Frame(DEEP.window, (0.5,) * 3, DEEP.axes, (), "cpu")  # 56 voxels of the window
    assert (
        "at least 56 voxels long, of which 2 share one of the at most 28 cells of a mask;" in prefers_regions(fingerprint, THINGS, finer)[1]
    )
    assert prefers_regions(fingerprint, THINGS, FLAT)[0]  # slice by slice
    assert "fill 5%" in prefers_regions(seen(20, 0.05, (64, 128, 128)), THINGS, DEEP)[1]


@pytest.mark.parametrize(
    ("shape", "share", "name"),
    [((128, 128), 0.5, "2d_mask-rcnn"), ((128, 128), 0.05, "2d"), ((32, 32, 32), 0.5, "3d"), ((6, 32, 32), 0.5, "2d_mask-rcnn")],
    ids=["discs", "threads", "balls", "few-slices"],
)
def test_each_configuration_has_its_own_choice(shape: tuple[int, ...], share: float, name: str) -> None:
    """Where slices are few they are seen one by one, so what holds in planes holds there."""
    plans = make_plans(
        make_dataset(THINGS, len(shape)), seen(8, share, shape), task="instance", domain="grid", network=None, machine=Machine("cpu", 8.0)
    )
    best = next(plan for plan in plans if plan.recommended)
    assert best.name == name
    how = "Objects by Mask R-CNN. " if name.endswith("mask-rcnn") else "Objects by votes for their centres. "
    assert how in best.reasons["recommended"]
    assert all(name in plan.reasons["recommended"] for plan in plans if plan is not best)
