"""Scores that measure distances between surfaces, in millimetres.

Surfaces are made of surface elements between voxel centres, weighted by their area (3D) or length (2D), as in Nikolov et al. 2021
(Clinically Applicable Segmentation of Head and Neck Anatomy, JMIR 23(7):e26151) and its `surface-distance` code. Unlike counting
boundary voxels, this does not depend on how a surface lies in an anisotropic grid. The normals of the
256 local configurations (`surface_normals.npy`) are those of `surface-distance` and MONAI (both Apache-2.0); MONAI's own function is not
called because importing MONAI takes longer than most evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from medseg.metrics.overlap import Mask

Floats = NDArray[np.float64]
SLACK = 1e-6


@dataclass(frozen=True)
class Surfaces:
    """Distances from each element of one surface to the other surface, sorted ascending, and the elements' areas.

    Attributes:
        to_truth, areas_prediction: elements of the prediction's surface.
        to_prediction, areas_truth: elements of the reference's surface.
    """

    to_truth: Floats
    areas_prediction: Floats
    to_prediction: Floats
    areas_truth: Floats

    @classmethod
    def between(cls, prediction: Mask, truth: Mask, spacing: tuple[float, ...]) -> Surfaces:
        """Measure two masks of one shape, neither of them empty; `spacing` in mm. The border of the array is surface, too."""
        from scipy.spatial import cKDTree

        points_a, areas_a = _elements(prediction, spacing)
        points_b, areas_b = _elements(truth, spacing)
        # Trees over surface points: time and memory grow with the surface, a distance transform's with the volume.
        to_b = np.asarray(cKDTree(points_b).query(points_a)[0], dtype=np.float64)
        to_a = np.asarray(cKDTree(points_a).query(points_b)[0], dtype=np.float64)
        order_a, order_b = np.argsort(to_b, kind="stable"), np.argsort(to_a, kind="stable")
        return cls(to_b[order_a], areas_a[order_a], to_a[order_b], areas_b[order_b])

    def hausdorff(self, percent: float = 95.0) -> float:
        """The larger of the two directed distances within which `percent` of the surface lies (100: the Hausdorff distance)."""
        return max(_percentile(self.to_truth, self.areas_prediction, percent), _percentile(self.to_prediction, self.areas_truth, percent))

    @property
    def average(self) -> float:
        """ASSD: mean distance over both surfaces together."""
        total = self.areas_prediction.sum() + self.areas_truth.sum()
        return float((self.to_truth @ self.areas_prediction + self.to_prediction @ self.areas_truth) / total)

    def dice(self, tolerance: float) -> float:
        """NSD: share of both surfaces that lies within `tolerance` mm of the other one."""
        near = self.areas_prediction[self.to_truth <= tolerance].sum() + self.areas_truth[self.to_prediction <= tolerance].sum()
        return float(near / (self.areas_prediction.sum() + self.areas_truth.sum()))


def _percentile(distances: Floats, areas: Floats, percent: float) -> float:
    if percent >= 100:
        return float(distances[-1])
    cumulated = np.cumsum(areas) / areas.sum()
    # The slack absorbs rounding, so that a share of exactly `percent` does not depend on the order of summation.
    return float(distances[min(int(np.searchsorted(cumulated, percent / 100 - SLACK)), len(distances) - 1)])


def _elements(mask: Mask, spacing: tuple[float, ...]) -> tuple[Floats, Floats]:
    """Positions in mm and areas of the surface elements: cells of `2**d` voxel centres that are neither all inside nor all outside."""
    d = mask.ndim
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([n - 1 for n in padded.shape], dtype=np.uint8)
    for offsets in np.ndindex(*(2,) * d):
        # Most significant bit first, the first axis slowest: the order of the table.
        code <<= 1
        code |= padded[tuple(slice(o, o + n) for o, n in zip(offsets, code.shape, strict=True))]
    cells = np.nonzero((code != 0) & (code != 2 ** (2**d) - 1))
    areas = element_areas(spacing)[code[cells]]
    positions: Floats = np.stack(cells, axis=1).astype(np.float64) * np.asarray(spacing)
    return positions, areas


@lru_cache(maxsize=64)
def element_areas(spacing: tuple[float, ...]) -> Floats:
    """Area (3D) or length (2D) of the surface within a cell, by its code."""
    scale = np.asarray(spacing, dtype=np.float64)
    if len(spacing) == 3:
        with resources.as_file(resources.files("medseg.metrics") / "surface_normals.npy") as path:
            normals = np.load(path, allow_pickle=False) / 8.0  # (256, up to 4 facets, 3): normals as long as the facets' areas
        # Stretching an axis stretches the facets along it, and so the other two components of their normals.
        areas: Floats = np.linalg.norm(normals * (scale.prod() / scale), axis=-1).sum(axis=-1)
        return areas
    corner = 0.5 * math.hypot(*spacing)
    lengths = np.zeros(16)
    for code in range(1, 15):
        a, b, c, d = (code >> 3 & 1, code >> 2 & 1, code >> 1 & 1, code & 1)  # a b over c d, the first axis pointing down
        if a + b + c + d != 2:
            lengths[code] = corner
        elif a == d:
            lengths[code] = 2 * corner
        else:
            lengths[code] = spacing[0] if a == c else spacing[1]
    return lengths
