"""The store: exact, atomic, memory-mapped."""

import errno
import os

import numpy as np
import pytest

from medseg.case import Case
from medseg.errors import DatasetError, ResourceError
from medseg.geometry import Crop, Grid, Reorient, Resample
from medseg.io.store import Store

RNG = np.random.default_rng(3)
NATIVE = Grid((6, 7, 8), np.array([[0, 0.1, 1.5, -7.123456789], [0.3, 2, 0, 1 / 3], [3, 0, 0.7, 5], [0, 0, 0, 1.0]]))
TRAIL = (
    Reorient(axes=(0, 1, 2), flips=(False, True, True)),
    Crop(start=(1, 1, 1), shape=(4, 5, 6), source=(6, 7, 8)),
    Resample(source=(4, 5, 6), shape=(4, 4, 4)),
)
POINTS = (np.array([[0, 1, 2], [3, 3, 3]], np.int32), np.zeros((0, 3), np.int32), np.array([[1, 1, 1]], np.int32))


def case(name="a", scale=1.0, label=None):
    return Case(name, (RNG.normal(size=(2, 4, 4, 4)) * scale).astype(np.float32), label, NATIVE, TRAIL)


def test_round_trip(tmp_path):
    label = RNG.integers(0, 3, (4, 4, 4)).astype(np.int64)
    written = case(label=label)
    store = Store(tmp_path / "new" / "folder")
    store.write(written, NATIVE, POINTS, "d1")
    read = store.read("a")
    assert read.native == NATIVE
    assert read.trail == TRAIL
    assert isinstance(read.image, np.memmap)
    assert isinstance(read.label, np.memmap)
    assert not read.image.flags.writeable
    assert (read.image.dtype, read.label.dtype) == (np.float16, np.uint8)
    np.testing.assert_array_equal(read.image, written.image.astype(np.float16))
    np.testing.assert_array_equal(read.label, label)
    for found, points in zip(read.locations, POINTS, strict=True):
        np.testing.assert_array_equal(found, points)
        assert found.dtype == np.int32
    assert read.shape == (4, 4, 4)


def test_large_values_stay_float32_and_labels_smallest(tmp_path):
    store = Store(tmp_path)
    big = case(scale=1e5, label=np.full((4, 4, 4), 300))
    store.write(big, NATIVE, (), "d")
    read = store.read("a")
    np.testing.assert_array_equal(read.image, big.image)
    assert read.label.dtype == np.int16
    assert read.locations == ()


def test_without_label(tmp_path):
    Store(tmp_path).write(case(), NATIVE, (), "d")
    assert Store(tmp_path).read("a").label is None


def test_has_compares_the_digest_and_write_replaces(tmp_path):
    store = Store(tmp_path)
    assert not store.has("a", "d1")
    assert store.ids() == ()
    store.write(case(label=np.ones((4, 4, 4), int)), NATIVE, (), "d1")
    assert store.has("a", "d1")
    assert not store.has("a", "d2")
    store.write(case(), NATIVE, (), "d2")
    assert store.has("a", "d2")
    assert store.read("a").label is None
    store.write(case("b"), NATIVE, (), "d2")
    assert store.ids() == ("a", "b")


def test_what_a_killed_process_left_is_no_case_and_is_swept(tmp_path):
    store = Store(tmp_path)
    left = tmp_path / f".{2**22 + 1}.partial.a"
    left.mkdir()
    (left / "meta.json").write_text("{}")
    alive = tmp_path / f".{os.getppid()}.partial.a"
    alive.mkdir()
    assert store.ids() == ()
    store.write(case(), NATIVE, (), "d")
    store.sweep()
    assert not left.exists()
    assert alive.exists()
    assert store.ids() == ("a",)


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.write(case(), NATIVE, (), "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ResourceError, match="cannot be written; found No space left on device"):
        store.write(case(), NATIVE, (), "new")
    assert store.has("a", "old")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_damage_is_named(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(DatasetError, match="a prepared case is missing or damaged"):
        store.read("a")
    store.write(case(), NATIVE, (), "d")
    image = tmp_path / "a" / "image.npy"
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(DatasetError, match="Run `medseg preprocess` again"):
        store.read("a")
    (tmp_path / "a" / "meta.json").write_text("{")
    assert not store.has("a", "d")


def test_not_finite_and_impossible_ids(tmp_path):
    bad = case()
    bad.image[0, 0, 0, 0] = np.nan
    with pytest.raises(DatasetError, match="NaN or infinite"):
        Store(tmp_path).write(bad, NATIVE, (), "d")
    for name in ("../x", "a/b", "", ".hidden", "c:d"):
        with pytest.raises(DatasetError, match="cannot be a folder name"):
            Store(tmp_path).write(case(name), NATIVE, (), "d")
    assert list(tmp_path.iterdir()) == []


def test_2d(tmp_path):
    grid = Grid.plain((5, 6), (0.5, 0.25))
    flat = Case("p", RNG.normal(size=(3, 5, 6)), np.ones((5, 6), np.uint8), grid)
    Store(tmp_path).write(flat, grid, (np.array([[1, 2]], np.int32),), "d")
    read = Store(tmp_path).read("p")
    assert (read.native, read.shape, read.trail) == (grid, (5, 6), ())
    assert read.locations[0].tolist() == [[1, 2]]


def test_what_an_earlier_version_prepared_is_prepared_again(tmp_path):
    store = Store(tmp_path)
    store.write(case(), NATIVE, POINTS, "digest")
    assert store.has("a", "digest")
    assert store.counts("a") == tuple(len(points) for points in POINTS)
    meta = tmp_path / "a" / "meta.json"
    meta.write_text(meta.read_text().replace('"format": 2', '"format": 1'))
    assert not store.has("a", "digest")
    with pytest.raises(DatasetError, match="a prepared case is missing or damaged"):
        store.counts("a")
