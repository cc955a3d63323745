"""Sizes of shapes whose sizes are known."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.geometry import Grid
from medseg.io.dicom.writing.sizes import size_of
from tests.io.dicom.predicted import grid_along


def test_one_voxel_is_as_long_as_it_is() -> None:
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2, 3] = True
    size = size_of(mask, Grid.plain(mask.shape, (3.0, 0.8, 0.7)))
    assert size.voxels == 1
    assert size.content == pytest.approx(3 * 0.8 * 0.7)
    assert size.long_axis == pytest.approx(0.8)
    assert size.short_axis == pytest.approx(0.7)
    assert size.diameter == pytest.approx(3.0)


@pytest.mark.parametrize("direction", ["axial", "sagittal", "oblique"])
def test_a_ball_has_its_diameter_in_every_orientation(direction: str) -> None:
    grid = grid_along((31, 101, 101), direction)
    middle = grid.world((15.0, 50.0, 50.0))
    far = np.linalg.norm(grid.world(np.argwhere(np.ones(grid.shape)).astype(float)) - middle, axis=1).reshape(grid.shape)
    mask = far <= 30
    size = size_of(mask, grid)
    assert size.content == pytest.approx(4 / 3 * np.pi * 30**3, rel=0.02)
    assert size.long_axis == pytest.approx(60, abs=1.2)
    assert size.short_axis == pytest.approx(60, abs=1.2)
    assert size.diameter == pytest.approx(60, abs=3)
    assert size.long_axis <= size.diameter


def test_the_short_axis_is_perpendicular_and_of_the_same_slice() -> None:
    mask = np.zeros((3, 60, 60), bool)
    mask[0, 10:50, 20:22] = True  # long and thin
    mask[2, 20:40, 20:40] = True  # wide, but its diagonal is shorter
    size = size_of(mask, Grid.plain(mask.shape))
    assert size.long_axis == pytest.approx(np.hypot(40, 1), abs=0.2)
    assert size.short_axis < 4


def test_the_short_axis_is_a_chord_not_a_shadow() -> None:
    rows, columns = np.mgrid[:80, :80]
    mask = (columns >= rows // 2 + 5) & (columns <= rows // 2 + 20) & (rows > 5) & (rows < 70)
    size = size_of(mask, Grid.plain(mask.shape))
    points = np.argwhere(mask).astype(float)
    first, second = points[0], points[-1]
    along = (second - first) / np.linalg.norm(second - first)
    shadow = np.ptp(points @ np.array([-along[1], along[0]]))
    assert size.long_axis == pytest.approx(np.linalg.norm(second - first), abs=1.5)
    assert size.short_axis <= shadow + 1.5
    assert size.short_axis > 10


def test_in_2d_there_is_area() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:9] = True
    size = size_of(mask, Grid.plain(mask.shape, (0.5, 2.0)), np.arange(400).reshape(20, 20))
    assert size.content == pytest.approx(40)
    assert size.diameter == size.long_axis == pytest.approx(np.hypot(8, 4.5), abs=0.4)
    assert size.intensity == (np.arange(400).reshape(20, 20)[mask].mean(), 105.0, 288.0)


def test_nothing_has_no_size() -> None:
    size = size_of(np.zeros((4, 4, 4), bool), Grid.plain((4, 4, 4)), np.zeros((4, 4, 4)))
    assert (size.voxels, size.content, size.diameter, size.intensity) == (0, 0.0, 0.0, None)
