"""A tilted gantry: onto an orthogonal grid, and label maps back onto the slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.geometry import Grid
from medseg.io.dicom.conversion import convert
from medseg.io.dicom.reading.reader import read_voxels, scan, to_acquired
from tests.io.dicom.phantoms import write_series


def _sheared(shape: tuple[int, int, int], degrees: float) -> Grid:
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:3, 0] = (0, 0, 4.0)  # the table moves along z
    affine[:3, 1] = (0, 0.8 * np.cos(angle), -0.8 * np.sin(angle))
    affine[:3, 2] = (0.8, 0, 0)
    affine[:3, 3] = (-30, 10, 5)
    return Grid(shape, affine)


def _ramp(grid: Grid) -> np.ndarray:
    """Values that are linear in the world: resampling does not change them."""
    points = grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).astype(np.float64))
    return np.rint(10 * (points @ [1.0, 2.0, 3.0])).astype(np.int16)


@pytest.mark.parametrize("degrees", [14.0, -22.5])
def test_tilt_is_levelled(tmp_path: Path, degrees: float) -> None:
    sheared = _sheared((7, 40, 12), degrees)
    write_series(tmp_path, _ramp(sheared), sheared)
    (volume,) = scan(tmp_path).volumes
    assert not volume.errors
    assert f"found {abs(degrees):.2f} degrees" in str(volume.warnings[-1])
    assert volume.tilted is not None
    assert np.allclose(volume.tilted.affine, sheared.affine, atol=1e-6)
    axes = volume.grid.direction
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert volume.grid.spacing == pytest.approx((4.0 * np.cos(np.radians(degrees)), 0.8, 0.8), rel=1e-5)
    values = read_voxels(volume)[0]
    inside = values > values.min()
    assert inside.mean() > 0.75
    difference = np.abs(values - _ramp(volume.grid))[inside]
    assert (difference <= 1).mean() > 0.95  # rounding of both
    assert difference.max() <= 10 * 0.4 * 3  # half a pixel beyond the outer centres


def test_labels_return_to_the_acquired_slices(tmp_path: Path) -> None:
    sheared = _sheared((7, 40, 12), 14.0)
    write_series(tmp_path, _ramp(sheared), sheared)
    (volume,) = scan(tmp_path).volumes
    assert volume.tilted is not None
    z, y, x = np.indices(volume.grid.shape)
    world = volume.grid.world(np.stack([z, y, x], -1).astype(np.float64))
    labels = (np.linalg.norm(world - sheared.world((3, 20, 6)), axis=-1) < 7).astype(np.uint8)
    back = to_acquired(volume, labels)
    z, y, x = np.indices(sheared.shape)
    expected = np.linalg.norm(sheared.world(np.stack([z, y, x], -1).astype(np.float64)) - sheared.world((3, 20, 6)), axis=-1) < 7
    assert back.shape == sheared.shape
    assert back.dtype == np.uint8
    overlap = 2 * (expected & (back > 0)).sum() / (expected.sum() + (back > 0).sum())
    assert overlap > 0.93
    assert labels.sum() > 100


def test_without_a_tilt_labels_stay_as_they_are(tmp_path: Path) -> None:
    grid = _sheared((3, 8, 6), 0.0)
    write_series(tmp_path, _ramp(grid), grid)
    (volume,) = scan(tmp_path).volumes
    labels = np.ones(grid.shape, np.uint8)
    assert volume.tilted is None
    assert to_acquired(volume, labels) is labels


def test_tilt_is_refused_by_option(tmp_path: Path) -> None:
    sheared = _sheared((5, 40, 12), 14.0)
    write_series(tmp_path / "in", _ramp(sheared), sheared)
    done = convert(scan(tmp_path / "in"), tmp_path / "out", tilt="refuse")
    assert not done.written
    assert "the slices are sheared by a tilt of the gantry" in str(done.failed[0][1][0])
