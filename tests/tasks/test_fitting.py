"""How detectors follow from objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import TWO, make_dataset, make_fingerprint_of

from medseg.fingerprint import Fingerprint, ObjectStats
from medseg.tasks.base import Frame
from medseg.tasks.instance.fitting import (
    MOST,
    boxes_in,
    cells_for,
    dense_settings,
    fit_pyramid,
    most_objects,
    overlap_for,
    prototype_settings,
    region_settings,
    touching_for,
)

THINGS = TWO.as_objects("components")
STRIDES = tuple((2**k,) * 2 for k in range(5))
FRAME = Frame((64, 64), (1.0, 1.0), (0, 1), STRIDES, "cpu")


def seen(boxes: list[tuple[float, ...]], count: int | None = None, shape: tuple[int, ...] = (128, 128)) -> Fingerprint:
    """Every case has these objects."""
    ndim = len(shape)
    made = make_fingerprint_of(make_dataset(THINGS, ndim), shape, (1.0,) * ndim)
    stats = ObjectStats(name=THINGS.names[0], count=len(boxes) if count is None else count, sizes=(9,) * 7, boxes=tuple(boxes))
    return made.model_copy(update={"cases": tuple(case.model_copy(update={"objects": (stats,)}) for case in made.cases)})


def test_boxes_are_in_voxels_of_the_window() -> None:
    fingerprint = seen([(8.0, 4.0, 2.0)], shape=(32, 64, 64))
    frame = Frame((16, 32, 32), (2.0, 1.0, 4.0), (2, 0, 1), (), "cpu")  # the case's last axis comes first
    assert np.unique(boxes_in(fingerprint, frame), axis=0).tolist() == [[1.0, 8.0, 1.0]]
    flat = Frame((32, 32), (1.0, 0.5), (0, 1), (), "cpu")  # slices across the last axis
    assert np.unique(boxes_in(fingerprint, flat), axis=0).tolist() == [[8.0, 8.0]]
    assert boxes_in(seen([]), FRAME).tolist() == [[8.0, 8.0]]


def test_levels_follow_sizes() -> None:
    one = fit_pyramid(np.full((50, 2), 24.0), STRIDES, 7)
    assert one.levels == (2,)  # 24 voxels are 6 cells of stride 4
    assert one.anchors == (((24.0, 24.0),),)
    assert one.recall == 1.0
    wide = fit_pyramid(np.array([[12.0, 12.0]] * 30 + [[100.0, 100.0]] * 30), STRIDES, 7)
    assert wide.levels == (1, 2, 3, 4)
    assert wide.anchors[0] == ((12.0, 12.0),)
    assert wide.anchors[-1] == ((100.0, 100.0),)
    tiny = fit_pyramid(np.full((5, 2), 1.0), STRIDES, 7)
    assert tiny.levels == (1,)  # no level at full resolution
    fine = fit_pyramid(np.full((5, 2), 64.0), STRIDES, 14)
    assert fine.levels == (2, 3)  # masks of 14 cells are read from stride 4, boxes from 8
    assert fit_pyramid(np.full((5, 2), 64.0), ((1, 1),), 14).levels == (0,)  # the network has no other


def test_shapes_are_added_until_boxes_fit() -> None:
    boxes = np.array([[8.0, 32.0]] * 20 + [[32.0, 8.0]] * 20)
    fitted = fit_pyramid(boxes, STRIDES, 4)
    assert fitted.recall == 1.0
    assert {tuple(sorted(shapes)) for shapes in fitted.anchors} >= {((8.0, 32.0), (32.0, 8.0))}
    assert len({len(shapes) for shapes in fitted.anchors}) == 1
    rng = np.random.default_rng(0)
    scattered = fit_pyramid(np.exp(rng.normal(3, 0.3, (400, 3))), tuple((2**k,) * 3 for k in range(5)), 7)
    assert 0.8 < scattered.recall <= 1.0
    assert scattered == fit_pyramid(np.exp(np.random.default_rng(0).normal(3, 0.3, (400, 3))), tuple((2**k,) * 3 for k in range(5)), 7)


def test_places_follow_density() -> None:
    places, because = most_objects(seen([(5.0, 5.0)], count=160), FRAME)
    assert places == 72  # 160 x ((64 + 5) / 128) ** 2 with those that a border cuts, one and a half times as many are 69.7, rounded up to 8
    assert "shows 46.5 objects on average" in because
    assert most_objects(seen([(5.0, 5.0)], count=1), FRAME)[0] == 16
    assert most_objects(seen([(5.0, 5.0)], count=10**5), FRAME)[0] == MOST
    assert most_objects(seen([]), FRAME)[0] == 16
    whole = replace(FRAME, window=(512, 512))
    assert most_objects(seen([(5.0, 5.0)], count=100), whole)[0] == 152  # a case smaller than the window
    slices = seen([(4.0, 5.0, 5.0)], count=320, shape=(40, 64, 64))
    assert most_objects(slices, replace(FRAME, axes=(1, 2)))[0] == 64  # a slice cuts 5 of 40, so 40 of 320


def test_overlap() -> None:
    of = seen([(16.0, 16.0)] * 20)
    assert overlap_for(of, FRAME) == (
        0.25,
        "95% of the objects are at most 16 x 16 voxels; 100% are whole in one of the windows.",
    )
    assert overlap_for(of, replace(FRAME, window=(64, 32)))[0] == 0.5
    assert overlap_for(of, replace(FRAME, spacing=(2.0, 0.5))) == (
        0.5,
        overlap_for(of, FRAME)[1].replace("16 x 16", "8 x 32"),
    )  # the first axis is within one window
    assert overlap_for(of, replace(FRAME, window=(128, 128))) == (0.0, "Cases are no larger than a window, so no object is cut.")
    assert overlap_for(seen([]), FRAME)[0] == 0
    flat = seen([(8.0, 16.0, 16.0)], shape=(8, 256, 256))  # objects that reach through all slices
    assert overlap_for(flat, Frame((8, 64, 64), (1.0,) * 3, (0, 1, 2), (), "cpu"))[0] == 0.25
    mixed, because = overlap_for(seen([(16.0, 16.0)] * 9 + [(100.0, 20.0)]), FRAME)
    assert mixed == 0.75
    assert "; 90% are whole in one of the windows." in because
    assert "For 95% that would take an overlap of 1.6; more than 0.75" in because


def test_votes_reach_as_far_as_things() -> None:
    """Neither classes without objects nor voxels of another grid count."""
    fingerprint = seen([(8.0, 10.0, 20.0)], shape=(32, 64, 64))
    scales = [
        dense_settings(fingerprint, THINGS, Frame((16,) * len(axes), spacing, axes, (), "cpu")).settings.scale
        for axes, spacing in (((0, 1, 2), (1.0,) * 3), ((0, 1, 2), (4.0,) * 3), ((1, 2), (1.0, 1.0)), ((2, 0, 1), (2.0, 1.0, 0.5)))
    ]
    assert scales == [(4.0, 5.0, 10.0), (1.0, 1.25, 2.5), (5.0, 10.0), (5.0, 4.0, 10.0)]
    made = dense_settings(fingerprint, THINGS, Frame((16,) * 3, (2.0,) * 3, (0, 1, 2), (), "cpu"))
    assert "4 x 5 x 10 voxels" in made.reasons["scale"]
    assert (made.settings.touching, made.settings.offset, made.settings.blob) == ("corners", 1.0, 1.0)
    assert made.reasons["touching"] == "In the labels each connected component is an object, so what touches is one."
    numbered = dense_settings(
        fingerprint, THINGS.model_copy(update={"objects": "numbers"}), Frame((16,) * 3, (2.0,) * 3, (0, 1, 2), (), "cpu")
    )
    assert (numbered.settings.touching, numbered.settings.offset, numbered.settings.blob) == ("apart", 3.0, 0.0)
    assert set(type(numbered.settings).model_fields) - set(numbered.reasons) == {"blob", "touching"}
    assert set(made.reasons) == set(type(made.settings).model_fields)


def test_objects_that_never_touch_are_components() -> None:
    numbers = THINGS.model_copy(update={"objects": "numbers"})
    alone = seen([(5.0, 5.0)] * 30, count=30)
    count = 30 * len(alone.cases)
    assert touching_for(alone, THINGS)[0] == "corners"
    assert touching_for(alone, numbers) == (
        "faces",
        f"None of {count} objects shares a face of a voxel with another one of its class, so what does so is one.",
    )
    assert touching_for(seen([(5.0, 5.0)], count=1), numbers)[0] == "apart"  # too few to say so
    one = replace(alone.cases[-1].objects[0], touching=0.1)
    met = alone.model_copy(update={"cases": (*alone.cases[:-1], alone.cases[-1].model_copy(update={"objects": (one,)}))})
    assert touching_for(met, numbers)[0] == "apart"


def test_cells() -> None:
    assert [cells_for(np.full((5, 2), side), 2)[0] for side in (5, 21, 22, 42, 43, 100)] == [14, 14, 28, 28, 56, 56]
    assert [cells_for(np.full((5, 3), side), 3)[0] for side in (5, 14, 15, 100)] == [8, 14, 20, 28]


@pytest.mark.parametrize("made", [region_settings, prototype_settings])
def test_every_setting_has_a_reason(made) -> None:
    planned = made(seen([(10.0, 12.0), (20.0, 18.0)], count=12), THINGS, FRAME)
    of_stuff = {"contested", "semantic", "frequencies"}
    assert set(planned.reasons) == set(type(planned.settings).model_fields) - of_stuff
    assert not of_stuff & set(planned.settings.model_dump())
    assert planned.overlap == 0.32
    assert "Recall 100%" in planned.reasons["anchors"]
    assert (planned.one_view == "") == (made is region_settings)
