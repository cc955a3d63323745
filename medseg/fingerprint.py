"""What planning knows of a dataset: numbers per case, and their summary. Holds no image and no patient identifier but the case id."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from medseg.dataset import Channel, Labels
from medseg.record import Record, compact_json


class Intensities(Record):
    """Intensities of one channel within the foreground (within the whole case where it has no foreground).

    `quantiles` holds the values at `QUANTILES` probabilities, evenly spaced from 0 to 1.
    """

    count: int = Field(ge=0)
    mean: float
    std: float = Field(ge=0)
    quantiles: tuple[float, ...]

    def percentile(self, q: float) -> float:
        """The value at `q` per cent, linear between the stored quantiles."""
        position = q / 100 * (len(self.quantiles) - 1)
        low = min(int(position), len(self.quantiles) - 2)
        return self.quantiles[low] + (position - low) * (self.quantiles[low + 1] - self.quantiles[low])


QUANTILES = 201  # every half per cent


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ClassStats:
    """One class in one case. Not a `Record`, because there are many: as one, it would take four times the memory.

    Attributes:
        voxels: number of voxels.
        volume: in mm^3 (mm^2 in 2D; voxels where there is no spacing).
        components: number of connected components (full connectivity); of a thing, of its objects.
        sizes: component sizes (of a thing, sizes of its objects) in voxels at the quantiles 0, 25, 50, 75, 100 %; empty when the class is absent.
        box: bounding box as (start, stop) per axis; empty when absent.
    """

    voxels: int
    volume: float
    components: int
    sizes: tuple[int, ...] = ()
    box: tuple[tuple[int, int], ...] = ()


MOST_BOXES = 32
OBJECT_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ObjectStats:
    """The objects of one class in one case; tuples hold the values at `OBJECT_QUANTILES`, and are empty where there is none.

    Attributes:
        name: of the class.
        count: number of objects.
        sizes: in voxels.
        extents: longest side of an object's box, in mm (voxels where there is no spacing).
        aspects: longest over shortest side of an object's box, in mm.
        boxes: sides of the boxes of at most `MOST_BOXES` objects along each axis, in mm: evenly from the smallest to the largest.
        touching: share of the objects that share a face of a voxel with another object of their class.
    """

    name: str
    count: int
    sizes: tuple[int, ...] = ()
    extents: tuple[float, ...] = ()
    aspects: tuple[float, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    touching: float = 0.0


class CaseStats(Record):
    """One case's share of the fingerprint, on its canonical grid.

    Attributes:
        shape, spacing: of the whole case.
        cropped: shape of the box of voxels that are not zero in every channel.
        zeros: fraction of voxels that are zero in every channel.
        channels: one per channel; none in a fingerprint, which holds them pooled.
        classes: one per class, in the order of `Labels.classes`.
        ignored: number of voxels without annotation; written where there are any.
        objects: one per thing, in the order of `Labels.classes`; written where there are any.
    """

    seldom: ClassVar[tuple[str, ...]] = ("ignored", "objects")

    id: str
    digest: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    cropped: tuple[int, ...]
    zeros: float
    channels: tuple[Intensities, ...] = ()
    classes: tuple[ClassStats, ...]
    ignored: int = 0
    objects: tuple[ObjectStats, ...] = ()


class Fingerprint(Record):
    """The summary a plan is made from.

    Attributes:
        dataset: name of the dataset.
        digest: changes with any byte of any image or label.
        channels, labels: as the dataset declares them.
        intensities: one per channel, over all cases, each case with the same weight.
        cases: sorted by id.
    """

    dataset: str
    digest: str
    ndim: int
    channels: tuple[Channel, ...]
    labels: Labels
    intensities: tuple[Intensities, ...]
    cases: tuple[CaseStats, ...] = Field(min_length=1)

    def to_json(self) -> str:
        """See `Record.to_json`; here every case has one line, and is written by itself, so that there is never a second copy of all."""
        rest = compact_json(self.model_dump(mode="json", exclude={"cases"})).removesuffix("}").rstrip()
        cases = ",\n    ".join(case.model_dump_json() for case in self.cases)
        return f'{rest},\n  "cases": [\n    {cases}\n  ]\n}}\n'
