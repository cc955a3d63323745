"""The help of every verb comes out, and says what was written."""

from __future__ import annotations

import pytest
from rich.markup import render
from typer.main import get_command
from typer.testing import CliRunner

from medseg.commands import app

VERBS = get_command(app).commands


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], terminal_width=100)
    assert shown.exit_code == 0, shown.exception
    assert f" {verb} [OPTIONS]" in shown.output


@pytest.mark.parametrize("verb", VERBS)
def test_brackets_are_not_taken_for_markup(verb: str) -> None:
    command = VERBS[verb]
    for text in (command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)):
        assert render(text).plain == text.replace("\\[", "[")
