"""Predictions as DICOM segmentations: BINARY, LABELMAP, and probabilities as FRACTIONAL (PS3.3 A.51 and A.90).

A label map lies on the slices it was predicted from: frames take position, orientation and spacing from these instances and refer to them.
Of several time points it lies on the first. One segment per class, of things one per object (`separated`). In a BINARY object, regions that overlap
are stored as they are, one mask each; in a LABELMAP object a voxel has one value, that of the last region that holds it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config

from medseg.dataset import CaseFiles, Labels
from medseg.errors import ImageError
from medseg.geometry import Array
from medseg.io.dicom.reading.reader import to_acquired
from medseg.io.dicom.settings import SegmentTerms
from medseg.io.dicom.writing.objects import DicomExport
from medseg.io.dicom.writing.origin import Origin, array_digest
from medseg.io.dicom.writing.separate import separated
from medseg.io.dicom.writing.subject import Subject, coded, cut
from medseg.io.exports import Result
from medseg.record import write_atomic
from medseg.scratch import row_slabs

Kind = Literal["BINARY", "LABELMAP", "FRACTIONAL"]
NUMBERS: dict[Kind, int] = {"BINARY": 91, "LABELMAP": 92, "FRACTIONAL": 93}  # of the series, after that of the images
PLAIN, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"  # JPEG-LS is faster and smaller, but dcmqi does not take it for lossless
MOST = 2**31  # voxels of all segments together: what one object can hold of fractions, one byte each
SEGMENTS = 2**16 - 1  # what a segment number holds
FRAMES = 2**33  # bits of all frames of a BINARY object
STEPS = 255  # of a fraction


@final
class Seg(DicomExport):
    """`<id>.seg.dcm`, and `<id>.probabilities.dcm` where probabilities are asked for."""

    name: ClassVar[str] = "seg"
    summary: ClassVar[str] = "DICOM Segmentation, one binary mask per class or object; probabilities as fractional masks"

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export.targets`."""
        return (Path(f"{files.id}.seg.dcm"), *([Path(f"{files.id}.probabilities.dcm")] if probabilities else []))

    def write(self, result: Result, out: Path) -> None:
        """See `Export.write`."""
        save(make_segmentation(Subject.of(separated(result)), "BINARY"), out / f"{result.files.id}.seg.dcm")
        if result.prediction.probabilities is not None:
            save(make_segmentation(Subject.of(result), "FRACTIONAL"), out / f"{result.files.id}.probabilities.dcm")


