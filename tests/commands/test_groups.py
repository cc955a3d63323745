from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from medseg.commands.groups import Course, spread
from medseg.commands.options import PlanFile
from medseg.errors import UsageError


def test_fields_of_a_group_are_options_of_the_verb():
    """In the place of one parameter, with their own defaults; the verb gets the group."""
    given: list[object] = []
    app = typer.Typer()

    @app.command()
    @spread
    def verb(plan: PlanFile, course: Course, fold: int = 0) -> None:
        """Train."""
        given.extend((plan.name, course, fold))

    done = CliRunner().invoke(app, ["plan.json", "--time", "2m", "--set", "a=1", "--fold", "3", "--resume"])
    assert done.exit_code == 0, done.output
    assert given == ["plan.json", Course(time="2m", edits=["a=1"], resume=True), 3]
    assert Course(time="2m", edits=["a=1"], workers=2).arguments() == {
        "seconds": 120.0, "epochs": None, "resume": False, "edits": {"a": "1"}, "device": "auto", "devices": 1, "workers": 2,
    }  # fmt: skip
    with pytest.raises(UsageError, match="--time: not a length of time"):
        Course(time="soon").arguments()
    assert CliRunner().invoke(app, ["plan.json", "--epochs", "0"]).exit_code == 2
