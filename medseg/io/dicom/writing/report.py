"""Measurements of a prediction as a structured report: PS3.16 TID 1500 in Comprehensive 3D SR, one group per class (TID 1411, TID 1410).

The report refers to the segments of the segmentation that is written beside it, and bears the same tracking identifiers.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar, final

from pydicom import Dataset, config

from medseg.dataset import CaseFiles
from medseg.geometry import Array
from medseg.io.dicom.reading.reader import read_dataset, read_voxels
from medseg.io.dicom.reading.suv import is_uptake, uptake_problems
from medseg.io.dicom.settings import SegmentTerms, Term
from medseg.io.dicom.terms import CATEGORIES, SIDES
from medseg.io.dicom.writing.objects import DicomExport
from medseg.io.dicom.writing.origin import Origin, derived_uid
from medseg.io.dicom.writing.segmentation import make_segmentation, save
from medseg.io.dicom.writing.separate import separated
from medseg.io.dicom.writing.sizes import Size, size_of
from medseg.io.dicom.writing.subject import Subject, coded, cut
from medseg.io.exports import Result

NUMBER = 94  # of the series, after that of the images
VOLUME = Term(value="118565006", meaning="Volume")
AREA = Term(value="42798000", meaning="Area")
LONG_AXIS = Term(value="103339001", meaning="Long axis")
SHORT_AXIS = Term(value="103340004", meaning="Short axis")
DIAMETER = Term(value="L0JK", scheme="IBSI", meaning="Maximum 3D Diameter of a Mesh")
STATISTICS = (
    Term(value="373098007", meaning="Mean"),
    Term(value="255605001", meaning="Minimum"),
    Term(value="56851009", meaning="Maximum"),
)
MILLILITRE = Term(value="ml", scheme="UCUM", meaning="ml")
MILLIMETRE = Term(value="mm", scheme="UCUM", meaning="mm")
SQUARE = Term(value="mm2", scheme="UCUM", meaning="mm2")
PIXELS = Term(value="{pixels}", scheme="UCUM", meaning="Pixels")
INTENSITIES = {
    "CT": (Term(value="112031", scheme="DCM", meaning="Attenuation Coefficient"), Term(value="[hnsf'U]", scheme="UCUM", meaning="HU")),
    "PT": (
        Term(value="126401", scheme="DCM", meaning="SUVbw"),
        Term(value="g/ml{SUVbw}", scheme="UCUM", meaning="Standardized Uptake Value body weight"),
    ),
}
"""Modality -> what its values are, and their unit. Those of MR and of photographs mean nothing by themselves."""


@final
class Report(DicomExport):
    """`<id>.sr.dcm`, and the segmentation that it refers to, `<id>.seg.dcm`."""

    name: ClassVar[str] = "sr"
    summary: ClassVar[str] = (
        "DICOM Structured Report (TID 1500): volume, diameters and intensity of each class or object; with the segmentation"
    )

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export.targets`."""
        return Path(f"{files.id}.sr.dcm"), Path(f"{files.id}.seg.dcm")

    def write(self, result: Result, out: Path) -> None:
        """See `Export.write`."""
        subject = Subject.of(separated(result))
        segmentation = make_segmentation(subject, "BINARY")
        report = make_report(subject, segmentation)
        save(segmentation, out / f"{result.files.id}.seg.dcm")
        save(report, out / f"{result.files.id}.sr.dcm")