@final
class LabelMap(DicomExport):
    """`<id>.labelmap.dcm`."""

    name: ClassVar[str] = "labelmap"
    summary: ClassVar[str] = "DICOM Label Map Segmentation (2024), one value per voxel, compressed"

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export.targets`."""
        return (Path(f"{files.id}.labelmap.dcm"),)

    def write(self, result: Result, out: Path) -> None:
        """See `Export.write`."""
        save(make_segmentation(Subject.of(separated(result)), "LABELMAP"), out / f"{result.files.id}.labelmap.dcm")


def make_segmentation(subject: Subject, kind: Kind) -> Dataset:
    """The segmentation as a data set with file meta information, not yet written.

    Args:
        subject: what was predicted, and on which images.
        kind: FRACTIONAL needs probabilities.

    Raises:
        ImageError: the prediction is too large for one object.
    """
    from highdicom.seg import Segmentation

    result, origin, maker = subject.result, subject.origin, subject.result.maker
    masks = _masks(subject, kind)
    sources = _sources(origin)
    empty = not masks.any()
    if empty:  # an object must have a frame, and one per segment is enough
        masks, sources = masks[:1], sources[:1]
    content = () if kind != "FRACTIONAL" else (array_digest(_probabilities(result)),)
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        data: Dataset = Segmentation(
            source_images=sources,
            pixel_array=masks,
            segmentation_type=kind,
            segment_descriptions=_descriptions(subject, kind),
            series_instance_uid=subject.uid("series", kind, *content),
            series_number=origin.number(NUMBERS[kind]),
            sop_instance_uid=subject.uid(kind, *content),
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name=cut(maker.model),
            software_versions=cut(maker.version),
            device_serial_number=cut(maker.digest),
            fractional_type="PROBABILITY",
            max_fractional_value=STEPS,
            content_label={"BINARY": "SEGMENTATION", "LABELMAP": "LABELMAP", "FRACTIONAL": "PROBABILITIES"}[kind],
            content_description=cut(f"Segmentation by {maker.model}"),
            series_description=cut(f"{maker.model} {kind.lower()} segmentation"),
            transfer_syntax_uid=RLE if kind == "LABELMAP" else PLAIN,
            content_creator_name="medseg^automatic",
            specific_character_set="ISO_IR 192",
            omit_empty_frames=not empty,
        )
        _refer(data, origin)
        for keyword in origin.common.dir("Clinical", "Deidentification", "PatientIdentity", "Longitudinal", "PatientOrientation"):
            setattr(data, keyword, origin.common[keyword].value)
        if kind == "FRACTIONAL":
            _fill(data, _probabilities(result), origin)
    return data


def save(data: Dataset, path: Path) -> None:
    """Write an object atomically. Raises ResourceError."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        write_atomic(path, lambda temporary: data.save_as(temporary, enforce_file_format=True))


def _masks(subject: Subject, kind: Kind) -> Array:
    """What highdicom is given: segment numbers `(Z, Y, X)`, or `(Z, Y, X, K)` 0 and 1 where voxels may have several."""
    result, volume = subject.result, subject.origin.volume
    count = len(subject.names)
    labels = to_acquired(volume, result.semantic)
    stack = labels[None] if labels.ndim == 2 else labels
    if count > SEGMENTS:
        raise ImageError.of(
            "more objects were found than a DICOM segmentation can number", where=str(volume.path), found=str(count), expected=str(SEGMENTS)
        )
    if kind == "LABELMAP" or (kind == "BINARY" and result.labels.exclusive):
        numbers = np.zeros(stack.shape, np.uint8 if count < 256 else np.uint16)
        table = _numbers(result.labels, int(labels.max(initial=0)), numbers.dtype)
        for rows in row_slabs(stack.shape):
            numbers[rows] = table[stack[rows]]
        if kind == "BINARY":
            _check_frames(numbers, volume.path)
        return numbers
    if stack.size * count >= MOST:
        raise ImageError.of(
            "the prediction is too large for one DICOM object with a mask per class",
            where=str(volume.path),
            found=f"{stack.size * count / 2**30:.1f} G voxels in {count} masks",
            expected=f"less than {MOST / 2**30:.0f} G",
            fix="Ask for --format labelmap, or for --format nifti with --probabilities.",
        )
    masks = np.zeros((*stack.shape, count), np.uint8)
    for k in range(count):
        if kind == "FRACTIONAL":
            maps = to_acquired(volume, _probabilities(result)[k])
            solid = maps[None] if maps.ndim == 2 else maps
            for rows in row_slabs(stack.shape):
                masks[rows, ..., k] = _steps(solid[rows]) > 0
        else:
            masks[..., k] = subject.mask(k, stack)
    return masks


def _check_frames(numbers: Array, where: Path) -> None:
    """Refuse what takes too many frames: each slice of each segment is one, however small the segment is. Raises ImageError."""
    frames = sum(int(np.count_nonzero(np.bincount(plane.ravel())[1:])) for plane in numbers)
    bits = frames * numbers[0].size
    if bits > FRAMES:
        raise ImageError.of(
            "the objects are too many for one DICOM object with a mask for each",
            where=str(where),
            found=f"{frames} frames, {bits / 2**33:.1f} GiB",
            expected=f"at most {FRAMES / 2**33:g} GiB",
            fix="Ask for --format labelmap.",
        )


def _numbers(labels: Labels, largest: int, dtype: np.dtype[Any]) -> Array:
    """Voxel value -> number of its segment; 0 for what is no class."""
    table = np.zeros(largest + 1, dtype)
    pairs = {value: k + 1 for k, one in enumerate(labels.classes) for value in one.values}
    pairs |= {value: k + 1 for k, value in enumerate(labels.written)}
    for value, number in pairs.items():
        if 0 < value <= largest:
            table[value] = number
    return table


def _probabilities(result: Result) -> Array:
    """`(K, *shape)`: without the background that comes first where classes exclude each other, and without what no class is."""
    assert result.prediction.probabilities is not None
    first = int(result.labels.exclusive)
    return result.prediction.probabilities[first : first + len(result.labels.classes)]


def _steps(values: Array) -> NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip(values.astype(np.float32), 0, 1) * STEPS), np.uint8)


def _fill(data: Dataset, probabilities: Array, origin: Origin) -> None:
    """Replace the full fractions of every frame by the probabilities."""
    places = {tuple(float(f"{v:.6g}") for v in position): z for z, position in enumerate(origin.positions)}
    maps: dict[int, Array] = {}
    frames = []
    shared = data.SharedFunctionalGroupsSequence[0]
    for group in data.PerFrameFunctionalGroupsSequence:
        holder = group if "SegmentIdentificationSequence" in group else shared
        segment = int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        if segment not in maps:  # frames come segment by segment
            maps = {segment: to_acquired(origin.volume, probabilities[segment - 1])}
        values = maps[segment]
        if origin.positions:
            values = values[places[tuple(float(f"{v:.6g}") for v in group.PlanePositionSequence[0].ImagePositionPatient)]]
        frames.append(_steps(values).tobytes())
    pixels = b"".join(frames)
    data.PixelData = pixels + b"\0" * (len(pixels) % 2)
    data.SegmentsOverlap = "UNDEFINED"


def _descriptions(subject: Subject, kind: Kind) -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    maker, labels = subject.result.maker, subject.result.labels
    algorithm = AlgorithmIdentificationSequence(
        name=cut(maker.model),
        family=codes.DCM.ArtificialIntelligence,
        version=cut(f"{maker.version} {maker.digest}"),
        source="medseg",
    )
    descriptions = []
    for k, name in enumerate(subject.names):
        known = subject.terms[name]
        assert known.color is not None
        description = SegmentDescription(
            segment_number=k + 1,
            segment_label=cut(_shown_as(labels, k) if kind == "LABELMAP" else name),
            segmented_property_category=coded(known.category),
            segmented_property_type=coded(known.type),
            algorithm_type="AUTOMATIC" if maker.automatic else "SEMIAUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=subject.tracking_uid(name),
            tracking_id=subject.tracking_id(name),
            anatomic_regions=[coded(known.region)] if known.region else None,
            display_color=CIELabColor.from_rgb(*known.color),
        )
        _modify(description, known)
        descriptions.append(description)
    return descriptions


def _modify(description: Dataset, terms: SegmentTerms) -> None:
    if terms.modifier is None:
        return
    if terms.region is None:
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [coded(terms.modifier)]
    else:
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [coded(terms.modifier)]


def _shown_as(labels: Labels, index: int) -> str:
    """A region of which later ones overwrite a part is named by what is left of it."""
    values = set(labels.classes[index].values)
    over = [other.name for other in labels.classes[index + 1 :] if values & set(other.values)]
    return f"{labels.names[index]} without {', '.join(over)}" if over else labels.names[index]


def _sources(origin: Origin) -> list[Dataset]:
    """One data set per slice, as highdicom expects a classic series, whatever the images are; `_refer` puts the true references in."""
    sources = []
    flat = not origin.positions
    for z in range(1 if flat else len(origin.positions)):
        data = Dataset()
        data.update(origin.common)
        data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1" if flat else "1.2.840.10008.5.1.4.1.1.4"
        data.SOPInstanceUID = _stand_in(z)
        data.Rows, data.Columns = origin.shape[-2:]
        if origin.spacing is not None:
            data.PixelSpacing = [_ds(v) for v in origin.spacing]
            data.SliceThickness = _ds(origin.thickness)
        if not flat:
            data.FrameOfReferenceUID = origin.world
            data.ImagePositionPatient = [_ds(v) for v in origin.positions[z]]
            data.ImageOrientationPatient = [_ds(v) for v in origin.axes]
            data.SpacingBetweenSlices = _ds(origin.step)
        sources.append(data)
    return sources


def _ds(value: float) -> str:
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def _stand_in(z: int) -> str:
    return f"2.25.{z + 1}"


def _refer(data: Dataset, origin: Origin) -> None:
    """Put the true instances and frames where stand-ins are."""
    unique: Mapping[tuple[str, str], None] = dict.fromkeys((frame.sop_class, frame.sop_uid) for frame in origin.slices)
    data.SourceImageSequence = [_reference(*one) for one in unique]
    series = Dataset()
    series.SeriesInstanceUID = origin.common.SeriesInstanceUID
    series.ReferencedInstanceSequence = [_reference(*one) for one in unique]
    data.ReferencedSeriesSequence = [series]
    slices = {_stand_in(z): frame for z, frame in enumerate(origin.slices)}
    for group in data.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence") or ():
            for item in derivation.SourceImageSequence:
                if item.ReferencedSOPInstanceUID not in slices:
                    continue  # shared with another segment's frame, and done
                frame = slices[item.ReferencedSOPInstanceUID]
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = frame.sop_class, frame.sop_uid
                if frame.index is not None:
                    item.ReferencedFrameNumber = frame.index + 1
                if frame.tile is not None:
                    item.SpatialLocationsPreserved = "NO"


def _reference(sop_class: str, sop_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
    return item
