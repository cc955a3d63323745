"""Records: strict, stable, atomic."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medseg.errors import PlanError, ResourceError
from medseg.plans import Plan
from medseg.record import Record, check_writable, compact_json, write_atomic, write_text


class Thing(Record):
    name: str
    size: int = 0


def test_what_is_wrong_with_entries_is_told_once(plans: tuple[Plan, ...]) -> None:
    """pydantic also calls a list too short whose only entry is wrong."""
    plan = plans[0]
    with pytest.raises(PlanError) as caught:
        plan.edited({"space.channels.0.scheme": "z"})
    assert str(caught.value) == (
        "--set, field 'space.channels.0.scheme': Input should be 'fixed', 'zscore', 'masked', 'spread' or 'range'; found \"z\"."
    )
    with pytest.raises(PlanError, match=r"field 'network.features': Input should be a list; found 3\."):
        plan.edited({"network.features": "3"})


def test_an_unknown_key_names_the_nearest_field() -> None:
    with pytest.raises(PlanError) as caught:
        Thing.parse({"name": "x", "siez": 3}, where="thing.json")
    assert str(caught.value) == "thing.json, field 'siez': Extra inputs are not permitted. Did you mean 'size'?"


def test_all_problems_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        Thing.parse({"size": "many", "colour": 1}, where="thing.json")
    assert [p.where.rpartition("'")[0].rpartition("'")[2] for p in caught.value.problems] == ["name", "size", "colour"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "is not valid JSON"), (b"\xff\xfe", "is not valid JSON"), (b"[" * 200_000, "is not valid JSON"), (None, "cannot be read")],
)
def test_unreadable_files(content: bytes | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "thing.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PlanError, match=words) as caught:
        Thing.load(file)
    assert "thing.json" in str(caught.value)


def test_json_is_stable_and_read_back(tmp_path: Path) -> None:
    Thing(name="ä", size=2).save(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == '{"name": "ä", "size": 2}\n'.encode()
    assert Thing.load(tmp_path / "a.json") == Thing(name="ä", size=2)


def test_compact_json_wraps_only_what_is_long() -> None:
    value = {"short": [1, 2, 3], "long": ["x" * 30] * 4}
    text = compact_json(value, width=60)
    assert json.loads(text) == value
    assert '"short": [1, 2, 3]' in text
    assert text.count("\n") == 8  # four long texts, one line for the short list, the opening of the long one, and three closings


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left on device"):
        write_atomic(file, full)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def system_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The calls that make a write lasting, in their order, with the size of the file at that moment."""
    calls: list[tuple[str, int]] = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_size))
        sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        calls.append(("replace", source.stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    return calls


def test_the_whole_content_is_on_the_disk_before_the_name(tmp_path: Path, system_calls: list[tuple[str, int]]) -> None:
    write_text(tmp_path / "a.txt", "whole")
    assert system_calls == [("fsync", 5), ("replace", 5)]
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_file_that_cannot_be_brought_to_the_disk_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    file = tmp_path / "a.txt"
    file.write_text("old")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ResourceError) as caught:
        write_text(file, "new")
    assert str(caught.value) == f"{file}: cannot be written; found Input/output error. Free disk space or choose another output folder."
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_folder_is_renamed_and_nothing_is_an_error(tmp_path: Path, system_calls: list[tuple[str, int]]) -> None:
    def folder(path: Path) -> None:
        path.mkdir()
        (path / "inside").write_text("x")

    write_atomic(tmp_path / "folder", folder)
    assert (tmp_path / "folder" / "inside").read_text() == "x"
    assert [name for name, _ in system_calls] == ["replace"]
    with pytest.raises(ResourceError, match="No such file or directory"):
        write_atomic(tmp_path / "nothing", lambda path: None)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        check_writable(tmp_path / "file" / "below")


def test_plan_edits(plans: tuple[Plan, ...]) -> None:
    plan = next(p for p in plans if p.recommended)
    edited = plan.edited({"training.batch_size": "4", "space.augmentation.rotation": "30"})
    assert (edited.training.batch_size, edited.space.augmentation.rotation) == (4, 30.0)
    assert edited.reasons["training.batch_size"] == "set by hand (--set training.batch_size=4)"
    assert edited.edited({"training.batch_size": "4"}) == edited
    for path, value, words in (
        ("training.batchsize", "4", "did you mean 'batch_size'"),
        ("training.batch_size", "0", "greater than or equal to 1"),
        ("window", "[40, 56, 39]", "not a multiple of the network's total stride"),
        ("task", "nonsense", "'target.kind' is 'semantic'"),
        ("network.kind", "unett", "Did you mean 'unet'"),
    ):
        with pytest.raises(PlanError, match=words):
            plan.edited({path: value})


def test_a_reason_for_no_field_is_refused(plans: tuple[Plan, ...]) -> None:
    data = plans[0].model_dump(mode="json")
    data["reasons"]["training.speed"] = "fast"
    with pytest.raises(PlanError, match=r"no field 'training\.speed'"):
        Plan.parse(data, where="3d.json")


def test_prepared_cases_are_shared_unless_preparation_changes(plans: tuple[Plan, ...]) -> None:
    plan = next(p for p in plans if p.recommended)
    assert plan.edited({"space.augmentation.rotation": "30", "training.steps": "3"}).prepared_digest() == plan.prepared_digest()
    assert plan.edited({"space.spacing": "[2, 2, 2]"}).prepared_digest() != plan.prepared_digest()