def make_report(subject: Subject, segmentation: Dataset) -> Dataset:
    """The report as a data set with file meta information, not yet written.

    Args:
        subject: what was predicted, and on which images.
        segmentation: the BINARY segmentation of the same subject.

    Raises:
        ImageError: intensities are measured, and the images cannot be read.
    """
    from highdicom.sr import (
        Comprehensive3DSR,
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes

    origin, maker = subject.origin, subject.result.maker
    values = read_voxels(origin.volume)[0] if _means_something(origin) else None
    uid = subject.uid("report")
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        device = DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", maker.model, maker.version, maker.digest),
            name="medseg",
            manufacturer_name="medseg",
            model_name=cut(maker.model),
            serial_number=cut(maker.digest),
        )
        groups = [_group(subject, segmentation, k, _size(subject, k, values)) for k in range(len(subject.names))]
        content = MeasurementReport(
            observation_context=ObservationContext(
                observer_device_context=ObserverContext(
                    observer_type=codes.DCM.Device,
                    observer_identifying_attributes=device,
                )
            ),
            procedure_reported=_procedure(origin.volume.series.modality),
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
        )
        _add_library(content[0], origin)
        report: Dataset = Comprehensive3DSR(
            evidence=[segmentation, *_evidence(origin)],
            content=content[0],
            series_instance_uid=subject.uid("series", "report"),
            series_number=origin.number(NUMBER),
            sop_instance_uid=uid,
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name=cut(maker.model),
            software_versions=cut(maker.version),
            device_serial_number=cut(maker.digest),
            series_description=cut(f"{maker.model} measurements"),
            is_complete=True,
            is_final=False,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
        )
    return report


def _means_something(origin: Origin) -> bool:
    """Whether the values of the images have a unit."""
    modality = origin.volume.series.modality
    if modality != "PT" or origin.volume.samples != 1:
        return modality == "CT" and origin.volume.samples == 1
    header = read_dataset(origin.slices[0].source)
    return is_uptake(header) and not uptake_problems(header)


def _size(subject: Subject, index: int, values: Array | None) -> Size:
    box = subject.box(index)
    if box is None:
        return Size(0, 0.0, 0.0, 0.0, 0.0)
    mask = subject.mask(index, subject.result.semantic[box])
    return size_of(mask, subject.result.grid, None if values is None else values[box])


def _group(subject: Subject, segmentation: Dataset, index: int, size: Size) -> Any:
    from highdicom import sr

    origin, name = subject.origin, subject.names[index]
    terms = subject.terms[name]
    shared: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(uid=subject.tracking_uid(name), identifier=subject.tracking_id(name)),
        "finding_type": coded(terms.type),
        "finding_category": coded(terms.category),
        "finding_sites": _sites(terms),
        "measurements": _measurements(size, origin),
    }
    if origin.positions:
        segment = sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=index + 1,
            source_series=sr.SourceSeriesForSegmentation(origin.common.SeriesInstanceUID),
        )
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **shared)
    frames = [n for n, number in enumerate(_segments_of_frames(segmentation), 1) if number == index + 1]
    if not frames or not size.voxels:
        return sr.MeasurementsAndQualitativeEvaluations(**shared)
    image = sr.SourceImageForSegmentation(origin.slices[0].sop_class, origin.slices[0].sop_uid)
    frame = sr.ReferencedSegmentationFrame(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        frame_number=frames[0],
        segment_number=index + 1,
        source_image=image,
    )
    del frame[0].ReferencedSOPSequence[0].ReferencedSegmentNumber  # a frame has one segment, so the standard wants only the frame
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=frame, **shared)


