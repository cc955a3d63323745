"""One case's share of the fingerprint."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.case import Case
from medseg.dataset import LabelClass, Labels
from medseg.domains.grid.objects import measure_objects
from medseg.fingerprint import QUANTILES, CaseStats, ClassStats, Intensities
from medseg.imaging.components import component_sizes
from medseg.imaging.crop import bounding_box, nonzero
from medseg.io.grids import field_of_view

MOST_VALUES = 2**22  # values per channel that quantiles are taken of; more change no decision


def measure_case(case: Case, labels: Labels, digest: str) -> CaseStats:
    """Shapes, intensities and class sizes of a case on its canonical grid. Without a label the classes are absent."""
    step = case.grid.canonical()
    grid = step.grid(case.grid)
    image = step.apply(case.image)
    codes = None if case.label is None else step.apply(case.label)
    label = None if codes is None else labels.semantic(codes)
    things = () if codes is None else measure_objects(codes, labels, grid.spacing)
    mask = nonzero(image)
    box = bounding_box(mask)
    foreground = None if label is None else np.isin(label, labels.values)
    return CaseStats(
        id=case.id,
        digest=digest,
        shape=grid.shape,
        spacing=tuple(round(s, 6) for s in grid.spacing),
        cropped=tuple(b - a for a, b in box) or grid.shape,
        zeros=round(1 - float(mask.mean()), 6),
        channels=tuple(
            _intensities(channel, foreground, None if (source := case.field(k)) is None else field_of_view(source, grid))
            for k, channel in enumerate(image)
        ),
        classes=tuple(_class(label, c, codes if c.name in labels.things else None, float(np.prod(grid.spacing))) for c in labels.classes),
        ignored=0 if label is None or labels.ignore is None else int(np.count_nonzero(label == labels.ignore)),
        objects=things,
    )


def _intensities(channel: NDArray[Any], foreground: NDArray[np.bool_] | None, measured: NDArray[np.bool_] | None) -> Intensities:
    """Of the foreground within the channel's field of view, or of the whole field of view where there is none."""
    if foreground is not None and measured is not None:
        foreground = foreground & measured
    counted = foreground if foreground is not None and foreground.any() else measured
    values = channel.reshape(-1) if counted is None else channel[counted]
    quantiles = np.quantile(values[:: max(1, values.size // MOST_VALUES)].astype(np.float64), np.linspace(0, 1, QUANTILES))
    quantiles[0], quantiles[-1] = values.min(), values.max()
    return Intensities(
        count=int(values.size),
        mean=_significant(values.mean(dtype=np.float64)),
        std=_significant(values.std(dtype=np.float64)),
        quantiles=tuple(_significant(q) for q in quantiles),
    )


def _significant(value: float) -> float:
    """Seven significant digits: the last bits of a sum depend on the machine, and plans must not."""
    return float(f"{float(value):.7g}")


def _class(label: NDArray[Any] | None, item: LabelClass, codes: NDArray[Any] | None, volume: float) -> ClassStats:
    """`codes` tell the objects of a thing apart."""
    mask = None if label is None else np.isin(label, item.values)
    box = () if mask is None else bounding_box(mask)
    if mask is None or not box:
        return ClassStats(voxels=0, volume=0, components=0)
    sizes = component_sizes(mask[tuple(slice(a, b) for a, b in box)]) if codes is None else np.unique(codes[mask], return_counts=True)[1]
    voxels = int(sizes.sum())
    quartiles = tuple(int(q) for q in np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1), method="nearest"))
    return ClassStats(voxels=voxels, volume=_significant(voxels * volume), components=int(sizes.size), sizes=quartiles, box=box)
