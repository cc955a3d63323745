"""Grids and steps: where a voxel lies in the world never changes, whatever is done to the array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.geometry import Crop, Grid, Reorient, Resample


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.lists(st.integers(2, 7), min_size=ndim, max_size=ndim)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    rotation, _ = np.linalg.qr(rng.standard_normal((ndim, ndim)))
    affine = np.eye(ndim + 1)
    affine[:ndim, :ndim] = rotation * rng.uniform(0.3, 5, ndim)
    affine[:ndim, -1] = rng.uniform(-200, 200, ndim)
    return Grid(shape, affine)


def positions(grid: Grid) -> np.ndarray:
    """World coordinates of every voxel, `(d, *shape)`."""
    index = np.moveaxis(np.indices(grid.shape, dtype=np.float64), 0, -1)
    return np.moveaxis(grid.world(index), -1, 0)


@given(grids())
def test_reorienting_moves_no_voxel_in_the_world(grid: Grid) -> None:
    step = grid.canonical()
    np.testing.assert_allclose(step.apply(positions(grid)), positions(step.grid(grid)), atol=1e-9)
    array = np.random.default_rng(0).integers(0, 9, (2, *grid.shape))
    assert np.array_equal(step.undo(step.apply(array)), array)
    assert step.grid(grid).canonical() == Reorient(axes=tuple(range(grid.ndim)), flips=(False,) * grid.ndim)


@given(grids(), st.data())
def test_cropping_moves_no_voxel_and_is_undone(grid: Grid, data: st.DataObject) -> None:
    start = tuple(data.draw(st.integers(0, n - 1)) for n in grid.shape)
    shape = tuple(data.draw(st.integers(1, n - a)) for n, a in zip(grid.shape, start, strict=True))
    step = Crop(start=start, shape=shape, source=grid.shape)
    np.testing.assert_allclose(step.apply(positions(grid)), positions(step.grid(grid)), atol=1e-9)
    array = np.random.default_rng(0).integers(1, 9, grid.shape)
    restored = step.undo(step.apply(array), fill=0)
    assert np.array_equal(restored[step.box], array[step.box])
    restored[step.box] = 0
    assert not restored.any()


@given(grids(), st.data())
def test_resampling_keeps_the_extent(grid: Grid, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 12)) for _ in grid.shape)
    finer = Resample(source=grid.shape, shape=shape).grid(grid)
    outer = (-0.5,) * grid.ndim
    np.testing.assert_allclose(grid.world(outer), finer.world(outer), atol=1e-8)
    far_old, far_new = (tuple(n - 0.5 for n in size) for size in (grid.shape, shape))
    np.testing.assert_allclose(grid.world(far_old), finer.world(far_new), atol=1e-8)
    np.testing.assert_allclose(np.multiply(finer.spacing, shape), np.multiply(grid.spacing, grid.shape), rtol=1e-9)


def test_plain_grids_and_distances() -> None:
    grid = Grid.plain((4, 5, 6), (3.0, 2.0, 1.0))
    assert grid.spacing == (3.0, 2.0, 1.0)
    assert grid.world((1, 1, 1)).tolist() == [1.0, 2.0, 3.0]
    moved = Grid(grid.shape, grid.affine + np.array([[0, 0, 0, 3.0], [0, 0, 0, 4.0], [0] * 4, [0] * 4]))
    assert grid.distance(moved) == pytest.approx(5.0)
    assert grid != moved
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 2
    with pytest.raises(ValueError, match="4x4 affine"):
        Grid((2, 2, 2), np.eye(3))
