"""The help of every verb comes out, and says what was written."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from rich.markup import render
from typer.main import get_command
from typer.testing import CliRunner

from medseg import commands
from medseg.commands import app
from medseg.commands.models import uncertainties
from medseg.commands.pacs import _seconds
from medseg.errors import UsageError

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


def test_an_interrupt_at_start_is_a_line() -> None:
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from medseg.__main__ import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")
    (script,) = entry_points(group="console_scripts", name="medseg")
    assert script.value == "medseg.__main__:main"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["predict", "RUN", "IN", "-o", "OUT"], "; run the same command again to go on"),
        (["predict", "RUN", "IN", "-o", "OUT", "--overwrite"], ""),
        (["preprocess", "plan.json", "--quiet"], "; run the same command again to go on"),
        (["plan", "DATA", "-o", "OUT", "--json"], "; run the same command again to go on"),
        (["train", "plan.json", "-o", "OUT"], "; run the same command again with --resume to go on"),
        (["train", "plan.json", "-o", "OUT", "--resume"], "; run the same command again to go on"),
        (["compare", "A", "B"], ""),
    ],
)
def test_an_interrupt_late_says_how_to_go_on(arguments, advice, monkeypatch, capsys) -> None:
    def work(**options: object) -> None:
        raise KeyboardInterrupt

    command = VERBS[arguments[0]]
    monkeypatch.setattr(type(command), "invoke", lambda self, context: work())
    monkeypatch.setattr(sys, "argv", ["medseg", *arguments])
    monkeypatch.setattr(commands.console, "style", commands.console.Style())
    with pytest.raises(SystemExit) as ended:
        commands.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err) == (130, "", f"interrupted{advice}\n")


def test_an_interrupt_outside_of_every_verb_is_a_line() -> None:
    code = (
        "import medseg.commands\n"
        "def main():\n"
        "    raise KeyboardInterrupt\n"
        "medseg.commands.main = main\n"
        "from medseg.__main__ import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("verb", "option", "other"), [("plan", "--set", "--edit"), ("train", "--edit", "--set"), ("run", "--edit=training.seed=1", "--set")]
)
def test_the_other_name_of_an_option(verb: str, option: str, other: str) -> None:
    caught = CliRunner().invoke(app, [verb, "x", "-o", "y", *([option] if "=" in option else [option, "training.seed=1"])]).exception
    assert str(caught) == f"{option.partition('=')[0]}: `medseg {verb}` has no such option. Pass {other} FIELD=VALUE."


def test_lengths_of_time() -> None:
    assert [_seconds(text, "--quiet-for") for text in ("5", "2.5", "30s", "2m")] == [5.0, 2.5, 30.0, 120.0]
    with pytest.raises(UsageError, match="--quiet-for: not a length of time; found '5 apples', expected for example 90, 30s, 10m or 1h"):
        _seconds("5 apples", "--quiet-for")


def test_help_names_what_there_is() -> None:
    def told(verb: str, name: str) -> str:
        return next(str(getattr(p, "help", "")) for p in VERBS[verb].params if p.name == name)

    for verb in ("run", "plan"):
        assert "COCO" in told(verb, "dataset")
        assert "DICOM" in told(verb, "dataset")
        for network in ("dense", "mask-rcnn", "yolact"):
            assert network in told(verb, "network")
    assert "GiB of main memory for one case" in told("predict", "memory")
    assert "predictions.json" in told("predict", "uncertainty")


def test_where_uncertainties_are() -> None:
    file = Path("OUT", "predictions.json")
    assert uncertainties([0.25, 0.5], file) == f"Uncertainty (0 sure, 1 ignorant): 0.250 to 0.500; of each case in {file}"
    assert "undefined; 1 of 1 cases without, where nothing was predicted" in uncertainties([None], file)
