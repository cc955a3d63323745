"""Whatever lies in a folder, an archive or on a medium: nothing of it stops the rest, and nothing crashes."""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from medseg.errors import ImageError, UsageError
from medseg.io.dicom.naming import case_name
from medseg.io.dicom.reading.reader import find_volume, read_voxels, scan
from tests.io.dicom.phantoms import grid_of, write_enhanced, write_series

SHAPE = (4, 5, 6)
ARRAY = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)


def test_archive(tmp_path: Path) -> None:
    files = write_series(tmp_path / "a", ARRAY, grid_of(SHAPE))
    with zipfile.ZipFile(tmp_path / "knee.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"x/{file.stem}")
        archive.writestr("__MACOSX/x/._000", b"junk")
        archive.writestr("x/report.pdf", b"%PDF")
    found = scan(tmp_path / "knee.zip")
    (volume,) = found.volumes
    assert found.foreign == 1
    assert volume.path.parent == tmp_path / "knee.zip"
    assert np.array_equal(read_voxels(find_volume(volume.path))[0], ARRAY)
    assert case_name(volume, found) == "knee"


def test_damaged_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\3\4" + b"\0" * 200)
    (other,) = scan(tmp_path).others
    assert [problem.what for problem in other.problems] == ["is not a whole zip archive"]


def test_files_without_preamble(tmp_path: Path) -> None:
    for file in write_series(tmp_path, ARRAY, grid_of(SHAPE)):
        content = file.read_bytes()
        length = int.from_bytes(content[140:144], "little")  # of the group 0002
        file.with_suffix("").write_bytes(content[144 + length :])
        file.unlink()
    (volume,) = scan(tmp_path).volumes
    assert np.array_equal(read_voxels(volume)[0], ARRAY)


def test_medium_with_missing_files(tmp_path: Path) -> None:
    directory = get_testdata_file("DICOMDIR", download=False)
    assert isinstance(directory, str)
    shutil.copyfile(directory, tmp_path / "DICOMDIR")
    present = Path(directory).parent / "77654033" / "CR1" / "6154"
    (tmp_path / "77654033" / "CR1").mkdir(parents=True)
    shutil.copyfile(present, tmp_path / "77654033" / "CR1" / "6154")
    for path in (tmp_path, tmp_path / "DICOMDIR"):
        found = scan(path)
        assert len(found.volumes) == 1
        assert "files are missing that the DICOMDIR lists; found 30 of 31: 77654033/CR2/6247" in str(found.problems[0])
        assert [other.kind for other in found.others] == ["Media Storage Directory Storage"]


def test_everything_else_is_counted_or_named(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY, grid_of(SHAPE))
    (tmp_path / "notes.txt").write_text("no DICOM at all, but long enough to be looked at " * 9)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut.dcm").write_bytes(b"\1\2\3" * 100)
    (tmp_path / "begun.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / ".hidden").write_bytes(b"\0" * 128 + b"DICM")
    write_series(tmp_path / "report", ARRAY[:1], grid_of((1, 5, 6)), Rows=None, Columns=None)
    found = scan(tmp_path)
    assert len(found.volumes) == 1
    assert found.foreign == 2
    said = {other.source.path.name: str(other.problems[0]) for other in found.others}
    assert "is called DICOM, but does not begin as one" in said["cut.dcm"]
    assert "is DICOM, but does not say of what kind" in said["begun.dcm"]
    assert "holds no image although it is one by its kind; found CT Image Storage without rows and columns" in said["1_000.dcm"]


@pytest.mark.parametrize("value", ["0", "-4", "1A", "1000000000"])
def test_impossible_sizes_are_refused(tmp_path: Path, value: str) -> None:
    (file,) = write_series(tmp_path, ARRAY[:1], grid_of((1, 5, 6)))
    content = file.read_bytes()
    from pydicom import dcmread

    data = dcmread(file)
    data.NumberOfFrames = "7"
    data.save_as(file)
    content = file.read_bytes()
    at = content.index(b"\x28\x00\x08\x00IS")
    padded = value.encode() + b" " * (len(value) % 2)
    file.write_bytes(content[: at + 6] + len(padded).to_bytes(2, "little") + padded + content[at + 10 :])
    found = scan(tmp_path)
    assert not found.volumes
    assert f"the size of the image is impossible; found 5 x 6 pixels, {value} frames" in str(found.others[0].problems[0])


def test_damage_anywhere_never_crashes(tmp_path: Path) -> None:
    """Cut anywhere, and bytes overwritten anywhere: a scan tells, and reading either works or raises an ImageError."""
    random = np.random.default_rng(3)
    (tmp_path / "f").mkdir()
    classic = write_series(tmp_path / "in", ARRAY[:1], grid_of((1, 5, 6)))[0].read_bytes()
    enhanced = write_enhanced(tmp_path / "in" / "e.dcm", ARRAY[None], grid_of(SHAPE)).read_bytes()
    outcomes = set()
    for trial in range(120):
        content = bytearray((classic, enhanced)[trial % 2])
        if trial % 3 == 0:
            content = content[: random.integers(0, len(content))]
        else:
            for _ in range(1 + trial % 7):
                content[random.integers(132, len(content))] = random.integers(0, 256)
        file = tmp_path / "f" / "x.dcm"
        file.write_bytes(content)
        found = scan(tmp_path / "f")
        assert found.volumes or found.annotations or found.others or found.foreign
        outcomes.add(bool(found.volumes))
        for volume in found.volumes:
            with contextlib.suppress(ImageError):
                read_voxels(volume)
    assert outcomes == {True, False}


def test_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; expected a folder"):
        scan(tmp_path / "nothing")


def test_case_names(tmp_path: Path) -> None:
    for folder, series in (("patient_7/DICOM", "3"), ("patient_7/DICOM", "4"), ("1.2.840.113619.2.55.3/IMG", "5")):
        write_series(tmp_path / folder, ARRAY, grid_of(SHAPE), series=series)
    found = scan(tmp_path)
    names = [case_name(volume, found) for volume in found.volumes]
    assert names[:2] == ["patient_7_s3", "patient_7_s4"]
    assert names[2] == tmp_path.name or names[2] == found.volumes[2].key
