"""Predictions as label maps: in the format of the image, or as NIfTI."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import CaseFiles
from medseg.errors import Problem
from medseg.io.dicom.volume import SUFFIX
from medseg.io.exports import Export, Result
from medseg.io.format import numbers
from medseg.io.images import label_suffix, map_suffix, read_header, write_label, write_maps
from medseg.io.objects import decode
from medseg.scratch import Scratch, copy

MAPS = "probabilities"
"""The folder of class probabilities within that of predictions."""
NIFTI = ".nii.gz"


@final
class LabelMaps(Export):
    """A file of the image's own format; NIfTI for DICOM, PNG for JPEG."""

    name = "labels"
    summary = "label maps in the format of the image (NIfTI for DICOM, PNG for JPEG)"

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export`."""
        image = files.images[0]
        return _targets(files, label_suffix(image), map_suffix(image), probabilities)

    def problems(self, files: CaseFiles) -> tuple[Problem, ...]:
        """None: every image that can be read has a format that holds labels."""
        return ()

    def write(self, result: Result, out: Path) -> None:
        """See `Export`."""
        _write(result, [out / target for target in self.targets(result.files, result.prediction.probabilities is not None)])


@final
class Nifti(Export):
    """NIfTI, whatever the format of the image."""

    name: ClassVar[str] = "nifti"
    summary: ClassVar[str] = "label maps as NIfTI"

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export`."""
        return _targets(files, NIFTI, NIFTI, probabilities)

    def problems(self, files: CaseFiles) -> tuple[Problem, ...]:
        """A picture lies nowhere in the world."""
        image = files.images[0]
        if image.name.endswith(SUFFIX):
            return ()
        header = read_header(image)
        if header.grid.ndim == 3 or header.native.spaced:
            return ()
        return (
            Problem(
                "a picture cannot be written as NIfTI",
                f"case '{files.id}', {image}",
                f"an image in 2D, shape {numbers(header.shape)}, that does not say where it lies",
                "a volume",
                "Leave nifti out of --format; label maps of pictures are pictures.",
            ),
        )

    def write(self, result: Result, out: Path) -> None:
        """See `Export`."""
        _write(result, [out / target for target in self.targets(result.files, result.prediction.probabilities is not None)])


def _targets(files: CaseFiles, label: str, maps: str, probabilities: bool) -> tuple[Path, ...]:
    first = Path(f"{files.id}{label}")
    return (first, Path(MAPS, f"{files.id}{maps}")) if probabilities else (first,)


def _write(result: Result, targets: list[Path]) -> None:
    image, prediction = result.files.images[0], result.prediction
    things, coded = bool(result.labels.things), result.labels.given == "codes"
    codes = decode(prediction.labels, result.labels, result.scratch)
    write_label(targets[0], codes, like=image, colours=things and coded, numbered=things and not coded)
    if prediction.probabilities is not None:
        write_maps(targets[1], _as_float32(prediction.probabilities, result.scratch), like=image)


def _as_float32(maps: NDArray[np.float16], scratch: Scratch) -> NDArray[np.float32]:
    """What files hold: few programs read float16."""
    result: NDArray[np.float32] = scratch.zeros(maps.shape, np.float32)
    for source, target in zip(maps, result, strict=True):
        copy(source, target)
    return result
