"""Volumes on any grid whose values are a known function of the place in the world."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from medseg.geometry import Grid

WEIGHTS = np.array([0.7, -1.3, 2.1])


def oblique(shape, spacing, origin=(0.0, 0.0, 0.0), turn=0.0, tilt=0.0) -> Grid:
    """A grid `(Z, Y, X)` turned about z, then tilted about x (radians)."""
    c, s, a, b = np.cos(turn), np.sin(turn), np.cos(tilt), np.sin(tilt)
    axes = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, a, -b], [0, b, a]])
    affine = np.eye(4)
    affine[:3, :3] = (axes * np.array(spacing[::-1]))[:, ::-1]
    affine[:3, 3] = origin
    return Grid(shape, affine)


def centres(grid: Grid) -> np.ndarray:
    """World positions of all voxels, `(*shape, 3)`."""
    return grid.world(np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1).astype(float))


def field(grid: Grid, offset: float = 50.0) -> np.ndarray:
    """A function that is linear in the world, so that linear interpolation must give it exactly."""
    return centres(grid) @ WEIGHTS + offset


def between_centres(source: Grid, target: Grid) -> np.ndarray:
    """Which voxels of `target` lie between voxel centres of `source`."""
    index = np.linalg.solve(source.affine, np.concatenate([centres(target), np.ones((*target.shape, 1))], axis=-1)[..., None])[..., :3, 0]
    return np.all((index >= 0) & (index <= np.array(source.shape) - 1), axis=-1)


def save(path: Path, grid: Grid, values: np.ndarray) -> Path:
    """As NIfTI, `values` `(*shape)` or `(C, *shape)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine[:, [2, 1, 0, 3]]
    data = np.moveaxis(values, 0, -1).transpose(2, 1, 0, 3) if values.ndim == 4 else values.transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data), ras), path)
    return path
