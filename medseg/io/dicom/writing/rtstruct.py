"""Write predictions as RT structure sets.

Contours are drawn on the slices as their files place them (`contours.outlines`), so that rasterising them gives the label map back to the
voxel. A region with holes is one contour with keyholes: the way that DICOM PS3.3 (C.8.8.6.3) knows for CLOSED_PLANAR, and the only one that
programs understand alike, whether they combine contours by exclusive disjunction, by winding number or by union.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.uid import ImplicitVRLittleEndian

from medseg.dataset import CaseFiles
from medseg.errors import Problem
from medseg.io.dicom.contours import Mask, Points, outlines
from medseg.io.dicom.reading.reader import find_volume, to_acquired
from medseg.io.dicom.reading.structures import CONTOUR_DATA
from medseg.io.dicom.settings import SegmentTerms, Term
from medseg.io.dicom.terms import CATEGORIES, class_terms
from medseg.io.dicom.writing.objects import DicomExport, image_reference, new_object
from medseg.io.dicom.writing.origin import Origin, array_digest
from medseg.io.dicom.writing.segmentation import save
from medseg.io.dicom.writing.separate import separated
from medseg.io.dicom.writing.subject import Subject, cut
from medseg.io.exports import Maker, Result

STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
STUDY = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired: the SOP class by which structure sets still refer to a study
NUMBER = 95  # of the series, after that of the images
INTERPRETED = ("EXTERNAL", "PTV", "CTV", "GTV", "CAVITY", "BOLUS")
"""RT ROI Interpreted Types that the name of a class may say."""
FINE = 1e-4  # voxels: how exactly contours are written


@final
class RtStruct(DicomExport):
    """`<id>.rtstruct.dcm`."""

    name: ClassVar[str] = "rtstruct"
    summary: ClassVar[str] = "DICOM RT structure set: contours on the slices of the input series"

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export.targets`."""
        return (Path(f"{files.id}.rtstruct.dcm"),)

    def problems(self, files: CaseFiles) -> tuple[Problem, ...]:
        """See `Export.problems`."""
        if problems := super().problems(files):
            return problems
        if find_volume(files.images[0]).grid.ndim == 2:
            fix = "Ask for --format seg."
            return (Problem("contours lie in the patient, but the files do not say where this image does", str(files.images[0]), fix=fix),)
        return ()

    def write(self, result: Result, out: Path) -> None:
        """See `Export.write`."""
        subject = Subject.of(separated(result))
        data = structure_set(subject.result, subject.origin)
        save(data, out / self.targets(result.files, probabilities=False)[0])


def structure_set(result: Result, origin: Origin) -> Dataset:
    """The structure set of a prediction, not yet written: one region of interest for each class, also for one without a voxel."""
    maker, classes = result.maker, result.labels
    labels = to_acquired(origin.volume, np.asarray(result.semantic))
    uid = origin.uid("RTSTRUCT", maker.version, maker.digest, *classes.names, array_digest(labels))
    data = _begin(origin, uid, maker)
    data.ReferencedFrameOfReferenceSequence = [_references(origin)]
    terms = class_terms(classes, maker.settings, maker.model)
    regions, contours, observations = [], [], []
    for number, one in enumerate(classes.classes, 1):
        mask = np.isin(labels, one.values)  # of regions that overlap, too: all voxels whose value belongs to it
        regions.append(_region(number, one.name, mask, origin, maker))
        contours.append(_contours(number, mask, origin, terms[one.name]))
        observations.append(_observation(number, one.name, terms[one.name]))
    data.StructureSetROISequence = regions
    data.ROIContourSequence = contours
    data.RTROIObservationsSequence = observations
    return data


def _begin(origin: Origin, uid: str, maker: Maker) -> Dataset:
    # With explicit types a contour could not be longer than 64 KiB.
    data = new_object(origin, maker, STORAGE, ImplicitVRLittleEndian, uid, "RTSTRUCT", NUMBER, "structures")
    data.OperatorsName = ""
    data.FrameOfReferenceUID = origin.world
    data.StructureSetLabel = cut(maker.model, 16)
    data.StructureSetName = cut(f"{maker.model}, automatic" if maker.automatic else maker.model)
    data.StructureSetDate, data.StructureSetTime = data.InstanceCreationDate, data.InstanceCreationTime
    data.ApprovalStatus = "UNAPPROVED"
    return data


