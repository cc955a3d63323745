"""Pixels of frames as they are stored, whatever the transfer syntax.

pydicom decodes with pylibjpeg-openjpeg, pyjpegls and Pillow; what these cannot (JPEG lossless, JPEG of 12 bits, HTJ2K), GDCM does, through
SimpleITK. Deflated frames are inflated here.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import iter_pixels, pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from medseg.errors import ImageError
from medseg.geometry import Array
from medseg.io.dicom.groups import whole
from medseg.io.dicom.reading.sources import NATIVE

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
GDCM_FIRST = {f"1.2.840.10008.1.2.4.{n}" for n in (51, 57, 70, 201, 202, 203)}
"""Transfer syntaxes that no decoder of pydicom's reads whole: JPEG extended, JPEG lossless, HTJ2K."""
DESCRIPTION = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
WORDS = (*NATIVE, DeflatedExplicitVRLittleEndian, RLELossless)
"""Transfer syntaxes that keep all bits of a value, also those that mean nothing."""
LOUD = ("pydicom", "openjpeg", "openjpeg.utils", "openjpeg._openjpeg", "_openjpeg", "pylibjpeg")
"""Loggers of decoders."""


def frames_of(data: Dataset, indices: Sequence[int] | None, where: str) -> Iterator[Array]:
    """Frames as stored: `(rows, columns)`, or `(rows, columns, 3)` of red, green and blue.

    Args:
        data: a file with its pixels.
        indices: which frames, in which order; None for a file of one image.
        where: for error texts.

    Raises:
        ImageError: no pixels, too few of them, or none that can be decoded.
    """
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError.of("holds no pixels", where=where, expected="pixel data", fix="Export it again, with images.")
    high, kept = whole(data.get("HighBit")), whole(data.get("BitsStored"))
    with _quiet():
        if high is None or kept is None or high < kept or data.file_meta.TransferSyntaxUID not in WORDS:
            yield from _decoded(data, indices, where)
            return
        wide = copy.copy(data)  # pydicom takes values from the lowest bits
        wide.BitsStored = high + 1
        yield from (_lowered(frame, high, kept, where) for frame in _decoded(wide, indices, where))


def _lowered(stored: Array, high: int, kept: int, where: str) -> Array:
    """Values that stand above bits that mean nothing, as DICOM before 2004 allows, shifted down to these.

    Raises:
        ImageError: the bits below hold something, so the header may be wrong and the values right as they are.
    """
    below = high + 1 - kept
    if (stored & stored.dtype.type(2**below - 1)).any():
        raise ImageError.of(
            "the header says that values stand above bits that mean nothing, but these bits hold something",
            where=where,
            found=f"High Bit {high}, {kept} bits stored",
            expected=f"High Bit {kept - 1}",
            fix="Repair the header (HighBit, BitsStored), or export the image again.",
        )
    return np.asarray(stored >> below)


def _decoded(data: Dataset, indices: Sequence[int] | None, where: str) -> Iterator[Array]:
    syntax = str(data.file_meta.get("TransferSyntaxUID", ""))
    wanted = [0] if indices is None else list(indices)
    if syntax == DEFLATED_FRAMES:
        yield from (_inflated(data, index, where) for index in wanted)
        return
    done = 0
    failure: Exception | None = None
    if syntax not in GDCM_FIRST or (syntax == JPEGBaseline8Bit and data.BitsStored <= 8):
        try:
            for frame in iter_pixels(data, indices=None if indices is None else wanted):
                yield np.asarray(frame)
                done += 1
        except Exception as error:  # what damaged bytes provoke in five libraries
            failure = error
        else:
            return
    for index in wanted[done:]:
        yield _otherwise(data, index, where, syntax, failure)


def _otherwise(data: Dataset, index: int, where: str, syntax: str, failure: Exception | None) -> Array:
    """A frame by the second choice of decoders."""
    if failure is not None:
        with contextlib.suppress(Exception):  # decoding at once works where frame by frame pydicom writes into a read-only buffer
            return np.asarray(pixel_array(data, index=index if "NumberOfFrames" in data else None))
    if UID(syntax).is_valid and UID(syntax).is_transfer_syntax and UID(syntax).is_encapsulated:
        try:
            return _by_gdcm(data, index)
        except Exception as error:
            failure = failure or error
    raise ImageError.of(
        "the pixels cannot be decoded",
        where=where,
        found=f"{UID(syntax).name or 'no transfer syntax'}: {_short(failure)}",
        expected="a whole image in a transfer syntax that can be read",
        fix="The file is truncated or damaged: export or send it again, uncompressed if possible.",
    )


def _short(error: Exception | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.endswith(":")]
    return f"{type(error).__name__}, {(useful or lines or ['without a reason'])[-1][:200]}"


def _inflated(data: Dataset, index: int, where: str) -> Array:
    rows, columns, bits = int(data.Rows), int(data.Columns), int(data.BitsAllocated)
    try:
        frames = generate_frames(data.PixelData, number_of_frames=int(data.get("NumberOfFrames") or 1))
        content = zlib.decompress(next(frame for i, frame in enumerate(frames) if i == index), -15)
        if bits == 1:
            return np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")[: rows * columns].reshape(rows, columns)
        kind = np.dtype(f"<{'i' if data.PixelRepresentation else 'u'}{bits // 8}")
        return np.frombuffer(content, kind, rows * columns).reshape(rows, columns)
    except (zlib.error, StopIteration, ValueError) as error:
        raise ImageError.of("the pixels cannot be decoded", where=where, found=f"Deflated Image Frame: {error}") from None


def _by_gdcm(data: Dataset, index: int) -> Array:
    """One frame, from a file that holds nothing else: ITK would apply the scaling of a whole one."""
    import SimpleITK as sitk  # noqa: N813

    count = int(data.get("NumberOfFrames") or 1)
    frame = next(one for i, one in enumerate(generate_frames(data.PixelData, number_of_frames=count)) if i == index)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frame.dcm")
        alone = FileDataset(str(path), Dataset(), file_meta=meta, preamble=b"\0" * 128)
        alone.SOPClassUID, alone.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        for name in DESCRIPTION:
            if name in data:
                setattr(alone, name, data[name].value)
        alone.PixelData = encapsulate([frame])
        alone["PixelData"].is_undefined_length = True
        alone.save_as(path, enforce_file_format=True)
        shown = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            with _mute():
                image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    array: Array = sitk.GetArrayFromImage(image)
    array = array[0] if array.ndim == 3 + (image.GetNumberOfComponentsPerPixel() > 1) else array
    if array.shape[:2] != (int(data.Rows), int(data.Columns)):
        raise ValueError(f"{array.shape[0]} x {array.shape[1]} pixels where the header says {data.Rows} x {data.Columns}")
    return array


@contextlib.contextmanager
def _mute() -> Iterator[None]:
    """Without what C libraries write to standard error, past Python, about every attempt of theirs."""
    try:
        kept = os.dup(2)
    except OSError:  # a service without standard error
        yield
        return
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)
        os.close(sink)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the decoders' own warnings; what matters becomes an error."""
    loggers = [logging.getLogger(name) for name in LOUD]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, state in zip(loggers, before, strict=True):
            logger.disabled = state
