"""Verbs about the machine: doctor."""

from __future__ import annotations

from medseg.commands.console import answer, ok, table, warn


def doctor() -> None:
    """Versions, devices, fast paths, and known-bad combinations."""
    from medseg import diagnosis

    found = diagnosis.examine()
    table("Versions", ("package", "version"), list(found.versions.items()))
    table("Machine", ("what", "value"), list(found.machine.items()))
    table("Fast paths", ("what", "measured"), list(found.fast_paths.items()))
    for warning in found.warnings:
        warn(warning)
    if not found.warnings:
        ok("nothing known to be wrong")
    answer(found)