def _references(origin: Origin) -> Dataset:
    """The frame of reference, the study, the series and all images of the slices."""
    series = Dataset()
    series.SeriesInstanceUID = origin.common.SeriesInstanceUID
    images = {(frame.sop_class, frame.sop_uid): image_reference(frame) for frame in origin.slices}
    series.ContourImageSequence = list(images.values())
    study = Dataset()
    study.ReferencedSOPClassUID = STUDY
    study.ReferencedSOPInstanceUID = origin.common.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    world = Dataset()
    world.FrameOfReferenceUID = origin.world
    world.RTReferencedStudySequence = [study]
    return world


def _region(number: int, name: str, mask: Mask, origin: Origin, maker: Maker) -> Dataset:
    region = Dataset()
    region.ROINumber = number
    region.ReferencedFrameOfReferenceUID = origin.world
    region.ROIName = cut(name)
    region.ROIGenerationAlgorithm = "AUTOMATIC" if maker.automatic else "SEMIAUTOMATIC"
    region.ROIGenerationDescription = cut(f"{maker.model}, medseg {maker.version}")
    rows, columns = origin.spacing or (1.0, 1.0)
    region.ROIVolume = f"{int(mask.sum()) * rows * columns * origin.step / 1000:.6g}"
    return region


def _contours(number: int, mask: Mask, origin: Origin, terms: SegmentTerms) -> Dataset:
    item = Dataset()
    item.ROIDisplayColor = list(terms.color or (255, 0, 0))
    item.ReferencedROINumber = number
    contours = []
    decimals = max(0, math.ceil(-math.log10(FINE * min(origin.spacing or (1.0, 1.0)))))
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        image = image_reference(origin.slices[z], numbered=True)
        for polygon in outlines(mask[z]):
            contour = Dataset()
            contour.ContourImageSequence = [image]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(polygon)
            text = "\\".join(_decimal(v, decimals) for v in _world(origin, int(z), polygon).ravel().tolist())
            contour.add(DataElement(CONTOUR_DATA, "DS", text, already_converted=True))
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def _world(origin: Origin, z: int, polygon: Points) -> Points:
    """`(N, 3)` LPS millimetres of points `(y, x)` on a slice; exactly as its file places it (PS3.3, C.7.6.2.1.1)."""
    rows, columns = origin.spacing or (1.0, 1.0)
    along_row, along_column = np.reshape(origin.axes, (2, 3))
    return np.asarray(origin.positions[z] + polygon[:, :1] * rows * along_column + polygon[:, 1:] * columns * along_row)


def _decimal(value: float, decimals: int) -> str:
    """At most 16 characters, as decimal strings have."""
    text = f"{value:.{decimals}f}"
    return text if len(text) <= 16 else f"{value:.9g}"


def _observation(number: int, name: str, terms: SegmentTerms) -> Dataset:
    item = Dataset()
    item.ObservationNumber = number
    item.ReferencedROINumber = number
    item.ROIObservationLabel = cut(name, 16)
    item.SegmentedPropertyCategoryCodeSequence = [_code(terms.category)]
    code = _code(terms.type)
    if terms.modifier is not None and terms.region is None:
        code.SegmentedPropertyTypeModifierCodeSequence = [_code(terms.modifier)]
    item.RTROIIdentificationCodeSequence = [code]
    said = set(name.upper().replace("-", "_").replace(" ", "_").split("_"))
    item.RTROIInterpretedType = next((t for t in INTERPRETED if t in said), "ORGAN" if terms.category == CATEGORIES["anatomy"] else "")
    item.ROIInterpreter = ""
    return item


def _code(term: Term) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = term.value, term.scheme, term.meaning
    return code
