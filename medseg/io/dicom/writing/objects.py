"""What all exports of DICOM share: when they can be written, and what objects say of patient, study, device and themselves."""

from __future__ import annotations

import copy
import datetime

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID

from medseg.dataset import CaseFiles, Labels
from medseg.errors import Problem
from medseg.io.dicom.reading.reader import find_volume, usable
from medseg.io.dicom.terms import unknown_classes
from medseg.io.dicom.volume import SUFFIX, Frame
from medseg.io.dicom.writing.origin import Origin, no_place, origin_of
from medseg.io.dicom.writing.subject import cut
from medseg.io.exports import Export, Maker


class DicomExport(Export):
    """Objects about the series that a case was predicted from."""

    def problems(self, files: CaseFiles) -> tuple[Problem, ...]:
        """See `Export.problems`: the first image is no series, or does not say where it lies."""
        first = files.images[0]
        if first.suffix != SUFFIX:
            fix = "Predict from the DICOM files, or ask for --format nifti."
            return (Problem("is no DICOM series, so no DICOM object can refer to it", str(first), fix=fix),)
        return no_place(usable(find_volume(first)))

    def warnings(self, files: CaseFiles, labels: Labels, maker: Maker) -> tuple[Problem, ...]:
        """See `Export.warnings`: codes of classes, and elements that its images lack."""
        return (*unknown_classes(labels, maker.settings, maker.model), *origin_of(find_volume(files.images[0])).filled)


def new_object(origin: Origin, maker: Maker, sop_class: str, syntax: str, uid: str, modality: str, number: int, what: str) -> Dataset:
    """An object about some images, in a series of its own in their study.

    Args:
        origin: the images.
        maker: what makes it.
        sop_class: SOP Class UID.
        syntax: Transfer Syntax UID.
        uid: SOP Instance UID.
        modality: of the new series.
        number: what its number ends in.
        what: one word for its description.
    """
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(uid)
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.update(copy.deepcopy(origin.common))  # elements are shared otherwise, and setting one here would change the origin
    now = datetime.datetime.now()
    values = {
        "SOPClassUID": sop_class,
        "SOPInstanceUID": uid,
        "InstanceCreationDate": f"{now:%Y%m%d}",
        "InstanceCreationTime": f"{now:%H%M%S}",
        "Modality": modality,
        "SeriesInstanceUID": origin.uid("series", what, maker.digest, uid),
        "SeriesNumber": origin.number(number),
        "SeriesDescription": cut(f"{maker.model} {what}"),
        "InstanceNumber": 1,
        "Manufacturer": "medseg",
        "ManufacturerModelName": cut(maker.model),
        "DeviceSerialNumber": maker.digest or "unknown",
        "SoftwareVersions": maker.version,
    }
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


def image_reference(frame: Frame, numbered: bool = False) -> Dataset:
    """An item that refers to an image; `numbered` to one frame of a multi-frame file."""
    image = Dataset()
    image.ReferencedSOPClassUID = frame.sop_class
    image.ReferencedSOPInstanceUID = frame.sop_uid
    if numbered and frame.index is not None:
        image.ReferencedFrameNumber = frame.index + 1
    return image
