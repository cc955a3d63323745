"""A series is read with the values and the geometry it was written with, in any orientation and whatever its files are called."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import ImageError
from medseg.io.dicom.reading.reader import find_volume, read_voxels, scan
from medseg.io.digests import Digests, image_digest
from medseg.io.images import label_suffix, read_header, read_image, read_label, write_label
from tests.io.dicom.phantoms import ORIENTATIONS, grid_of, write_series


def _array(shape: tuple[int, ...], dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(-900, 900, shape).astype(dtype)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_series_is_read_as_written(tmp_path: Path, orientation: str) -> None:
    array, grid = _array((5, 6, 7)), grid_of((5, 6, 7), orientation)
    files = write_series(tmp_path / "a", array, grid)
    names = [f"{i}" for i in range(len(files))]
    random.Random(1).shuffle(names)
    for file, name in zip(files, names, strict=True):
        file.rename(file.with_name(name))
    (volume,) = scan(tmp_path).volumes
    assert volume.folder == tmp_path / "a"
    assert not volume.errors
    assert volume.spaced
    assert volume.grid.shape == grid.shape
    assert np.allclose(volume.grid.affine, grid.affine, atol=1e-6)
    assert np.array_equal(read_voxels(volume)[0], array)
    assert volume.dtype == "int16"


def test_series_stands_for_an_image(tmp_path: Path) -> None:
    array, grid = _array((4, 6, 7)), grid_of((4, 6, 7))
    write_series(tmp_path, array, grid, RescaleIntercept="-1024", BitsStored=12, HighBit=11)
    (volume,) = scan(tmp_path).volumes
    header, image = read_header(volume.path), read_image(volume.path)
    assert header.shape == (4, 6, 7)
    assert header.channels == 1
    assert header.dtype == "int16"
    assert np.array_equal(image.array[0], array - 1024)
    assert image.array.dtype == np.int16
    assert label_suffix(volume.path) == ".nii.gz"
    label = tmp_path / "label.nii.gz"
    write_label(label, (array > 0).astype(np.uint8), volume.path)
    back = read_label(label)
    assert back.grid.distance(grid) < 1e-4
    assert np.array_equal(back.array[0], array > 0)


def test_volume_is_found_by_name_and_its_absence_is_said(tmp_path: Path) -> None:
    files = write_series(tmp_path, _array((3, 4, 4)), grid_of((3, 4, 4)))
    (volume,) = scan(tmp_path).volumes
    assert find_volume(volume.path) is find_volume(volume.path)
    files[1].unlink()
    with pytest.raises(ImageError, match=r"no such DICOM volume; found 1 other volumes"):
        find_volume(volume.path)


def test_digest_of_a_volume_is_that_of_its_files(tmp_path: Path) -> None:
    files = write_series(tmp_path / "a", _array((3, 4, 4)), grid_of((3, 4, 4)))
    (volume,) = scan(tmp_path / "a").volumes
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (copy,) = scan(tmp_path / "b").volumes
    cache = Digests(tmp_path / "cache")
    assert cache.file(volume.path) == cache.file(copy.path) == image_digest(volume.path)
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(content)
    assert cache.file(volume.path) != cache.file(copy.path)
