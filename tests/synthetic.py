"""Made-up datasets, fingerprints and plans for tests that need no images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from medseg.dataset import CaseFiles, Channel, Dataset, LabelClass, Labels, Modality
from medseg.device import Machine
from medseg.fingerprint import QUANTILES, CaseStats, ClassStats, Fingerprint, Intensities

TWO = Labels(classes=(LabelClass(name="anterior", values=(1,)), LabelClass(name="posterior", values=(2,))))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2, 4)), LabelClass(name="core", values=(2, 4)), LabelClass(name="hot", values=(4,))),
    order=(1, 2, 4),
)


def make_dataset(labels: Labels = TWO, ndim: int = 3, cases: int = 20, modality: Modality = Modality.mr) -> Dataset:
    return Dataset(
        name="made up",
        root=Path("nowhere"),
        layout="msd",
        task="semantic",
        domain="grid",
        ndim=ndim,
        channels=(Channel(name="scan", modality=modality),),
        labels=labels,
        cases=tuple(
            CaseFiles(id=f"case_{i:02}", images=(Path(f"i{i}.nii.gz"),), label=Path(f"l{i}.nii.gz"), group=f"case_{i:02}")
            for i in range(cases)
        ),
    )


def make_intensities(mean: float = 100.0, std: float = 20.0) -> Intensities:
    quantiles = tuple(float(v) for v in np.linspace(mean - 2 * std, mean + 2 * std, QUANTILES))
    return Intensities(count=1000, mean=mean, std=std, quantiles=quantiles)


def make_fingerprint_of(
    dataset: Dataset,
    shape: tuple[int, ...] = (36, 50, 35),
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    voxels: tuple[int, ...] | None = None,
) -> Fingerprint:
    counts = voxels or (500,) * len(dataset.labels.classes)
    box = tuple((2, n - 2) for n in shape)
    classes = tuple(
        ClassStats(voxels=n, volume=n * math.prod(spacing), components=1, sizes=(n,) * 5, box=box)
        if n
        else ClassStats(voxels=0, volume=0, components=0)
        for n in counts
    )
    stats = [
        CaseStats(
            id=c.id,
            digest="0" * 16,
            shape=shape,
            spacing=spacing,
            cropped=shape,
            zeros=0.0,
            channels=(make_intensities(),),
            classes=classes,
        )
        for c in dataset.cases
    ]
    return Fingerprint(
        dataset=dataset.name,
        digest="1" * 16,
        ndim=dataset.ndim,
        channels=dataset.channels,
        labels=dataset.labels,
        intensities=(make_intensities(),),
        cases=tuple(stats),
    )


def make_plan(
    labels: Labels = TWO,
    ndim: int = 3,
    machine: Machine = Machine("cpu", 8.0),  # noqa: B008  (frozen)
    shape: tuple[int, ...] = (36, 50, 35),
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    task: str = "semantic",
):
    from medseg.planning.planner import make_plans

    dataset = make_dataset(labels, ndim)
    fingerprint = make_fingerprint_of(dataset, shape[-ndim:], spacing[-ndim:])
    plans = make_plans(dataset, fingerprint, task=task, domain="grid", network="unet", machine=machine)
    return next(p for p in plans if p.recommended)
