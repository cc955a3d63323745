"""`medseg plan --edit` and `medseg explain A B`, as calls and as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseg import answers, workflow
from medseg.commands import app, console
from medseg.errors import PlanError, UsageError
from medseg.plans import Plan
from medseg.workspace import Workspace


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, cases: Callable[[Path, int], Path]) -> Path:
    return cases(tmp_path_factory.mktemp("edited") / "data", 4)


def test_plans_are_written_as_edited(data: Path, tmp_path: Path) -> None:
    """For a GPU that is not here, with an edit of one configuration; the other file is what it would be without."""
    plain = workflow.plan(data, tmp_path / "a", memory=4, device="cuda", workers=1)
    edited = workflow.plan(data, tmp_path / "b", memory=4, device="cuda", edits={"2d.training.batch_size": "3"}, workers=1)
    assert [p.memory.device for p in edited] == ["cuda", "cuda"]
    written = {p.name: Plan.load(tmp_path / "b" / f"{p.name}.json") for p in edited}
    assert tuple(written.values()) == edited
    assert written["3d"] == next(p for p in plain if p.name == "3d")
    assert written["2d"].training.batch_size == 3
    fields = [c.field for c in answers.difference(tmp_path / "a" / "2d.json", tmp_path / "b" / "2d.json")]
    assert fields == ["training.batch_size", "memory.training"]

    run = CliRunner().invoke(app, ["explain", str(tmp_path / "a" / "2d.json"), str(tmp_path / "b" / "2d.json")])
    assert run.exit_code == 0
    assert "[training]" in run.output
    assert "3. set by hand (--edit training.batch_size=3)" in " ".join(run.output.split())
    same = CliRunner().invoke(app, ["explain", *[str(tmp_path / "a" / "3d.json")] * 2])
    assert "are equal in every value" in " ".join(same.output.split())


def test_differences_for_machines(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = workflow.plan(data, tmp_path, memory=4, device="cuda", workers=1)[0]
    plan.edited({"training.seed": "5"}).save(tmp_path / "other.json")
    monkeypatch.setattr(console.style, "json", True)
    run = CliRunner().invoke(app, ["explain", str(tmp_path / f"{plan.name}.json"), str(tmp_path / "other.json")])
    (change,) = json.loads(run.stdout)
    assert change == {
        "section": "training",
        "field": "training.seed",
        "first": "0",
        "second": "5",
        "first_reason": plan.reasons["training.seed"],
        "second_reason": "set by hand (--set training.seed=5)",
    }


def test_wrong_edits_write_no_plan(data: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Did you mean 'training'"):
        workflow.plan(data, tmp_path / "out", memory=4, device="cuda", edits={"trainin.seed": "1"}, workers=1)
    assert not list((tmp_path / "out").glob("[23]d*.json"))
    run = CliRunner().invoke(app, ["plan", str(data), "-o", str(tmp_path / "out"), "--edit", "training.seed"])
    assert isinstance(run.exception, UsageError)
    assert str(run.exception).startswith("--edit: not an edit; found 'training.seed', expected FIELD=VALUE")


def test_plans_with_prepared_cases(data: Path, tmp_path: Path) -> None:
    """One command prepares what `preprocess` would prepare for each plan, and another one finds it done."""
    run = CliRunner().invoke(app, ["plan", str(data), "-o", str(tmp_path / "a"), "--device", "cpu", "--memory", "4", "--preprocess"])
    assert run.exit_code == 0, run.output
    plans = workflow.plan(data, tmp_path / "b", memory=4, device="cpu", workers=1)
    for one in plans:
        assert (tmp_path / "a" / f"{one.name}.json").read_bytes() == (tmp_path / "b" / f"{one.name}.json").read_bytes()
        ours, theirs = Workspace(tmp_path / "a").prepared(one), workflow.preprocess(tmp_path / "b" / f"{one.name}.json", workers=1).folder
        files = sorted(p.relative_to(theirs) for p in theirs.rglob("*") if p.is_file())
        assert files
        assert files == sorted(p.relative_to(ours) for p in ours.rglob("*") if p.is_file())
        for file in files:
            assert (ours / file).read_bytes() == (theirs / file).read_bytes()


def test_a_wrong_name_ends_planning_and_leaves_no_plan(data: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nonesuch"):
        workflow.plan(data, tmp_path / "out", network="nonesuch", memory=4, device="cpu", workers=2)
    assert not list((tmp_path / "out").glob("*.json"))


def test_no_images_no_prepared_cases(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no images to prepare"):
        CliRunner().invoke(
            app,
            ["plan", "--nnunet-fingerprint", str(tmp_path), "--preset", "nnunet", "-o", str(tmp_path), "--preprocess"],
            catch_exceptions=False,
        )
