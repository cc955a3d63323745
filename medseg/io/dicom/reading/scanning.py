"""What lies somewhere: every file's header once, as volumes, annotations, and what is neither."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag
from pydicom.uid import UID

from medseg.errors import ImageError, MedsegError, Problem
from medseg.io.dicom.groups import text
from medseg.io.dicom.reading.annotations import KINDS, read_annotation
from medseg.io.dicom.reading.grouping import group
from medseg.io.dicom.reading.planes import Plane
from medseg.io.dicom.reading.sources import listed, looks_like_dicom, read_dataset, walk
from medseg.io.dicom.reading.templates import Templates
from medseg.io.dicom.volume import Annotation, Other, Scan, Source
from medseg.progress import Progress, Silent

KEYWORDS = (
    "SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality "
    "Manufacturer SeriesNumber InstanceNumber AcquisitionNumber SeriesDescription ProtocolName ScanningSequence SequenceVariant "
    "SequenceName PulseSequenceName ContrastBolusAgent BodyPartExamined SeriesDate SeriesTime AcquisitionDate AcquisitionTime "
    "AcquisitionDateTime ContentDate ContentTime EchoTime EchoNumbers InversionTime ConvolutionKernel TriggerTime NominalInterval "
    "FrameReferenceTime TemporalPositionIdentifier TemporalPositionIndex NominalCardiacTriggerDelayTime DiffusionBValue "
    "ActualFrameDuration NumberOfFrames Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored "
    "PixelRepresentation ImagePositionPatient ImageOrientationPatient SliceLocation PixelSpacing ImagerPixelSpacing "
    "NominalScannedPixelSpacing SpacingBetweenSlices SliceThickness SequenceOfUltrasoundRegions RescaleSlope RescaleIntercept "
    "ModalityLUTSequence DoseGridScaling GridFrameOffsetVector DetectorInformationSequence NumberOfSlices SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence TotalPixelMatrixRows TotalPixelMatrixColumns Units DecayCorrection PatientWeight "
    "RadiopharmaceuticalInformationSequence PatientID KVP NominalPercentageOfCardiacPhase SUVType HighBit"
)
"""Elements that tell a plane; reading no others halves the time."""
PRIVATE = ((0x0009, 0x0010), (0x0009, 0x100D), (0x7053, 0x0010), (0x7053, 0x1000), (0x7053, 0x1009),
           (0x0043, 0x0010), (0x0043, 0x102F), (0x0043, 0x1039), (0x0019, 0x0010), (0x0019, 0x100C), (0x2001, 0x0010), (0x2001, 0x1003),
           (0x0065, 0x0010), (0x0065, 0x1009))  # fmt: skip
NAMED = (".dcm", ".dicom", ".ima")
DIRECTORY: Final = "1.2.840.10008.1.3.10"


def _tags() -> list[Any]:
    found = [tag_for_keyword(keyword) for keyword in KEYWORDS.split()]
    assert None not in found
    return [*found, *(Tag(*one) for one in PRIVATE)]


TAGS = _tags()


def scan(paths: Iterable[Path] | Path, progress: Progress | None = None) -> Scan:
    """Everything that lies in folders, files, zip archives and DICOMDIRs; headers only, one broken file stops nothing.

    Args:
        paths: one or several; a DICOMDIR stands for the files that it lists.
        progress: told of every file.

    Raises:
        UsageError: a path that does not exist.
    """
    found = _Found()
    sources: list[Source] = []
    for source in walk([paths] if isinstance(paths, Path) else list(paths)):
        sources.append(source)
    directories = [source for source in sources if source.path.name.upper() == "DICOMDIR" and not source.member]
    for directory in directories:
        files, missing = listed(directory.path)
        known = {source.path.resolve() for source in sources}
        sources += [Source(file) for file in files if file.resolve() not in known]
        found.problems += missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for source in (progress or Silent()).track(sources, len(sources), "reading headers"):
            found.add(source)
        volumes, ungrouped = group(found.planes)
    return Scan(tuple(volumes), tuple(found.annotations), (*found.others, *ungrouped), found.foreign, tuple(found.problems))


class _Found:
    def __init__(self) -> None:
        self.planes: list[Plane] = []
        self.annotations: list[Annotation] = []
        self.others: list[Other] = []
        self.problems: list[Problem] = []
        self.foreign = 0
        self._templates = Templates()

    def add(self, source: Source) -> None:
        """Read one file."""
        try:
            if looks_like_dicom(source):
                self._add(source, read_dataset(source, tags=TAGS))
            elif source.path.suffix.lower() in NAMED or Path(source.member).suffix.lower() in NAMED:
                raise ImageError.of(
                    "is called DICOM, but does not begin as one",
                    where=str(source),
                    expected="'DICM' after 128 bytes, or an element of group 0002 or 0008",
                    fix="It was cut at its beginning, or is something else: export or download it again.",
                )
            elif source.path.suffix.lower() == ".zip" and not source.member:  # it could not be opened: its members would stand here
                raise ImageError.of("is not a whole zip archive", where=str(source), fix="It was cut, or is something else: get it again.")
            else:
                self.foreign += 1
        except MedsegError as error:
            self.others.append(Other(source, problems=error.problems))
        except Exception as error:  # whatever bytes provoke; the other files are still read
            self.others.append(Other(source, problems=(_unreadable(source, error),)))

    def _add(self, source: Source, header: Dataset) -> None:
        kind = text(header.get("SOPClassUID")) or text(header.file_meta.get("MediaStorageSOPClassUID"))
        if kind in KINDS:
            self.annotations.append(read_annotation(read_dataset(source), source))
        elif "Rows" in header and "Columns" in header:
            if "MOSAIC" in text(header.get("ImageType")):
                header = read_dataset(source)
            self.planes += self._templates.read(header, source)
        elif kind:
            name = str(UID(kind).name)
            self.others.append(Other(source, name, () if kind == DIRECTORY or not _image(name) else (_no_image(source, name),)))
        else:
            read_dataset(source)  # says what is wrong, if anything
            self.others.append(
                Other(
                    source,
                    problems=(
                        Problem(
                            "is DICOM, but does not say of what kind, and holds no image",
                            str(source),
                            f"{len(header)} of the elements that describe images",
                            "a SOP Class UID",
                            "Export it again.",
                        ),
                    ),
                )
            )


def _image(name: str) -> bool:
    return "Image Storage" in name


def _no_image(source: Source, name: str) -> Problem:
    return Problem("holds no image although it is one by its kind", str(source), f"{name} without rows and columns", fix="Export it again.")


def _unreadable(source: Source, error: Exception) -> Problem:
    return Problem(
        "the header cannot be read", str(source), f"{type(error).__name__}: {str(error)[:200]}", fix="Export or download the file again."
    )
