"""How numbers are written on the page."""

from __future__ import annotations

from medseg.evaluation.records import Estimate, Summary


def number(value: float | None, signed: bool = False) -> str:
    """Three significant decimals; a dash for what is undefined."""
    if value is None:
        return "\u2013"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:{'+' if signed else ''}.{digits}f}"


def between(found: Summary | Estimate, prefix: str = "") -> str:
    """An interval; empty where there is none."""
    if found.low is None or found.high is None:
        return ""
    dash = "\u2013" if found.low >= 0 else " to "
    return f"{prefix}{number(found.low)}{dash}{number(found.high)}"
