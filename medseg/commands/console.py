"""What the command line shows: progress, tables, errors. Human text goes to stderr when `--json` asks for a machine's stdout."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from medseg.errors import MedsegError

T = TypeVar("T")
WIDE = 160  # characters of a line in files and pipes, which have no width of their own
SHORT = 16  # characters of a cell that is not wrapped: keys, sizes and numbers are read as one


@dataclass
class Style:
    """The three flags that every verb understands."""

    json: bool = False
    quiet: bool = False
    debug: bool = False


style = Style()


def human() -> Console:
    """Where text for people goes: stdout, or stderr when stdout belongs to `--json`."""
    console = Console(stderr=style.json, quiet=style.quiet, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDE
    return console


def say(text: str) -> None:
    """One line for people, printed as it is."""
    human().print(text, markup=False, soft_wrap=True)


def ok(text: str) -> None:
    """One line for people that says that something has worked."""
    human().print(Text.assemble(("ok ", "green"), text), soft_wrap=True)


def warn(text: str) -> None:
    """One line for people about something odd."""
    human().print(Text.assemble(("warning ", "yellow"), text), soft_wrap=True)


def complain(text: str) -> None:
    """What went wrong with one case: on stderr also with `--quiet`."""
    Console(stderr=True, highlight=False).print(Text.assemble(("failed ", "red"), text), soft_wrap=True)


def interrupted(advice: str) -> None:
    """A command that Ctrl-C ended: on stderr also with `--quiet`."""
    sys.stderr.write(f"interrupted{'; ' if advice else ''}{advice}\n")


def fail(error: MedsegError) -> None:
    """An error: on stderr also with `--quiet`, and as JSON on stdout where `--json` was given."""
    Console(stderr=True, highlight=False).print(Text.assemble(("error ", "bold red"), str(error)), soft_wrap=True)
    answer({"error": [asdict(problem) for problem in error.problems]})


def shown(path: Path) -> str:
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path))


def answer(value: Any) -> None:
    """The result for machines, on stdout, when `--json` was given."""
    if style.json:
        plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
        sys.stdout.write(json.dumps(plain, indent=2, default=str, allow_nan=False) + "\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people; numbers are right-aligned."""
    rows = [list(row) for row in rows]
    texts = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(column), *(len(row[index]) for row in texts), 0) for index, column in enumerate(columns)]
    console = human()
    fits = sum(min(width, SHORT) + 3 for width in widths) < console.width
    view = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        view.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=fits and width <= SHORT)
    for row in texts:
        view.add_row(*map(escape, row))
    console.print(view)


def paragraphs(items: Iterable[tuple[str, str]]) -> None:
    """Headings, each with an indented text that wraps to the terminal."""
    console = human()
    for heading, text in items:
        console.print(Text(heading, "bold"), soft_wrap=True)
        console.print(Padding(Text(text), (0, 0, 0, 4)))


class _Amount(ProgressColumn):
    """`12/48`, or minutes and seconds where the total is a time."""

    def render(self, task: Task) -> Text:
        note = str(task.fields.get("note", ""))
        if task.fields.get("timed"):
            return Text(f"{_clock(task.completed)} of {_clock(task.total or 0)} {note}", style="dim")
        return Text(f"{task.completed:g}/{task.total or 0:g} {note}", style="dim")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class Bars(AbstractContextManager["Bars"]):
    """Progress bars with an estimate on a terminal; a line every half minute elsewhere (log files, SLURM)."""

    def __init__(self) -> None:
        self._console = human()
        self._live = self._console.is_terminal and not style.quiet
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            _Amount(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=False,
        )
        self._ids: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._bars.stop()

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """See `medseg.progress.Progress`."""
        self.update(what, 0, total)
        for done, item in enumerate(items, 1):
            yield item
            self.update(what, done, total)

    def update(self, what: str, done: float, total: float, note: str = "", seconds: bool = False) -> None:
        """See `medseg.progress.Progress`."""
        if self._live:
            if what not in self._ids:
                self._ids[what] = self._bars.add_task(what, total=total, note=note, timed=seconds)
            self._bars.update(self._ids[what], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if done >= total or now - self._printed.get(what, now - 31) > 30:
            self._printed[what] = now
            amount = f"{_clock(done)} of {_clock(total)}" if seconds else f"{done:g}/{total:g}"
            self._console.print(f"{what} {amount} {note}".rstrip(), markup=False)

    def say(self, message: str) -> None:
        """See `medseg.progress.Progress`."""
        (self._bars.console if self._live else self._console).print(message, markup=False, soft_wrap=True)
