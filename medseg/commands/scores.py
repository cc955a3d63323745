"""Tables of scores on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.commands.console import say, table, warn

if TYPE_CHECKING:
    from medseg.evaluation.records import Estimate, Evaluation, Matched, ObjectScores, Summary
    from medseg.evaluation.selection import Selection

OF_OBJECTS = {
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "object_accuracy": "accuracy at 0.5",
    "object_accuracy@0.5:0.95": "accuracy at 0.5:0.95",
    "ap": "AP",
    "ap@0.5": "AP at 0.5",
    "box_ap": "box AP",
    "froc": "FROC",
}
"""Scores of all cases together in tables of the command line, and their headings."""
SHOWN_OF_CASES = {"pq", "object_f1", "object_accuracy", "lesion_f1"}
SHOWN = {"dice", "nsd", "hd95", "pq", "object_accuracy", "object_f1", "lesion_f1"}  # metrics in tables of the command line


def show_selection(selection: Selection) -> None:
    """All candidates as a table, and the choice."""
    rows = [
        (
            ("* " if c.members == selection.chosen else "  ") + c.name,
            f"{c.mean:.4f}{interval(c.low, c.high)}",
            "" if c.difference is None else f"{c.difference:+.4f}{interval(c.difference_low, c.difference_high)}",
            c.seconds,
        )
        for c in selection.candidates
    ]
    columns = ("models", f"mean {selection.metric} (95 %)", "to the best alone (95 %)", "seconds a case")
    table(f"Selected on {selection.cases} cases left out of training, before any cleaning", columns, rows)
    say(f"* {' + '.join(selection.chosen)}. {selection.reason}")


def show_scores(evaluation: Evaluation, report: Path | None) -> None:
    """The summary of an evaluation as a table; of objects first the scores of all cases together."""
    from medseg.metrics import describe

    count = len(evaluation.cases)
    cases = f"{count} case{'s' if count != 1 else ''}"
    if evaluation.objects is not None:
        show_objects(evaluation.objects, f"{evaluation.title}: objects of {cases} together, and the 95 % bootstrap interval")
    metrics = [m for m in evaluation.metrics if m.partition("@")[0] in (SHOWN_OF_CASES if evaluation.objects else SHOWN)]
    metrics = metrics or list(evaluation.metrics)
    rows = [(name, *(_summary(evaluation.classes[name][m]) for m in metrics)) for name in evaluation.labels.names]
    if len(rows) > 1:
        rows.append(("mean", *(_summary(evaluation.overall[m]) for m in metrics)))
    titles = [
        f"{d.title} ({evaluation.unit})" if (d := describe(m)).unit else d.title.replace(" mm", f" {evaluation.unit}") for m in metrics
    ]
    if evaluation.objects is None or count > 1:  # of one case the mean says nothing new
        table(f"{evaluation.title}: {cases}, mean and its 95 % bootstrap interval", ("class", *titles), rows)
    if evaluation.objects is not None and count > 1:
        say(
            "Mean over cases: each case is scored alone and weighs the same, so figures may differ from those of all objects together above."
        )
    if evaluation.missing:
        warn(f"{len(evaluation.missing)} references without a prediction: {', '.join(evaluation.missing[:5])}")
    if evaluation.selected:
        warn("slightly optimistic: weights (--patience), configuration or cleaning rules were chosen on the cases that are scored")
    for line in evaluation.before.told(count):
        warn(line)
    if report is not None:
        say(f"Report: {report / 'index.html'}")


def show_objects(scores: ObjectScores, title: str) -> None:
    """How many objects were found, and the scores of all cases together."""
    metrics = [m for m in OF_OBJECTS if m in scores.metrics] or list(scores.metrics)
    if "object_accuracy" in metrics:
        metrics = [m for m in metrics if m != "object_accuracy@0.5:0.95"]

    def cells(row: Mapping[str, Estimate]) -> list[str]:
        return [_estimate(row[m]) for m in metrics]

    rows = [(name, *_counts(counts), *cells(scores.classes[name])) for name, counts in scores.counts.items()]
    if len(rows) > 1:
        rows += [("mean" if group == "all" else f"mean of {group}", "", "", "", *cells(row)) for group, row in scores.means.items()]
    table(title, ("class", "found", "missed", "invented", *(OF_OBJECTS.get(m, m) for m in metrics)), rows)
    say("All objects together: those of all cases are counted before a ratio is taken, so a case weighs as much as it has objects.")
    for reason in dict.fromkeys(scores.left_out.values()):
        names = ", ".join(m for m, why in scores.left_out.items() if why == reason)
        say(f"Not computed: {names}. {reason[0].upper()}{reason[1:]}.")
    if painted := scores.of_painted():
        say(painted)


def _counts(counts: Matched) -> tuple[int, int, int]:
    return counts.matched, counts.missed, counts.invented


def _estimate(found: Estimate) -> str:
    return "undefined" if found.value is None else f"{found.value:.3f}{interval(found.low, found.high)}"


def _summary(summary: Summary) -> str:
    return f"{summary.mean:.3f}{interval(summary.low, summary.high)}" if summary.mean is not None else "undefined"


def interval(low: float | None, high: float | None) -> str:
    """On a line of its own; empty where there is none."""
    return "" if low is None or high is None else f"\n{number(low)} to {number(high)}"


def number(value: float | None) -> str:
    """With three decimals, or four of a small one."""
    return "" if value is None else f"{value:.4f}" if abs(value) < 0.01 else f"{value:.3f}"
