"""Read RT structure sets: contours in the world, as masks on the grid of a volume.

Contours are taken to the axes of the volume, so planes of any orientation that runs along its slices are read. A contour counts for the
slice nearest to its plane. Where several planes have the same nearest slice, the nearest of them counts; where the contours of a region
are regularly further apart than slices (it was drawn on thicker slices of the same world), each stands for as many slices around it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config
from pydicom.dataelem import RawDataElement

from medseg.errors import ImageError, Problem
from medseg.geometry import Grid
from medseg.io.dicom.contours import Mask, Points, fill
from medseg.io.dicom.reading.reader import read_dataset
from medseg.io.dicom.volume import Source, Volume
from medseg.io.format import Image, Native
from medseg.io.grids import nearest

CONTOUR_DATA = 0x30060050
FLAT = 0.5  # slices: how far the points of a contour may lie apart along the normal of the slices
SAME = 0.02  # slices: planes nearer than this are one, up to rounding of positions
BETWEEN = 0.1  # slices: a plane further than this from its slice is worth a warning
APART = 1.5  # slices: planes further apart than this leave slices between them without a contour
EQUAL = 0.05  # share by which equal gaps may differ
LONG = 3  # gaps that tell by themselves
REGULAR = 0.6  # share of gaps between planes that are equal where contours were drawn on thicker slices


@dataclass(frozen=True)
class Structure:
    """A region of interest in the voxels of a volume.

    Attributes:
        name: ROI Name, made unique within its set.
        planes: position along the slices, in slices, and the closed contours there, `(N, 2)` as `(y, x)` in voxels.
        problems: why it cannot be rasterised.
        gap: slices from contour to contour, 1 where they lie on the slices.
    """

    name: str
    planes: tuple[tuple[float, tuple[Points, ...]], ...] = ()
    problems: tuple[Problem, ...] = ()
    gap: float = 1.0


@dataclass(frozen=True)
class StructureSet:
    """The regions of interest of one RTSTRUCT in the voxels of a volume, in their order in the file.

    Attributes:
        grid: whose voxels these are: the volume's, as it was acquired.
        target: the volume's grid.
        warnings: what was left out, and what is odd.
    """

    structures: tuple[Structure, ...]
    grid: Grid
    target: Grid
    warnings: tuple[Problem, ...] = field(default=())

    def mask(self, structure: Structure) -> Mask:
        """The voxels of a region, `(Z, Y, X)` of the volume."""
        mask = np.zeros(self.grid.shape, dtype=bool)
        for index, polygons in self._slices(structure).items():
            mask[index] = fill(polygons, (self.grid.shape[1], self.grid.shape[2]))
        if self.grid == self.target:
            return mask
        image = Image(mask[None].astype(np.uint8), self.grid, Native("dicom", "uint8", spaced=True))
        return np.asarray(nearest(image, self.target)[0] > 0)

    def _slices(self, structure: Structure) -> dict[int, tuple[Points, ...]]:
        """The contours that each slice takes: those of the nearest plane that reaches it."""
        chosen: dict[int, tuple[float, tuple[Points, ...]]] = {}
        for position, polygons in structure.planes:
            for index in _reached(position, structure.gap, self.grid.shape[0]):
                distance = abs(position - index)
                if index not in chosen or distance < chosen[index][0]:
                    chosen[index] = (distance, polygons)
        return {index: polygons for index, (_, polygons) in chosen.items()}


def _reached(position: float, gap: float, count: int) -> range:
    """The slices for which a contour stands: half a gap to each side, of two that are equally far the lower one."""
    first, stop = (int(np.ceil(position + side - SAME)) for side in (-gap / 2, gap / 2))
    return range(max(first, 0), min(stop, count))


def read_structures(
    source: Source, volume: Volume, names: Sequence[str] | None = None, warnings: list[Problem] | None = None
) -> dict[str, Mask]:
    """The regions of interest of an RTSTRUCT on the grid of a volume; they may overlap.

    Args:
        source: the RTSTRUCT.
        volume: one of the series that it refers to, or another in the same frame of reference.
        names: ROI names; None: all that can be rasterised. Of several of one name, the second is called `NAME (2)`.
        warnings: is added what was left out, and what is odd.

    Returns:
        ROI name -> `(Z, Y, X)`, in the order of the file or of `names`.

    Raises:
        ImageError: the file is no RTSTRUCT or refers to other images, or a region that was asked for (or every region) cannot be rasterised.
    """
    found = read_structure_set(source, volume)
    if warnings is not None:
        warnings += found.warnings
    return {structure.name: found.mask(structure) for structure in chosen_structures(found, source, names, warnings)}


def chosen_structures(
    found: StructureSet, source: Source, names: Sequence[str] | None, warnings: list[Problem] | None = None
) -> list[Structure]:
    """The regions of these names, or all that can be rasterised; see `read_structures`."""
    by_name = {structure.name: structure for structure in found.structures}
    if names is None:
        sound = [structure for structure in found.structures if not structure.problems]
        broken = [problem for structure in found.structures for problem in structure.problems]
        if broken and not sound:
            raise ImageError(broken)
        if warnings is not None:
            warnings += broken
        return sound
    problems = [
        Problem("has no region of interest of this name", str(source), f"'{name}'", ", ".join(by_name) or "one at least")
        for name in names
        if name not in by_name
    ]
    problems += [problem for name in names if name in by_name for problem in by_name[name].problems]
    if problems:
        raise ImageError(problems)
    return [by_name[name] for name in names]


@config.disable_value_validation()
def read_structure_set(source: Source, volume: Volume) -> StructureSet:
    """The contours of an RTSTRUCT in the voxels of a volume, without rasterising them. Raises ImageError as `read_structures`."""
    dataset = read_dataset(source)
    where = str(source)
    if dataset.get("Modality") != "RTSTRUCT":
        raise ImageError.of("is no RT structure set", where=where, found=str(dataset.get("Modality", "no modality")), expected="RTSTRUCT")
    grid = volume.tilted or volume.grid
    if grid.ndim != 3 or not volume.spaced:
        raise ImageError.of(
            "the image does not say where in the patient it lies, so no contour can be placed on it",
            where=where,
            fix="Use an image with positions.",
        )
    regions = _items(dataset, "StructureSetROISequence")
    if not regions:
        raise ImageError.of("holds no region of interest", where=where, fix="Export the structures again.")
    _check_reference(dataset, regions, volume, where)
    contours: dict[int | None, list[Dataset]] = defaultdict(list)
    for item in _items(dataset, "ROIContourSequence"):
        contours[_number(item, "ReferencedROINumber")] += _items(item, "ContourSequence")
    warnings: list[Problem] = []
    structures: list[Structure] = []
    taken: set[str] = set()
    for place, region in enumerate(regions, 1):
        plain, number = _name(region, place), _number(region, "ROINumber")
        name = next(n for i in range(1, len(regions) + 2) if (n := plain if i == 1 else f"{plain} ({i})") not in taken)
        taken.add(name)
        structures.append(_structure(name, contours[number] if number is not None else [], grid, where, warnings))
    structures = [replace(structure, gap=gap) for structure, gap in zip(structures, _gaps(structures), strict=True)]
    found = StructureSet(tuple(structures), grid, volume.grid)
    warnings += _plane_warnings(found, where)
    return replace(found, warnings=tuple(warnings))


@config.disable_value_validation()
def closed_regions(source: Source) -> dict[int, str]:
    """The regions that have a closed contour, by their place in the file, from 1; others are points, or only planned. Raises ImageError."""
    dataset = read_dataset(source)
    drawn = {
        _number(item, "ReferencedROINumber")
        for item in _items(dataset, "ROIContourSequence")
        if any(_closed(contour) for contour in _items(item, "ContourSequence"))
    }
    regions = _items(dataset, "StructureSetROISequence")
    return {place: _name(item, place) for place, item in enumerate(regions, 1) if _number(item, "ROINumber") in drawn}


def _closed(contour: Dataset) -> bool:
    return str(contour.get("ContourGeometricType", "") or "CLOSED_PLANAR").startswith("CLOSED")


def _name(region: Dataset, place: int) -> str:
    return str(region.get("ROIName", "") or "").strip() or f"ROI {place}"


def _items(dataset: Dataset, name: str) -> list[Dataset]:
    value = dataset.get(name)
    return list(value) if value is not None else []


def _number(dataset: Dataset, name: str) -> int | None:
    try:
        return int(dataset.get(name))
    except (TypeError, ValueError):
        return None


def _check_reference(dataset: Dataset, regions: Sequence[Dataset], volume: Volume, where: str) -> None:
    """Contours are points of a frame of reference; some programs write one of their own, but name the series. Raises ImageError."""
    worlds = {str(region.get("ReferencedFrameOfReferenceUID", "")) for region in regions} | {str(dataset.get("FrameOfReferenceUID", ""))}
    frames = _items(dataset, "ReferencedFrameOfReferenceSequence")
    worlds |= {str(item.get("FrameOfReferenceUID", "")) for item in frames}
    if volume.series.world and volume.series.world in worlds:
        return
    series = [
        s for item in frames for study in _items(item, "RTReferencedStudySequence") for s in _items(study, "RTReferencedSeriesSequence")
    ]
    if volume.series.uid in {str(item.get("SeriesInstanceUID", "")) for item in series}:
        return
    own = {frame.sop_uid for stack in volume.frames for frame in stack}
    images = [image for item in series for image in _items(item, "ContourImageSequence")]
    contours = (c for item in _items(dataset, "ROIContourSequence") for c in _items(item, "ContourSequence"))
    images += [image for contour in contours for image in _items(contour, "ContourImageSequence")]
    if own & {str(image.get("ReferencedSOPInstanceUID", "")) for image in images}:
        return
    raise ImageError.of(
        "belongs to other images: it names neither this series nor its frame of reference",
        where=where,
        found=f"{len(series)} other series and {len(worlds - {''})} other frames of reference",
        expected="the series on which it was drawn",
        fix="Choose the series that it belongs to.",
    )


def _structure(name: str, contours: Iterable[Dataset], grid: Grid, where: str, warnings: list[Problem]) -> Structure:
    place = f"{where}, region '{name}'"
    inverse = np.linalg.inv(grid.affine)
    flat: list[tuple[float, Points]] = []
    skipped: dict[str, int] = {}
    broken: list[str] = []
    slanted = 0.0
    for contour in contours:
        if not _closed(contour):
            kind = str(contour.ContourGeometricType)
            skipped[kind] = skipped.get(kind, 0) + 1
            continue
        try:
            points = _points(contour)
        except (ValueError, TypeError, OverflowError) as error:
            broken.append(str(error))
            continue
        if not len(points):
            continue
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        slanted = max(slanted, float(np.ptp(index[:, 0])))
        flat.append((float(index[:, 0].mean()), index[:, 1:]))
    for kind, count in skipped.items():
        warnings.append(Problem(f"contours of type {kind} enclose nothing and are left out", place, f"{count}"))
    problems = []
    if broken:
        problems.append(Problem("contours cannot be read", place, f"{len(broken)}, the first: {broken[0]}", "x\\y\\z of each point"))
    if slanted > FLAT:
        problems.append(
            Problem(
                "contours lie in other planes than the slices of the image",
                place,
                f"a contour that crosses {slanted:.3g} slices",
                "contours along the slices",
                "Export the structures on the slices of this series, or use the series on which they were drawn.",
            )
        )
    return Structure(name, () if problems else _planes(flat, place, warnings), tuple(problems))


def _points(contour: Dataset) -> Points:
    """`(N, 3)` LPS millimetres. Raises ValueError, TypeError or OverflowError for what is no list of points."""
    item = contour.get_item(CONTOUR_DATA)
    if item is None:
        return np.zeros((0, 3))
    if isinstance(item, RawDataElement) and isinstance(item.value, bytes):
        # Hundreds of thousands of numbers: pydicom would make an object of each.
        text = item.value.rstrip(b" \0")
        values = np.array(text.split(b"\\")).astype(np.float64) if text else np.zeros(0)
    else:
        values = np.asarray(item.value if item.value is not None else (), dtype=np.float64).ravel()
    if len(values) % 3:
        raise ValueError(f"{len(values)} numbers, which are no points")
    if not np.isfinite(values).all():
        raise ValueError("coordinates that are not finite")
    offset = contour.get("ContourOffsetVector")
    shift = np.asarray(offset, dtype=np.float64) if offset else np.zeros(3)
    return np.asarray(values.reshape(-1, 3) + shift)


def _planes(flat: list[tuple[float, Points]], place: str, warnings: list[Problem]) -> tuple[tuple[float, tuple[Points, ...]], ...]:
    """Contours by plane. A contour that is there twice would cancel itself, and counts once."""
    planes: list[tuple[float, list[Points]]] = []
    twice = 0
    for position, polygon in sorted(flat, key=lambda c: c[0]):
        if not planes or position - planes[-1][0] > SAME:
            planes.append((position, []))
        known = planes[-1][1]
        if any(other.shape == polygon.shape and np.allclose(other, polygon, rtol=0, atol=1e-6) for other in known):
            twice += 1
        else:
            known.append(polygon)
    if twice:
        warnings.append(Problem("contours are there twice, and count once", place, f"{twice}"))
    return tuple((position, tuple(polygons)) for position, polygons in planes)


def _gaps(structures: Sequence[Structure]) -> list[float]:
    """How many slices lie from contour to contour in each region, where these are regularly further apart than slices; else 1.

    Of two or three contours nobody knows whether they are regular: they have a gap of another region, or of all together, where it is
    theirs. One contour has none.
    """
    steps = [np.diff([position for position, _ in structure.planes]) for structure in structures]
    own = [_gap(one) for one in steps]
    known = [*dict.fromkeys(own), _gap(np.concatenate([*steps, np.zeros(0)]))]
    return [
        next((gap for gap in known if len(one) and bool((np.abs(one - gap) <= EQUAL * gap).all())), 1.0) if len(one) < LONG else gap
        for one, gap in zip(steps, own, strict=True)
    ]


def _gap(steps: NDArray[np.float64]) -> float:
    if len(steps) < LONG:
        return 1.0
    usual = float(np.median(steps))
    regular = float((np.abs(steps - usual) <= EQUAL * usual).mean()) >= REGULAR
    return usual if regular and usual > APART else 1.0


def _plane_warnings(found: StructureSet, where: str) -> list[Problem]:
    """Contours beyond the image and between slices, and slices that take a contour of a neighbour."""
    count = found.grid.shape[0]
    warnings = []
    beyond = {s.name: (sum(not -0.5 <= p <= count - 0.5 for p, _ in s.planes), len(s.planes)) for s in found.structures}
    if lost := [f"{name}: {n} of {total} planes" for name, (n, total) in beyond.items() if n]:
        warnings.append(Problem("contours lie above or below the image, and are left out", where, ", ".join(lost)))
    if thick := [s for s in found.structures if s.gap > 1]:
        warnings.append(
            Problem(
                "contours lie further apart than slices; each counts for the slices around it",
                where,
                ", ".join(f"{s.name}: one contour for {s.gap:.3g} slices" for s in thick),
                "contours on every slice",
            )
        )
    between = [p for s in found.structures if s.gap == 1 for p, _ in s.planes if abs(p - np.rint(p)) > BETWEEN]
    if between:
        total = sum(len(s.planes) for s in found.structures)
        warnings.append(
            Problem(
                "contours lie between slices, and count for the nearest",
                where,
                f"{len(between)} of {total} planes, up to {max(abs(p - np.rint(p)) for p in between):.2g} slices away",
                "contours on the slices",
            )
        )
    return warnings
