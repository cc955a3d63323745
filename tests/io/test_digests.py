"""A digest is computed once, and again whenever a file may have changed."""

from __future__ import annotations

import os
import time

import pytest

from medseg.dataset import CaseFiles, case_digest, file_digest
from medseg.errors import ImageError
from medseg.io.digests import Digests

OLD = time.time_ns() - 10**12


@pytest.fixture
def reads(monkeypatch):
    """The files whose content is read; files count as old however new they are."""
    seen = []
    monkeypatch.setattr("medseg.io.digests.FRESH", -(10**18))
    monkeypatch.setattr("medseg.io.digests.file_digest", lambda path: seen.append(path.name) or file_digest(path))
    return seen


def write(path, text, modified=OLD):
    path.write_text(text)
    os.utime(path, ns=(modified, modified))
    return path


def test_read_once(tmp_path, reads):
    path, digests = write(tmp_path / "a", "one"), Digests.of_cache(tmp_path / "cache")
    assert digests.file(path) == digests.file(path) == Digests.of_cache(tmp_path / "cache").file(path) == file_digest(path)
    assert reads == ["a"]
    case = CaseFiles(id="c", images=(path,), label=write(tmp_path / "b", "two"), group="c")
    assert digests.case(case) == digests.case(case) == case_digest(case)
    assert reads == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: write(path, "another size"),
        lambda path: write(path, "two", OLD + 1),
        pytest.param(
            lambda path: write(path, "two"),  # same size and time of modification, as `cp -p` or `tar` may bring
            marks=pytest.mark.skipif(os.name == "nt", reason="Windows has no time of change"),
        ),
    ],
)
def test_changed_files_are_read_again(tmp_path, reads, change):
    path, digests = write(tmp_path / "a", "one"), Digests.of_cache(tmp_path / "cache")
    digests.file(path)
    time.sleep(0.02)  # more than a tick of the file system's clock
    change(path)
    assert digests.file(path) == file_digest(path)
    assert reads == ["a", "a"]


def test_fresh_files_are_not_remembered(tmp_path):
    """Written again within a tick of the clock, a file has the same times."""
    path = tmp_path / "a"
    path.write_text("one")
    Digests.of_cache(tmp_path / "cache").file(path)
    assert not (tmp_path / "cache").exists()


def test_names_nobody_and_survives_damage(tmp_path, reads):
    path, digests = write(tmp_path / "patient_smith", "one"), Digests.of_cache(tmp_path / "cache")
    digests.file(path)
    (entry,) = (tmp_path / "cache").rglob("*.json")
    assert "smith" not in str(entry.relative_to(tmp_path)) + entry.read_text()
    entry.write_text('{"size": 3}')
    assert digests.file(path) == file_digest(path)
    assert digests.file(path) == file_digest(path)
    assert reads == ["patient_smith"] * 2


def test_no_cache_and_no_file(tmp_path, reads):
    path = write(tmp_path / "a", "one")
    assert Digests.of_cache(None).file(path) == Digests().file(path)
    assert reads == ["a", "a"]
    with pytest.raises(ImageError, match="the file does not exist"):
        Digests.of_cache(tmp_path / "cache").file(tmp_path / "b")
