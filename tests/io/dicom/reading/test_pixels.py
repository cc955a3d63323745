"""Stored values and what they mean, in every transfer syntax that can be written here."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from medseg.errors import ImageError
from medseg.io.dicom.reading.pixels import frames_of
from medseg.io.dicom.reading.reader import read_voxels, scan
from medseg.io.dicom.reading.values import Scaling, values_of
from tests.io.dicom.phantoms import grid_of, write_series

SHAPE = (3, 16, 12)


def _array(low: int = 0, high: int = 4000, dtype: Any = np.int16) -> Any:
    return np.random.default_rng(0).integers(low, high, SHAPE).astype(dtype)


def _read(folder: Path) -> Any:
    (volume,) = scan(folder).volumes
    values = read_voxels(volume)
    assert values.dtype == volume.dtype
    return values[0]


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
def test_compressed(tmp_path: Path, syntax: UID) -> None:
    array = _array(dtype=np.uint16)
    for file in write_series(tmp_path, array, grid_of(SHAPE), RescaleIntercept="-1000"):
        data = dcmread(file)
        data.compress(syntax)
        data.save_as(file)
    assert np.array_equal(_read(tmp_path), array.astype(np.int32) - 1000)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed(tmp_path: Path, syntax: UID) -> None:
    array = _array(-500, 500)
    for file in write_series(tmp_path, array, grid_of(SHAPE)):
        data = dcmread(file)
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(file, little_endian=True, implicit_vr=syntax == ImplicitVRLittleEndian)
    assert np.array_equal(_read(tmp_path), array)


def test_deflated_frames(tmp_path: Path) -> None:
    array = _array()
    for z, file in enumerate(write_series(tmp_path, array, grid_of(SHAPE))):
        data = dcmread(file)
        packer = zlib.compressobj(wbits=-15)
        content = packer.compress(array[z].tobytes()) + packer.flush()
        data.PixelData = encapsulate([content + b"\0" * (len(content) % 2)])
        data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.8.1")
        (frame,) = frames_of(data, None, str(file))
        assert np.array_equal(frame, array[z])


@pytest.mark.parametrize(
    ("tags", "dtype", "expected"),
    [
        ({"RescaleIntercept": "-1024", "BitsStored": 13, "HighBit": 12}, "int16", lambda a: a - 1024),
        ({"RescaleSlope": "2"}, "int32", lambda a: a.astype(np.int32) * 2),
        ({"RescaleSlope": "0.25", "RescaleIntercept": "3"}, "float32", lambda a: a * np.float32(0.25) + 3),
        ({"RescaleSlope": "0"}, "int16", lambda a: a),  # a slope of 0 would leave nothing; scanners mean none
    ],
)
def test_rescaled(tmp_path: Path, tags: dict[str, Any], dtype: str, expected: Any) -> None:
    array = _array()
    write_series(tmp_path, array, grid_of(SHAPE), **tags)
    values = _read(tmp_path)
    assert values.dtype == dtype
    assert np.array_equal(values, expected(array))


def test_lookup_table(tmp_path: Path) -> None:
    array = _array(0, 256, np.uint8)
    table = Dataset()
    table.add_new(0x00283002, "US", [256, 0, 16])
    table.ModalityLUTType = "US"
    table.add_new(0x00283006, "US", [i * i for i in range(256)])
    write_series(tmp_path, array, grid_of(SHAPE), "OT", ModalityLUTSequence=[table])
    assert np.array_equal(_read(tmp_path), array.astype(np.uint16) ** 2)


def test_only_radiographs_are_inverted(tmp_path: Path) -> None:
    array = _array(0, 256, np.uint8)
    flat = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PhotometricInterpretation": "MONOCHROME1"}
    write_series(tmp_path / "flat", array[:1], grid_of((1, 16, 12)), "OT", **flat)
    write_series(tmp_path / "solid", array, grid_of(SHAPE), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(_read(tmp_path / "flat"), 255 - array[0])
    assert np.array_equal(_read(tmp_path / "solid"), array)


def test_overlay_in_unused_bits_is_no_value(tmp_path: Path) -> None:
    array = _array(0, 4096, np.uint16)
    overlay = array | (np.random.default_rng(1).integers(0, 2, SHAPE) << 15).astype(np.uint16)
    for file in write_series(tmp_path, overlay, grid_of(SHAPE), BitsStored=12, HighBit=11):
        data = dcmread(file)
        data.add_new(0x60000100, "US", 16)
        data.add_new(0x60000102, "US", 15)
        data.save_as(file)
    assert np.array_equal(_read(tmp_path), array)


def test_values_beyond_what_the_header_promises_are_refused() -> None:
    stored, header = np.array([[0, 63536]], np.uint16), Dataset()
    with pytest.raises(ImageError, match=r"outside the range that the header promises; found -1024 to 62512, expected -32768 to 32767"):
        values_of(stored, header, Scaling(1, -1024), np.dtype(np.int16), "x")


def test_colour_has_three_channels(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 16, 12, 3)).astype(np.uint8)
    write_series(tmp_path, colours[..., 0], grid_of(SHAPE), "OT", SamplesPerPixel=3, PhotometricInterpretation="RGB",
                 PlanarConfiguration=0, PixelData=lambda z: colours[z].tobytes())  # fmt: skip
    (volume,) = scan(tmp_path).volumes
    assert volume.samples == 3
    assert np.array_equal(read_voxels(volume), np.moveaxis(colours, -1, 0))


def _bundled(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str)
    return Path(found)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("MR_small_jp2klossless.dcm", (1, 1, 64, 64), "int16"),
        ("MR_small_RLE.dcm", (1, 1, 64, 64), "int16"),
        ("MR_small_bigendian.dcm", (1, 1, 64, 64), "int16"),
        ("JPEG2000.dcm", (1, 1024, 256), "int16"),
        ("SC_rgb_jpeg_dcmtk.dcm", (3, 100, 100), "uint8"),
        ("SC_rgb_rle_2frame.dcm", (6, 100, 100), "uint8"),
        ("rtdose.dcm", (1, 15, 10, 10), "float32"),
        ("examples_palette.dcm", (3, 350, 800), "uint8"),
        ("examples_ybr_color.dcm", (90, 240, 320), "uint8"),
        ("JPEG-lossy.dcm", (1, 1024, 256), "int16"),
    ],
)
def test_bundled_files(name: str, shape: tuple[int, ...], dtype: str) -> None:
    (volume,) = scan(_bundled(name)).volumes
    values = read_voxels(volume)
    assert values.shape == shape
    assert values.dtype == dtype
    assert values.min() < values.max()


def test_encodings_of_one_image_are_equal() -> None:
    names = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
             "MR_small_jpeg_ls_lossless.dcm")  # fmt: skip
    images = [read_voxels(scan(_bundled(name)).volumes[0]) for name in names]
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(image, images[0]), name


def test_doses_lie_where_their_offsets_say() -> None:
    (volume,) = scan(_bundled("rtdose.dcm")).volumes
    data = dcmread(_bundled("rtdose.dcm"))
    assert volume.grid.spacing[0] == pytest.approx(abs(float(data.GridFrameOffsetVector[1])))
    raw = data.pixel_array * float(data.DoseGridScaling)
    assert np.allclose(read_voxels(volume)[0], raw if data.GridFrameOffsetVector[1] > 0 else raw[::-1])


def test_several_doses_at_one_place_are_called_doses(tmp_path: Path) -> None:
    data = dcmread(_bundled("rtdose.dcm"))
    data.save_as(tmp_path / "plan.dcm")
    data.SOPInstanceUID, data.PixelData = f"{data.SOPInstanceUID}.1", bytes(len(data.PixelData))
    data.save_as(tmp_path / "beam.dcm")
    (volume,) = scan(tmp_path).volumes
    (error,) = volume.errors
    assert error.what == "several doses (RTDOSE) lie at one place, and nothing says which is meant"
    assert (error.found, error.fix) == ("15 such planes, up to 2 doses each", "Give the file of one dose alone.")


def test_truncated_pixels_are_refused_by_name(tmp_path: Path) -> None:
    files = write_series(tmp_path, _array(), grid_of(SHAPE))
    files[1].write_bytes(files[1].read_bytes()[:-100])
    with pytest.raises(ImageError, match=rf"{files[1].name}: the header promises more pixels .* at least 96 too few"):
        _read(tmp_path)


def test_a_file_without_pixels_is_refused_by_name(tmp_path: Path) -> None:
    files = write_series(tmp_path, _array(), grid_of(SHAPE), PixelData=lambda z: None if z == 1 else b"\0" * (16 * 12 * 2))
    with pytest.raises(ImageError, match=rf"{files[1].name}: holds no pixels"):
        _read(tmp_path)


def test_unknown_transfer_syntax_is_named(tmp_path: Path) -> None:
    for file in write_series(tmp_path, _array(), grid_of(SHAPE)):
        data = dcmread(file)
        data.PixelData = encapsulate([b"\0" * 64])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")  # MPEG-4
        data.save_as(file)
    with pytest.raises(ImageError, match=r"the pixels cannot be decoded; found MPEG-4 AVC/H.264 High Profile"):
        _read(tmp_path)


def test_a_header_that_promises_more_than_the_file_holds_is_refused_before_room_is_made(tmp_path: Path) -> None:
    write_series(tmp_path, _array()[:1], grid_of((1, 16, 12)), Rows=60000, Columns=60000)
    (volume,) = scan(tmp_path).volumes
    with pytest.raises(ImageError, match=r"the header promises more pixels than the file can hold"):
        read_voxels(volume)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_values_above_bits_that_mean_nothing_are_shifted_down(tmp_path: Path, dtype: Any) -> None:
    array = _array(-2048 if dtype is np.int16 else 0, 2048, dtype)
    write_series(tmp_path, array * dtype(16), grid_of(SHAPE), BitsStored=12, HighBit=15)
    assert np.array_equal(_read(tmp_path), array)


def test_a_high_bit_that_the_values_contradict_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, _array(1, 4000), grid_of(SHAPE), BitsStored=12, HighBit=15)
    with pytest.raises(ImageError, match=r"these bits hold something; found High Bit 15, 12 bits stored, expected High Bit 11"):
        _read(tmp_path)


@pytest.mark.parametrize("high", [10, 16])
def test_an_impossible_high_bit_is_an_error_of_the_scan(tmp_path: Path, high: int) -> None:
    write_series(tmp_path, _array(0, 4000), grid_of(SHAPE), BitsStored=12, HighBit=high)
    (volume,) = scan(tmp_path).volumes
    assert f"the bits of a value are impossible; found High Bit {high}, 12 of 16 bits stored" in str(volume.errors[0])
