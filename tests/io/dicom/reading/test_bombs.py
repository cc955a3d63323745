"""Files that unpack to far more than they are, or promise it, cost neither memory nor time."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless

from medseg.errors import ImageError
from medseg.io.dicom.reading import sources
from medseg.io.dicom.reading.reader import read_dataset, read_voxels, scan
from medseg.io.dicom.volume import Source
from tests.io.dicom.phantoms import grid_of, write_series

SHAPE = (1, 8, 8)
BOMB = 2**25
ALLOWED = 2**24


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _file(folder: Path, in_header: bool, deflated: bool) -> Path:
    (path,) = write_series(folder, np.ones(SHAPE, np.int16), grid_of(SHAPE))
    data = dcmread(path)
    if in_header:
        data.private_block(0x0009, "BOMB", create=True).add_new(0x01, "OB", bytes(BOMB))
    else:
        data.PixelData = bytes(BOMB)
    if deflated:
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path, little_endian=True, implicit_vr=False)
    return path


def _zipped(path: Path) -> Path:
    target = path.with_name("all.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, path.name)
    path.unlink()
    return target


@pytest.mark.parametrize("packed", ["deflated", "zip"])
def test_pixels_beyond_the_promise(tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HEADER", 2**20)
    path = _file(tmp_path, in_header=False, deflated=packed == "deflated")
    path = path if packed == "deflated" else _zipped(path)
    found = []
    assert _peak(lambda: found.append(scan(path))) < ALLOWED
    (volume,) = found[0].volumes

    def refused() -> None:
        with pytest.raises(ImageError, match=r"is damaged, or no DICOM file.*found more than 10488\d\d bytes"):
            read_voxels(volume)

    assert _peak(refused) < ALLOWED


@pytest.mark.parametrize("packed", ["deflated", "zip"])
def test_headers_beyond_the_bound(tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HEADER", 2**22)
    path = _file(tmp_path, in_header=True, deflated=packed == "deflated")
    source = Source(path) if packed == "deflated" else Source(_zipped(path), path.name)

    def refused() -> None:
        with pytest.raises(ImageError, match=r"is damaged, or no DICOM file.*found more than 4194304 bytes"):
            read_dataset(source)

    assert _peak(refused) < ALLOWED


def test_a_large_header_of_a_deflated_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST", 2**16)
    path = _file(tmp_path, in_header=True, deflated=True)
    assert len(read_dataset(Source(path))[0x0009, 0x1001].value) == BOMB
    assert read_dataset(Source(path), pixels=True).PixelData == np.ones(SHAPE, "<i2").tobytes()


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_that_no_file_of_this_size_holds(tmp_path: Path, compressed: bool) -> None:
    """A million planes would be made of 128 bytes."""
    (path,) = write_series(tmp_path, np.ones(SHAPE, np.int16), grid_of(SHAPE))
    data = dcmread(path)
    if compressed:
        data.compress(JPEGLSLossless)
    data.NumberOfFrames = 999_999
    data.save_as(path)
    found = []
    assert _peak(lambda: found.append(scan(tmp_path))) < ALLOWED
    assert not found[0].volumes
    (other,) = found[0].others
    assert "the header promises more pixels than the file can hold" in str(other.problems[0])
    assert "999999 frames of 8 x 8 pixels" in str(other.problems[0])


def test_truncated_pixels_are_an_error_of_the_scan(tmp_path: Path) -> None:
    shape = (3, 8, 8)
    paths = write_series(tmp_path, np.ones(shape, np.int16), grid_of(shape))
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    (volume,) = scan(tmp_path).volumes
    (problem,) = volume.errors
    assert "the header promises more pixels than the file can hold" in str(problem)
    assert paths[1].name in str(problem)