def _segments_of_frames(segmentation: Dataset) -> list[int]:
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    return [
        int((group if "SegmentIdentificationSequence" in group else shared).SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for group in segmentation.PerFrameFunctionalGroupsSequence
    ]


def _measurements(size: Size, origin: Origin) -> list[Any]:
    measured: list[tuple[Term, float, Term, Term | None]] = []
    if origin.positions:
        measured.append((VOLUME, size.content / 1000, MILLILITRE, None))
    elif origin.spacing is not None:
        measured.append((AREA, size.content, SQUARE, None))
    else:
        measured.append((AREA, size.voxels, PIXELS, None))
    if size.voxels and (origin.positions or origin.spacing is not None):
        measured += [(LONG_AXIS, size.long_axis, MILLIMETRE, None), (SHORT_AXIS, size.short_axis, MILLIMETRE, None)]
        if origin.positions:
            measured.append((DIAMETER, size.diameter, MILLIMETRE, None))
    if size.intensity is not None:
        what, unit = INTENSITIES[origin.volume.series.modality]
        measured += [(what, value, unit, statistic) for value, statistic in zip(size.intensity, STATISTICS, strict=True)]
    return [_measurement(*one) for one in measured]


def _measurement(what: Term, value: float, unit: Term, derivation: Term | None) -> Any:
    from highdicom.sr import Measurement

    rounded = float(f"{value:.7g}")
    return Measurement(name=coded(what), value=rounded, unit=coded(unit), derivation=coded(derivation) if derivation else None)


def _sites(terms: SegmentTerms) -> list[Any] | None:
    from highdicom.sr import FindingSite

    place = terms.region or (terms.type if terms.category == CATEGORIES["anatomy"] else None)
    if place is None:
        return None
    modifier = None if terms.modifier is None else coded(terms.modifier)
    sided = terms.modifier in SIDES.values()
    return [FindingSite(coded(place), laterality=modifier if sided else None, topographical_modifier=None if sided else modifier)]


def _procedure(modality: str) -> Any:
    """CID 100."""
    known = {
        "CT": Term(value="77477000", meaning="Computed tomography"),
        "MR": Term(value="113091000", meaning="Magnetic resonance imaging"),
        "PT": Term(value="82918005", meaning="Positron emission tomography"),
        "US": Term(value="16310003", meaning="Diagnostic ultrasonography"),
    }
    return coded(known.get(modality, Term(value="363679005", meaning="Imaging procedure")))


def _add_library(root: Dataset, origin: Origin) -> None:
    """The images, with what they share said once (TID 1600)."""
    from highdicom.sr import (
        CodeContentItem,
        ContainerContentItem,
        ContentSequence,
        ImageContentItem,
        NumContentItem,
        RelationshipTypeValues,
        UIDRefContentItem,
    )
    from pydicom.sr.codedict import codes

    shown, contains = RelationshipTypeValues.HAS_ACQ_CONTEXT, RelationshipTypeValues.CONTAINS
    group = ContainerContentItem(name=codes.DCM.ImageLibraryGroup, relationship_type=contains)
    group.ContentSequence = ContentSequence()
    modality = origin.volume.series.modality
    known = modality if modality in MODALITIES else "OT"
    group.ContentSequence.append(
        CodeContentItem(
            name=codes.DCM.Modality, value=coded(Term(value=known, scheme="DCM", meaning=MODALITIES[known])), relationship_type=shown
        )
    )
    if origin.world:
        group.ContentSequence.append(UIDRefContentItem(name=codes.DCM.FrameOfReferenceUID, value=origin.world, relationship_type=shown))
    for name, value in ((codes.DCM.PixelDataRows, origin.shape[-2]), (codes.DCM.PixelDataColumns, origin.shape[-1])):
        group.ContentSequence.append(NumContentItem(name=name, value=value, unit=coded(PIXELS), relationship_type=shown))
    for sop_class, sop_uid in dict.fromkeys((frame.sop_class, frame.sop_uid) for frame in origin.slices):
        group.ContentSequence.append(
            ImageContentItem(
                name=coded(Term(value="260753009", meaning="Source")),
                referenced_sop_class_uid=sop_class,
                referenced_sop_instance_uid=sop_uid,
                relationship_type=contains,
            )
        )
    library = ContainerContentItem(name=codes.DCM.ImageLibrary, relationship_type=contains)
    library.ContentSequence = ContentSequence([group])
    root.ContentSequence.insert(len(root.ContentSequence) - 1, library)


MODALITIES = {"CT": "Computed Tomography", "MR": "Magnetic Resonance", "PT": "Positron emission tomography", "US": "Ultrasound",
              "CR": "Computed Radiography", "DX": "Digital Radiography", "MG": "Mammography", "NM": "Nuclear Medicine",
              "XA": "X-Ray Angiography", "ES": "Endoscopy", "XC": "External-camera Photography", "OP": "Ophthalmic Photography",
              "OPT": "Ophthalmic Tomography", "OT": "Other Modality"}  # fmt: skip
"""CID 29."""


def _evidence(origin: Origin) -> list[Dataset]:
    found = []
    for sop_class, sop_uid in dict.fromkeys((frame.sop_class, frame.sop_uid) for frame in origin.slices):
        data = Dataset()
        data.update(origin.common)
        data.SOPClassUID, data.SOPInstanceUID = sop_class, sop_uid
        found.append(data)
    return found
