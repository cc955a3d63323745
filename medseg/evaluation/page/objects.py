"""The page's sections about objects: scores of all cases together, curves, and pictures of single cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import ObjectForm
from medseg.evaluation.page.charts import WIDTH, Line, plot, shares
from medseg.evaluation.page.instances import object_views, view_svg
from medseg.evaluation.page.numbers import between, number
from medseg.evaluation.pairing import Pair
from medseg.evaluation.records import CaseScores, Estimate, Evaluation, ObjectScores
from medseg.evaluation.summary import case_means
from medseg.metrics import Metric, describe

TILES = ("pq", "sq", "rq", "ap", "object_accuracy@0.5:0.95", "froc", "object_f1")
MOST_TILES = 5
DRAWN = 8  # classes with curves, those with the most objects
GROUPS = {"all": "Mean of classes", "things": "Mean of things", "stuff": "Mean of stuff"}
ENOUGH, SIZED = 10, 4  # objects that a chart of sizes needs, and how many classes have one
RATES = ((-3.0, "1/8"), (-2.0, "1/4"), (-1.0, "1/2"), (0.0, "1"), (1.0, "2"), (2.0, "4"), (3.0, "8"))
LEGEND = (
    ("nofound", "found (each object its own colour)", '<g class="o found h0"><path d="M5 3H25V15H5Z"/></g>'),
    ("noknown", "reference of what was found (thin line)", '<g class="o known"><path d="M5 3H25V15H5Z"/></g>'),
    (
        "noinvented",
        "invented (dashes and cross)",
        '<g class="o invented"><path d="M5 3H25V15H5Z"/><path class="sign" d="M12 6L18 12M12 12L18 6"/></g>',
    ),
    ("nomissed", "missed (dots and ring)", '<g class="o missed"><path d="M5 3H25V15H5Z"/><ellipse cx="15" cy="9" rx="4" ry="4"/></g>'),
)


def object_tiles(scores: ObjectScores) -> list[str]:
    """The most important scores of all cases together."""
    tiles: list[str] = []
    for metric in [m for m in TILES if m in scores.metrics][:MOST_TILES]:
        found, head = scores.means["all"][metric], describe(metric)
        name = f"{head.title}, all objects" if not tiles else head.title
        below = between(found, "95 %: ") or "&nbsp;"
        tiles.append(
            f'<div class="tile{" first" * (not tiles)}" title="{escape(head.meaning)}"><span>{escape(name)}</span>'
            f"<b>{number(found.value)}</b><small>{below}</small></div>"
        )
    return tiles


def object_scores(scores: ObjectScores) -> str:
    """Table and charts."""
    heads = [describe(m) for m in scores.metrics]
    top = "".join(f'<th title="{escape(h.meaning)}">{_heading(h)}</th>' for h in heads)
    rows = []
    for index, (name, counts) in enumerate(scores.counts.items()):
        some = "".join(
            f'<td class="{"miss" if wrong and n else ""}">{n}</td>'
            for n, wrong in ((counts.matched, False), (counts.missed, True), (counts.invented, True))
        )
        cells = _cells(scores.classes[name], heads)
        rows.append(f'<tr class="c{index % 8}"><td><span class="dot"></span>{escape(name)}</td>{some}{cells}</tr>')
    if len(scores.counts) > 1:
        rows += [
            f'<tr class="all"><td>{GROUPS[group]}</td><td></td><td></td><td></td>{_cells(row, heads)}</tr>'
            for group, row in scores.means.items()
        ]
    missing = "".join(
        f'<p class="lead after">Not computed: {escape(", ".join(describe(m).title for m, r in scores.left_out.items() if r == reason))}. '
        f"{escape(reason[0].upper() + reason[1:])}.</p>"
        for reason in dict.fromkeys(scores.left_out.values())
    )
    if painted := scores.of_painted():
        missing += f'<p class="lead after">{escape(painted)}</p>'
    return (
        '<p class="lead">Objects of all cases together: counts are added up before a ratio is taken, so a case weighs as much as it has objects. '
        "Below each score its 95 % bootstrap interval; cases are drawn whole. Found, missed and invented are counted at an IoU above 0.5.</p>"
        '<div class="card scroll"><table><thead><tr><th>Class</th><th>Found</th><th>Missed</th><th>Invented</th>'
        f'{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{missing}<div class="charts after">{_charts(scores)}</div>'
    )


def _heading(head: Metric) -> str:
    """The title, with the IoU on a line of its own."""
    title, _, level = head.title.removeprefix("Object ").partition(" at IoU ")
    return f"{escape(title[0].upper() + title[1:])}<small>{f'IoU {level}' if level else '&nbsp;'}</small>"


def _cells(row: Mapping[str, Estimate], heads: Sequence[Metric]) -> str:
    return "".join(f"<td>{number(row[h.name].value)}<small>{between(row[h.name]) or '&nbsp;'}</small></td>" for h in heads)


def _charts(scores: ObjectScores) -> str:
    order = list(scores.counts)
    many = sorted(scores.things, key=lambda n: -(scores.counts[n].matched + scores.counts[n].missed))[:DRAWN]
    drawn = [name for name in order if name in many]
    charts = [_quality(scores)]
    levels = [(t, f"{t:g}") for t in scores.thresholds[::2]] + [(1.0, "1")]
    for metric, title in (("object_f1", "F1 by IoU"), ("object_accuracy", "Accuracy by IoU")):
        lines = []
        for name in drawn:
            values = np.array([np.nan if v is None else v for v in scores.curves[name][metric]])
            known = ~np.isnan(values)
            if known.any():
                lines.append(Line(name, np.array(scores.thresholds)[known], values[known], order.index(name)))
        if lines:
            charts.append(plot(title, describe(metric).meaning, ("IoU from which on objects match", ""), lines, levels))
    ticks = [(t, f"{t:g}") for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    if scores.precision:
        at = np.linspace(0, 1, 101)
        lines = [Line(name, at, np.array(scores.precision[name]), order.index(name)) for name in drawn if name in scores.precision]
        note = "Objects match at an IoU of 0.5; the area under the curve is AP at 0.5."
        charts.append(plot("Precision and sensitivity", note, ("Sensitivity", "precision"), lines, ticks))
    if scores.froc:
        lines = [_froc_line(name, *scores.froc[name], order.index(name)) for name in drawn if name in scores.froc]
        note = "Share of objects that are found (IoU of 0.1) by how many false ones one accepts; FROC is the mean at the seven marks."
        charts.append(plot("FROC", note, ("False positives per case", "sensitivity"), lines, RATES))
    for name in [n for n in many if sum(g.objects for g in scores.sizes[n]) >= ENOUGH][:SIZED]:
        if groups := scores.sizes.get(name):
            bars = [(_range(g.smallest, g.largest), g.found / g.objects, f"{g.found}/{g.objects}") for g in groups]
            title = f"Found by size: {name}" if len(scores.things) > 1 else "Found by size"
            charts.append(
                shares(
                    title, "Share of the reference's objects that match at an IoU of 0.5.", "Voxels of the object", bars, order.index(name)
                )
            )
    return "".join(charts)


def _froc_line(name: str, rates: Sequence[float], sensitivity: Sequence[float], colour: int) -> Line:
    """Over the logarithm of the rate, within the marks."""
    x = np.array([2.0**t for t in np.linspace(RATES[0][0], RATES[-1][0], 61)])
    y = np.interp(x, np.append(0.0, rates), np.append(0.0, sensitivity))
    return Line(name, np.log2(x), y, colour)


def _quality(scores: ObjectScores) -> str:
    """One row per class: PQ as a bar with its interval, SQ as a diamond, RQ as a dot."""
    rows = [(i, name, scores.classes[name]) for i, name in enumerate(scores.counts) if "pq" in scores.metrics]
    rows = [row for row in rows if row[2]["pq"].value is not None]
    if not rows:
        return ""
    left, right, step = 118, 16, 30
    height = 14 + step * len(rows) + 26
    bottom = height - 24

    def at(value: float) -> float:
        return round(left + (WIDTH - left - right) * value, 1)

    parts = [
        f'<line class="grid" x1="{at(t)}" x2="{at(t)}" y1="8" y2="{bottom}"/>'
        f'<text class="tick" x="{at(t)}" y="{bottom + 17}" text-anchor="middle">{t:g}</text>'
        for t in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for place, (i, name, row) in enumerate(rows):
        y, pq = 14 + step * (place + 0.5), row["pq"]
        shown = name if len(name) <= 15 else name[:14] + "…"
        parts.append(
            f'<text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(shown)}<title>{escape(name)}</title></text>'
        )
        told = " · ".join(f"{m.upper()} {number(row[m].value)}" for m in ("pq", "sq", "rq") if m in row)
        parts.append(f'<g class="c{i % 8} quality"><title>{escape(name)}: {told}</title>')
        parts.append(f'<rect class="box" x="{left}" y="{y - 7}" width="{at(pq.value or 0.0) - left:.1f}" height="14"/>')
        if pq.low is not None and pq.high is not None:
            parts.append(f'<path class="whisker" d="M{at(pq.low)} {y}H{at(pq.high)}M{at(pq.low)} {y - 4}v8M{at(pq.high)} {y - 4}v8"/>')
        if "sq" in row and row["sq"].value is not None:
            x = at(row["sq"].value)
            parts.append(f'<path class="sq" d="M{x} {y - 5}l5 5l-5 5l-5 -5z"/>')
        if "rq" in row and row["rq"].value is not None:
            parts.append(f'<circle class="rq" cx="{at(row["rq"].value)}" cy="{y}" r="3.4"/>')
        parts.append("</g>")
    return (
        '<figure class="chart"><figcaption><b>PQ, SQ and RQ</b><span>higher is better</span><p>Bar: PQ = SQ x RQ, with its interval. '
        "Diamond: SQ, how well found objects are outlined. Dot: RQ, how many are found.</p></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="PQ, SQ and RQ per class">{"".join(parts)}</svg></figure>'
    )


def errors(case: CaseScores) -> tuple[int, ...]:
    """Missed and invented objects of a case; nothing where there are no objects."""
    if case.objects is None:
        return ()
    return sum(m.missed for m in case.objects.values()), sum(m.invented for m in case.objects.values())


def worst_first(evaluation: Evaluation) -> NDArray[np.intp]:
    """Indices of cases: by the mean of the leading metric; where there are objects, by errors first."""
    means = case_means(evaluation, evaluation.metrics[0])
    wrong = np.array([-sum(errors(case)) for case in evaluation.cases])
    order: NDArray[np.intp] = np.lexsort((means, wrong))
    return order


def object_pictures(
    evaluation: Evaluation, pairs: Sequence[Pair], images: Mapping[str, Sequence[Path]], predicted: ObjectForm | None
) -> str:
    """The two cases with the most errors, the median and the best one."""
    order = worst_first(evaluation).tolist()
    wanted = {"worst": 0, "next": 1, "median": len(order) // 2, "best": len(order) - 1}
    chosen: dict[int, str] = {}
    for name, rank in wanted.items():
        if rank < len(order):
            chosen.setdefault(order[rank], name)
    files = {p.id: p for p in pairs}
    cards, flat = [], False
    for index, name in sorted(chosen.items(), key=lambda item: order.index(item[0])):
        case = evaluation.cases[index]
        shown = object_views(files[case.id], images.get(case.id, ()), evaluation.labels, predicted)
        flat = len(shown) == 1
        missed, invented = errors(case)
        found = sum(m.matched for m in (case.objects or {}).values())
        cards.append(
            f'<div class="card case"><div class="casehead"><span class="badge {name}">{name}</span><h3>{escape(case.id)}</h3>'
            f'<span class="score">{found} found · {missed} missed · {invented} invented</span></div>'
            f'<div class="views">{"".join(map(view_svg, shown))}</div></div>'
        )
    where = "" if flat else ", each in the slices through the most objects that are wrong"
    tools = "".join(
        f'<label><input type="checkbox" checked data-hide="{key}"><svg class="sign-key" viewBox="0 0 30 18">{drawing}</svg>{text}</label>'
        for key, text, drawing in LEGEND
    )
    return (
        f'<p class="lead">Cases by how many objects were missed or invented{where}. Rest the pointer on an object for what it is.</p>'
        f'<div class="tools">{tools}</div><div class="objects"><div class="{"flat" if flat else "deep"}">{"".join(cards)}</div></div>'
    )


def _range(smallest: int, largest: int) -> str:
    return _short(smallest) if smallest == largest else f"{_short(smallest)}\u2013{_short(largest)}"


def _short(voxels: int) -> str:
    """`1234567` as `1.2M`."""
    for limit, letter in ((10**6, "M"), (10**4, "k")):
        if voxels >= limit:
            return f"{voxels / (10**6 if letter == 'M' else 10**3):.3g}{letter}"
    return str(voxels)
