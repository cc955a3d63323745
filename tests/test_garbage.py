"""When Python looks for garbage."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys

import pytest

from medseg.garbage import importing
from medseg.parallel import map_cases, shared_workers


def test_importing_is_undisturbed_and_leaves_all_as_it_was() -> None:
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        with importing():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen  # a notebook's objects may become garbage later


def test_a_failed_import_leaves_all_as_it_was() -> None:
    with pytest.raises(ImportError), importing():
        importlib.import_module("medseg.no_such_module")
    assert gc.isenabled()


def frozen(_: int) -> int:
    with importing():
        pass
    return gc.get_freeze_count()


def test_in_processes_of_our_own_what_was_imported_stays() -> None:
    code = (
        "import gc\n"
        "from medseg.garbage import ending, importing, own_process\n"
        "own_process()\n"
        "with importing():\n"
        "    import json\n"
        "first = gc.get_freeze_count()\n"
        "kept = [[] for _ in range(1000)]\n"
        "ending()\n"
        "assert gc.isenabled() and 0 < first <= gc.get_freeze_count() - 1000\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_workers_are_our_own() -> None:
    with shared_workers(2, ("colorsys",)):
        assert all(outcome.result for outcome in map_cases(frozen, [0, 1], 2))
