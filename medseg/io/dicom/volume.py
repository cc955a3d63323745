"""What is known of DICOM data before a pixel is read: where slices lie, which of them are a volume, and what is wrong with the others.

Nothing of this is written to logs, MLflow or reports: series and their descriptions name patients and studies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.errors import ImageError, Problem
from medseg.geometry import Grid

SUFFIX = ".series"
"""The name of a volume is `<folder or zip of its files>/<key>.series`: no file, but what stands for one wherever an image's path is asked."""
WEIGHTED = "_b"
"""Between the key of a volume of several diffusion weightings and the one that is meant, in its name."""
LABELS = ".labels"
"""The end of the name of a label map that exists only as SEG or RTSTRUCT (see `medseg.io.dicom.reading.labels`)."""


@dataclass(frozen=True)
class Source:
    """Where the bytes of one DICOM file lie: a file, or a member of a zip archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)


@dataclass(frozen=True)
class Frame:
    """One slice of a volume.

    Attributes:
        source: the file.
        sop_class: SOP Class UID.
        sop_uid: SOP Instance UID.
        index: which frame of a multi-frame file, from 0; None for a file that holds one image.
        tile: which tile of a Siemens mosaic, from 0; None for others.
    """

    source: Source
    sop_class: str
    sop_uid: str
    index: int | None = None
    tile: int | None = None


@dataclass(frozen=True)
class Series:
    """What the headers of a series say; texts as in the file, empty where they say nothing.

    Attributes:
        uid: Series Instance UID.
        study: Study Instance UID.
        world: Frame of Reference UID.
        modality: `CT`, `MR`, `PT`, ...
        number: Series Number.
        description: Series Description.
        protocol: Protocol Name.
        sequence: Scanning Sequence, Sequence Variant, Sequence Name, contrast agent; in one text.
        body: Body Part Examined.
        kind: Image Type, joined by backslashes.
    """

    uid: str
    study: str
    world: str
    modality: str
    number: int | None = None
    description: str = ""
    protocol: str = ""
    sequence: str = ""
    body: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Volume:
    """Slices of one series that lie on one grid: a volume, a time series of volumes, or an image in 2D. A series may hold several.

    The array of a volume is `(T * samples, Z, Y, X)`, or `(T * samples, Y, X)` in 2D: rows and columns as they are stored, slices in the
    order of their positions along the normal (the cross product of row and column direction), time points in order.

    Attributes:
        key: 16 hexadecimal digits, a digest of UIDs: names the volume without telling them.
        folder: the deepest folder, or the zip archive, that holds all its files.
        series: what the headers say.
        grid: of the array that is read, LPS millimetres.
        spaced: whether the files say where in the patient the voxels lie; images in 2D, and some broken files, do not.
        frames: `frames[t][z]`, in the order of the array.
        times: one per time point, in seconds where the files tell the time, else 0, 1, ...
        weights: the diffusion weighting (b value) of each time point in s/mm2; empty where the files do not say it of all.
        samples: values per voxel: 1, or 3 for colour.
        dtype: numpy name of the type of the values as they are read, after rescaling.
        tilted: the grid of the slices as they were acquired, where a gantry tilt shears it; `grid` is then an orthogonal one onto which
            slices are resampled.
        warnings: oddities that do not prevent reading.
        errors: why the volume cannot be used; empty for one that can.
    """

    key: str
    folder: Path
    series: Series
    grid: Grid
    spaced: bool
    frames: tuple[tuple[Frame, ...], ...]
    times: tuple[float, ...] = (0.0,)
    samples: int = 1
    dtype: str = "int16"
    tilted: Grid | None = None
    warnings: tuple[Problem, ...] = ()
    errors: tuple[Problem, ...] = ()
    weights: tuple[float, ...] = ()

    def weighted(self, b: float) -> Volume:
        """Of diffusion weightings, the volume with this one, under a name of its own.

        Raises:
            ImageError: none has it, or several have.
        """
        if self.weights.count(b) != 1:
            raise ImageError.of(
                "is no single diffusion weighting",
                where=str(self.path),
                found=f"b = {', '.join(f'{weight:g}' for weight in self.weights)}" if self.weights else "no b values",
                expected=f"one volume of b = {b:g}",
            )
        t = self.weights.index(b)
        return replace(self, key=f"{self.key}{WEIGHTED}{b:g}", frames=(self.frames[t],), times=(0.0,), weights=(b,))

    @property
    def whole(self) -> str:
        """The key of all weightings, where this is one of them; else its own."""
        return self.key.partition(WEIGHTED)[0]

    @property
    def path(self) -> Path:
        """The name under which the volume is an image file like any other."""
        return self.folder / f"{self.key}{SUFFIX}"

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files, each once, in the order of the slices."""
        return tuple(dict.fromkeys(frame.source for stack in self.frames for frame in stack))


@dataclass(frozen=True)
class Annotation:
    """A DICOM object that annotates a series.

    Attributes:
        source: the file.
        kind: `SEG` or `RTSTRUCT`.
        series: Series Instance UIDs that it refers to.
        instances: SOP Instance UIDs of images that it refers to.
        world: Frame of Reference UID.
        names: segment labels or ROI names, in their order.
        study: Study Instance UID.
        errors: why it cannot be used.
    """

    source: Source
    kind: str
    series: tuple[str, ...]
    instances: frozenset[str]
    world: str
    names: tuple[str, ...]
    study: str
    errors: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Other:
    """A DICOM file that is neither an image nor an annotation (a report, a plan, a waveform, a directory), or a file that is broken.

    Attributes:
        source: the file.
        kind: SOP class in words, for example `Basic Text SR Storage`; empty where that is not known.
        problems: what is wrong with it; empty where it is only of no use here.
    """

    source: Source
    kind: str = ""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Scan:
    """Everything that lies in a folder, file, zip archive or DICOMDIR. Files that are no DICOM at all are only counted."""

    volumes: tuple[Volume, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    others: tuple[Other, ...] = ()
    foreign: int = 0
    problems: tuple[Problem, ...] = field(default=())

    def of_series(self, uids: Sequence[str]) -> tuple[Volume, ...]:
        """The volumes of some series."""
        return tuple(volume for volume in self.volumes if volume.series.uid in uids)
