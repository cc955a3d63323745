"""Fingerprints after published descriptions of well-known datasets, for golden plans: large, anisotropic, multi-channel, and flat data.

They are made up: sizes, spacings, channels and classes are the published ones; volumes and intensities are plausible. A file holds a few
cases' measurements and the number of cases that the dataset has; the fingerprint repeats the few until it has so many.

`python tests/golden/published.py` writes the files in `plans/fingerprints`.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np

from medseg.dataset import CaseFiles, Channel, Dataset, LabelClass, Labels, Modality
from medseg.fingerprint import QUANTILES, CaseStats, ClassStats, Fingerprint, Intensities
from medseg.record import Record

FOLDER = Path(__file__).resolve().parents[2] / "plans" / "fingerprints"


class Published(Record):
    """A fingerprint of a few cases that stand for `cases`, and where its numbers come from."""

    note: str
    cases: int
    fingerprint: Fingerprint

    def full(self) -> Fingerprint:
        """The fingerprint of as many cases as the dataset has."""
        few = itertools.cycle(self.fingerprint.cases)
        cases = tuple(case.model_copy(update={"id": f"case_{i:04}"}) for i, case in zip(range(self.cases), few, strict=False))
        return self.fingerprint.model_copy(update={"cases": cases})

    def dataset(self) -> Dataset:
        """A dataset without files."""
        seen = self.fingerprint
        ids = [f"case_{i:04}" for i in range(self.cases)]
        return Dataset(
            name=seen.dataset,
            root=Path("nowhere"),
            layout="nnunet",
            task="semantic",
            domain="grid",
            ndim=seen.ndim,
            channels=seen.channels,
            labels=seen.labels,
            cases=tuple(CaseFiles(id=i, images=(Path(f"{i}.nii.gz"),), label=Path(f"{i}.nii.gz"), group=i) for i in ids),
        )


def made(
    name: str,
    channels: tuple[Channel, ...],
    labels: Labels,
    shapes: list[tuple[int, ...]],
    spacings: list[tuple[float, ...]],
    kept: float,
    shares: list[float],
    intensities: list[tuple[float, float]],
) -> Fingerprint:
    """A fingerprint of as many cases as there are shapes.

    Args:
        kept: length of the nonzero box along each axis, as a share of the case's.
        shares: of each class of a case's voxels.
        intensities: mean and standard deviation of each channel within the foreground.
    """
    cases = []
    for index, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True)):
        box = tuple((n // 4, n - n // 4) for n in shape)
        voxels = [max(1, round(share * math.prod(shape))) for share in shares]
        cases.append(
            CaseStats(
                id=f"{index}",
                digest=f"{index:016x}",
                shape=shape,
                spacing=spacing,
                cropped=tuple(max(1, round(n * kept)) for n in shape),
                zeros=round(1 - kept ** len(shape), 3),
                classes=tuple(
                    ClassStats(voxels=n, volume=round(n * math.prod(spacing), 3), components=1, sizes=(n,) * 5, box=box) for n in voxels
                ),
            )
        )
    normal = np.linspace(-2.5, 2.5, QUANTILES)
    pooled = tuple(
        Intensities(count=10_000, mean=mean, std=std, quantiles=tuple(round(float(mean + std * q), 3) for q in normal))
        for mean, std in intensities
    )
    return Fingerprint(
        dataset=name, digest="0" * 16, ndim=len(shapes[0]), channels=channels, labels=labels, intensities=pooled, cases=tuple(cases)
    )


def written() -> dict[str, Published]:
    """All of them, by name."""
    organs = Labels(classes=tuple(LabelClass(name=f"structure {i}", values=(i,)) for i in range(1, 101)))
    prostate = Labels(classes=(LabelClass(name="peripheral zone", values=(1,)), LabelClass(name="transition zone", values=(2,))))
    tumour = Labels(
        classes=(
            LabelClass(name="whole tumour", values=(1, 2, 3)),
            LabelClass(name="tumour core", values=(2, 3)),
            LabelClass(name="enhancing tumour", values=(3,)),
        ),
        order=(1, 2, 3),
    )
    vessels = Labels(classes=(LabelClass(name="vessel", values=(1,)),))
    mr = Modality.mr
    depths = (340, 400, 460)
    slices = (16, 18, 20, 20, 24)
    return {
        "ct_100": Published(
            note="Made up: CT of the trunk with 100 structures, 512 x 512 x about 400 voxels of 0.8 mm.",
            cases=300,
            fingerprint=made(
                "CT with 100 classes",
                (Channel(name="CT", modality=Modality.ct),),
                organs,
                [(n, 512, 512) for n in depths],
                [(0.8, 0.8, 0.8)] * 3,
                1.0,
                [0.03 / i for i in range(1, 101)],
                [(60.0, 120.0)],
            ),
        ),
        "prostate": Published(
            note="Made up after the Decathlon's prostate: two MR channels, 320 x 320 x about 20 voxels of 0.6 x 0.6 x 3.6 mm, 32 cases.",
            cases=32,
            fingerprint=made(
                "Prostate MR",
                (Channel(name="T2", modality=mr), Channel(name="ADC", modality=mr)),
                prostate,
                [(n, 320, 320) for n in slices],
                [(3.6, 0.6, 0.6)] * 5,
                1.0,
                [0.008, 0.018],
                [(300.0, 90.0), (1100.0, 300.0)],
            ),
        ),
        "brain_tumour": Published(
            note="Made up after BraTS: four MR channels without skull, 240 x 240 x 155 voxels of 1 mm, three nested regions, 484 cases.",
            cases=484,
            fingerprint=made(
                "Brain tumour MR",
                tuple(Channel(name=name, modality=mr) for name in ("FLAIR", "T1", "T1 with contrast", "T2")),
                tumour,
                [(155, 240, 240)] * 3,
                [(1.0, 1.0, 1.0)] * 3,
                0.68,
                [0.011, 0.004, 0.002],
                [(600.0, 200.0), (500.0, 150.0), (700.0, 250.0), (650.0, 220.0)],
            ),
        ),
        "retina": Published(
            note="Made up after DRIVE: colour photographs of the retina, 565 x 584 pixels, vessels, 40 cases.",
            cases=40,
            fingerprint=made(
                "Retina photographs",
                tuple(Channel(name=name, modality=Modality.rgb) for name in ("red", "green", "blue")),
                vessels,
                [(584, 565)] * 3,
                [(1.0, 1.0)] * 3,
                1.0,
                [0.085],
                [(130.0, 40.0), (70.0, 20.0), (40.0, 12.0)],
            ),
        ),
    }


if __name__ == "__main__":
    for name, one in written().items():
        one.save(FOLDER / f"{name}.json")
