"""What the header of an object that annotates images says: segmentations and structure sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom import Dataset

from medseg.errors import Problem
from medseg.io.dicom.groups import text
from medseg.io.dicom.volume import Annotation, Source, Volume

KINDS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
}
"""SOP Class UID -> kind."""


def read_annotation(header: Dataset, source: Source) -> Annotation:
    """The annotation in a file whose SOP class is one of `KINDS`."""
    kind = KINDS[text(header.get("SOPClassUID"))]
    if kind == "SEG":
        parts, label = header.get("SegmentSequence") or (), "SegmentLabel"
        series, instances = _segmented(header)
        world = text(header.get("FrameOfReferenceUID"))
    else:
        parts, label = header.get("StructureSetROISequence") or (), "ROIName"
        series, instances, world = _contoured(header)
    errors = () if parts else (Problem("names nothing that it annotates", str(source), "", "segments" if kind == "SEG" else "ROIs"),)
    return Annotation(
        source=source,
        kind=kind,
        series=tuple(dict.fromkeys(series)),
        instances=frozenset(instances),
        world=world,
        names=tuple(text(part.get(label)) for part in parts),
        study=text(header.get("StudyInstanceUID")),
        errors=errors,
    )


def annotated(annotation: Annotation, volumes: Sequence[Volume]) -> dict[str, int]:
    """Keys of the volumes that an annotation is about, and how many of their images it names.

    They are of the series that it names, else hold images that it names, else are of its world. Where it names images of some of them,
    it is about these.
    """
    shared = {v.key: sum(f.sop_uid in annotation.instances for stack in v.frames for f in stack) for v in volumes}
    found = [v.key for v in volumes if v.series.uid in annotation.series] or [v.key for v in volumes if shared[v.key]]
    if not found and annotation.world:
        found = [v.key for v in volumes if v.series.world == annotation.world]
    named = any(shared[key] for key in found)
    return {key: shared[key] for key in found if shared[key] or not named}


def _segmented(header: Dataset) -> tuple[list[str], set[str]]:
    series: list[str] = []
    instances: set[str] = set()
    for item in header.get("ReferencedSeriesSequence") or ():
        series.append(text(item.get("SeriesInstanceUID")))
        instances |= {text(one.get("ReferencedSOPInstanceUID")) for one in item.get("ReferencedInstanceSequence") or ()}
    for holder in _frames(header):
        for derived in holder.get("DerivationImageSequence") or ():
            instances |= {text(one.get("ReferencedSOPInstanceUID")) for one in derived.get("SourceImageSequence") or ()}
    return series, instances - {""}


def _frames(header: Dataset) -> Iterator[Dataset]:
    yield from header.get("SharedFunctionalGroupsSequence") or ()
    yield from header.get("PerFrameFunctionalGroupsSequence") or ()


def _contoured(header: Dataset) -> tuple[list[str], set[str], str]:
    series: list[str] = []
    instances: set[str] = set()
    worlds: list[str] = []
    for reference in header.get("ReferencedFrameOfReferenceSequence") or ():
        worlds.append(text(reference.get("FrameOfReferenceUID")))
        for study in reference.get("RTReferencedStudySequence") or ():
            for item in study.get("RTReferencedSeriesSequence") or ():
                series.append(text(item.get("SeriesInstanceUID")))
                instances |= {text(one.get("ReferencedSOPInstanceUID")) for one in item.get("ContourImageSequence") or ()}
    for contours in header.get("ROIContourSequence") or ():
        for contour in contours.get("ContourSequence") or ():
            instances |= {text(one.get("ReferencedSOPInstanceUID")) for one in contour.get("ContourImageSequence") or ()}
    for roi in header.get("StructureSetROISequence") or ():
        worlds.append(text(roi.get("ReferencedFrameOfReferenceUID")))
    return series, instances - {""}, next((world for world in worlds if world), text(header.get("FrameOfReferenceUID")))
