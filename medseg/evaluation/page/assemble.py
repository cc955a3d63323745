"""The sections of the page, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from medseg.dataset import ObjectForm
from medseg.evaluation.page.charts import box_plots
from medseg.evaluation.page.numbers import between, number
from medseg.evaluation.page.objects import errors, object_pictures, object_scores, object_tiles, worst_first
from medseg.evaluation.page.overlays import View, choose, views
from medseg.evaluation.page.training import training_curves
from medseg.evaluation.pairing import Pair
from medseg.evaluation.records import Evaluation, Summary
from medseg.evaluation.selection import Selection
from medseg.evaluation.summary import case_means
from medseg.metrics import DETECTION_METRICS, INSTANCE_METRICS, METRICS, Better, Metric, describe
from medseg.plans import Plan, lookup
from medseg.record import compact_json

KNOWN = {*METRICS, *INSTANCE_METRICS, *DETECTION_METRICS}
LISTED = 6  # names of missing cases that are spelled out
OBJECT_TERMS = (
    ("Found, missed, invented", "Objects of the reference that a predicted one matches at an IoU above 0.5; those that none matches; and predicted "
     "objects that match none of the reference."),
    ("IoU", "Of two objects, common voxels over the union. A score at an IoU counts objects as matched from it on; one at 0.5:0.95 is the mean over 0.5, "
     "0.55, ... 0.95, and rewards exact outlines."),
)  # fmt: skip
LEFT_OUT = ("Lesion F1", "Of objects computed in volumes only: found once a tenth is covered is too lenient for crowded pictures.")
SELECTED = (
    '<div class="note"><b>Slightly optimistic</b>: weights (with <code>--patience</code>), the configuration or cleaning rules were chosen '
    "by their scores on the cases that are scored here.</div>"
)


def render_page(
    evaluation: Evaluation,
    pairs: Sequence[Pair],
    images: Mapping[str, Sequence[Path]],
    plan: Plan | None,
    curves: Sequence[Path],
    selection: Selection | None = None,
    predicted: ObjectForm | None = None,
) -> str:
    """The whole page as HTML.

    Args:
        evaluation: what to show.
        pairs: files of every case, for the overlays.
        images: case id -> image files; cases without are shown on black.
        plan: explained if given.
        curves: `metrics.csv` files of the training, one per fold.
        selection: of which models the model was selected.
        predicted: how predictions tell objects apart, where another program wrote them.

    Raises:
        ImageError: an image for an overlay cannot be read.
        UsageError: a curve file is not a table of numbers.
    """
    sections = [
        ("objects", "Objects", object_scores(evaluation.objects) if evaluation.objects else ""),
        ("pictures", "Worst, median, best", object_pictures(evaluation, pairs, images, predicted) if evaluation.objects else ""),
        ("scores", "Means over cases" if evaluation.objects else "Scores", _scores(evaluation)),
        ("spread", "Spread", _spread(evaluation)),
        ("look", "Best, median, worst", "" if evaluation.objects else _overlays(evaluation, pairs, images)),
        ("all", "Every case", _cases(evaluation)),
        ("selection", "Selection", _selection(selection)),
        ("training", "Training", training_curves(curves)),
        ("plan", "Plan", _plan(plan)),
        ("reading", "How to read this", _reading(evaluation)),
    ]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, body in sections if body)
    content = "".join(f'<section id="{key}"><h2>{name}</h2>{body}</section>' for key, name, body in sections if body)
    values = {m: [[_round(v) for v in row] for row in evaluation.values(m).tolist()] for m in evaluation.metrics}
    data = json.dumps(
        {"values": values, "share": {m: _heading(evaluation, m).better is Better.up for m in evaluation.metrics}}, separators=(",", ":")
    )
    resources = files("medseg.evaluation.page")
    style, script = ((resources / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(evaluation.title)} · evaluation</title><style>{style}</style></head><body>",
            _header(evaluation, plan),
            f'<nav><div>{links}<button id="theme" type="button">Light / dark</button></div></nav><main>{content}',
            "<footer>Written by medseg. The numbers are in <code>summary.json</code> and <code>cases.csv</code> beside it.</footer>",
            f'</main><script type="application/json" id="scores">{data}</script><script>{script}</script></body></html>\n',
        )
    )


def _heading(evaluation: Evaluation, name: str) -> Metric:
    """What a metric is, in the unit of this evaluation; a plug-in's metric is known by its name only."""
    if name.partition("@")[0] not in KNOWN:
        return Metric(name, name.replace("_", " "), Better.up, "", "")
    metric = describe(name)
    if evaluation.unit == "mm":
        return metric
    return replace(metric, unit=metric.unit.replace("mm", evaluation.unit), title=metric.title.replace(" mm", f" {evaluation.unit}"))


def _header(evaluation: Evaluation, plan: Plan | None) -> str:
    n, k = len(evaluation.cases), len(evaluation.labels.classes)
    what = f"{n} case{'s' * (n != 1)}, {k} class{'es' * (k != 1)}"
    if plan is not None:
        what += f" · configuration {plan.name} · {plan.task} on {plan.domain} · window {' x '.join(map(str, plan.window))}"
    tiles: list[str] = []
    if evaluation.objects is not None:
        tiles = object_tiles(evaluation.objects)
    for index, metric in enumerate(
        [] if tiles else [m for m in evaluation.metrics if _heading(evaluation, m).better is not Better.zero][:5]
    ):
        head, s = _heading(evaluation, metric), evaluation.overall[metric]
        name = f"Mean {head.title}" + (f" in {head.unit}" if head.unit else "")
        first = " first" * (index == 0)
        below = between(s, "95 %: ") or "&nbsp;"
        tiles.append(f'<div class="tile{first}"><span>{escape(name)}</span><b>{number(s.mean)}</b><small>{below}</small></div>')
    notes = [
        _note(evaluation.missing, "without a prediction", "reference"),
        _note(evaluation.extra, "without a reference", "prediction"),
        SELECTED if evaluation.selected else "",
        *(f'<div class="note"><b>Not unseen</b>: {escape(line)}.</div>' for line in evaluation.before.told(n)),
    ]
    return (
        f'<header><div><div><div class="over">Segmentation evaluation</div><h1>{escape(evaluation.title)}</h1>'
        f'<p class="lead">{escape(what)}</p></div></div>'
        f'<div style="display:block"><div class="tiles">{"".join(tiles)}</div>{"".join(notes)}</div></header>'
    )


def _note(names: Sequence[str], what: str, kind: str) -> str:
    if not names:
        return ""
    listed = escape(", ".join(names[:LISTED])) + " and more" * (len(names) > LISTED)
    return f'<div class="note"><b>{len(names)} {kind}{"s" * (len(names) != 1)} {what}</b>, not scored: {listed}</div>'


def _scores(evaluation: Evaluation) -> str:
    heads = [_heading(evaluation, m) for m in evaluation.metrics]
    top = "".join(f'<th title="{escape(h.meaning)}">{escape(h.title)}<small>{escape(h.unit) or "&nbsp;"}</small></th>' for h in heads)
    rows = []
    for index, name in enumerate(evaluation.labels.names):
        cells = "".join(_cell(evaluation.classes[name][h.name], h) for h in heads)
        rows.append(f'<tr class="c{index % 8}"><td><span class="dot"></span>{escape(name)}</td>{cells}</tr>')
    if len(evaluation.labels.names) > 1:
        cells = "".join(_cell(evaluation.overall[h.name], h) for h in heads)
        rows.append(f'<tr class="all"><td>Mean of classes</td>{cells}</tr>')
    return (
        '<p class="lead">Mean over cases, with the 95 % bootstrap interval of the mean below it.</p>'
        f'<div class="card scroll"><table><thead><tr><th>Class</th>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        + _presence(evaluation)
    )


def _presence(evaluation: Evaluation) -> str:
    seen = evaluation.presence
    if not any(p.missed or p.false_alarm or p.absent for p in seen.values()):
        return '<p class="lead after">Every class is in every case, and none was missed altogether.</p>'
    meanings = {
        "Found": "cases that have the class, and it is predicted",
        "Missed": "cases that have the class, and nothing is predicted",
        "False alarm": "cases without the class, yet it is predicted",
        "Absent": "cases without the class, and it is not predicted",
    }
    heads = "".join(f'<th title="{meaning}">{name}</th>' for name, meaning in meanings.items())
    rows = "".join(
        f'<tr class="c{i % 8}"><td><span class="dot"></span>{escape(name)}</td><td>{p.found}</td>'
        f'<td class="{"miss" if p.missed else "none"}">{p.missed}</td>'
        f'<td class="{"miss" if p.false_alarm else "none"}">{p.false_alarm}</td>'
        f'<td class="none">{p.absent}</td></tr>'
        for i, (name, p) in enumerate(seen.items())
    )
    return (
        '<p class="lead after">Cases in which a class is there, or is predicted, at all:</p>'
        f'<div class="card scroll narrow"><table><thead><tr><th>Class</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _cell(summary: Summary, head: Metric) -> str:
    share = head.better is Better.up and summary.mean is not None
    bar = f'<span class="bar"><i style="width:{100 * min(max(summary.mean or 0, 0), 1):.1f}%"></i></span>' if share else ""
    return f"<td>{number(summary.mean, signed=head.better is Better.zero)}<small>{between(summary) or '&nbsp;'}</small>{bar}</td>"


def _spread(evaluation: Evaluation) -> str:
    charts = [
        box_plots(h.title, h.unit, h.better, evaluation.labels.names, evaluation.ids, evaluation.values(m), h.meaning)
        for m in evaluation.metrics
        for h in (_heading(evaluation, m),)
    ]
    return (
        '<p class="lead">Box: quartiles. Line: median. Diamond: mean. Whiskers: within 1.5 interquartile ranges. '
        "Every point is a case; hover for its name.</p>"
        f'<div class="charts">{"".join(charts)}</div>'
    )


def _overlays(evaluation: Evaluation, pairs: Sequence[Pair], images: Mapping[str, Sequence[Path]]) -> str:
    metric = evaluation.metrics[0]
    means = case_means(evaluation, metric)
    if _heading(evaluation, metric).better is not Better.up:
        means = -np.abs(means)
    files = {p.id: p for p in pairs}
    cards, flat = [], False
    for name, index in choose(means):
        case = evaluation.cases[index]
        shown = views(files[case.id], images.get(case.id, ()), evaluation.labels)
        flat = len(shown) == 1
        scores = " · ".join(f"{escape(c)} {number(case.scores[c].get(metric))}" for c in evaluation.labels.names[:8])
        cards.append(
            f'<div class="card case"><div class="casehead"><span class="badge {name}">{name}</span><h3>{escape(case.id)}</h3>'
            f'<span class="score">{escape(_heading(evaluation, metric).title)}: {scores}</span></div>'
            f'<div class="views">{"".join(map(_view, shown))}</div></div>'
        )
    where = "" if flat else ", each in the slices with most foreground"
    keys = "".join(f'<span class="key c{i % 8}"><i></i>{escape(n)}</span>' for i, n in enumerate(evaluation.labels.names))
    return (
        f'<p class="lead">Cases by mean {escape(_heading(evaluation, metric).title)} over their classes{where}.</p>'
        '<div class="tools">'
        '<label><input type="checkbox" checked data-hide="noref"><span class="swatch r"></span>reference (outline)</label>'
        '<label><input type="checkbox" checked data-hide="nopred"><span class="swatch p"></span>prediction (filled)</label>'
        f'{keys}</div><div class="{"flat" if flat else "deep"}">{"".join(cards)}</div>'
    )


def _view(view: View) -> str:
    columns, rows = view.size
    scale_x, scale_y = view.width / columns, view.height / rows
    picture = f'<image width="{columns}" height="{rows}" preserveAspectRatio="none" href="{view.picture}"/>' if view.picture else ""
    paths = "".join(
        f'<path class="{kind} c{i % 8}" d="{path}"/>'
        for kind, all_paths in (("pred", view.predicted), ("ref", view.reference))
        for i, path in enumerate(all_paths)
        if path
    )
    title = f"<figcaption>{escape(view.title)}</figcaption>" if view.title else ""
    frame = f'viewBox="0 0 {view.width:.6g} {view.height:.6g}" role="img" aria-label="{escape(view.title or "overlay")}"'
    scaled = f'<g transform="scale({scale_x:.6g} {scale_y:.6g})">{picture}{paths}</g>'
    return f'<figure class="view"><svg {frame}>{scaled}</svg>{title}</figure>'


def _cases(evaluation: Evaluation) -> str:
    first = evaluation.metrics[0]
    table, order = evaluation.values(first), worst_first(evaluation)
    options = "".join(f'<option value="{escape(m)}">{escape(_heading(evaluation, m).title)}</option>' for m in evaluation.metrics)
    rows = []
    for i in map(int, order):
        cells = "".join(
            f'<td class="c{k % 8}" data-v="{"" if np.isnan(v) else f"{v:.6g}"}"><span>{number(_round(v))}</span>'
            f'<span class="bar"><i style="width:{0 if np.isnan(v) else 100 * min(max(v, 0), 1):.1f}%"></i></span></td>'
            for k, v in enumerate(table[i].tolist())
        )
        found = errors(evaluation.cases[i])
        cells += "".join(f'<td data-v="{count}" class="{"miss" if count else "none"}">{count}</td>' for count in found)
        rows.append(f'<tr data-i="{i}"><td>{escape(evaluation.cases[i].id)}</td>{cells}</tr>')
    names = (*evaluation.labels.names, *(("Missed", "Invented") if evaluation.objects else ()))
    heads = "".join(f"<th>{escape(n)}</th>" for n in names)
    return (
        '<p class="lead">Worst first. Click a heading to sort. A dash is an undefined value: the class is neither there nor predicted.</p>'
        f'<div class="tools"><label>Metric <select id="metric">{options}</select></label></div>'
        f'<div class="card cases"><table id="cases"><thead><tr><th>Case</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _selection(selection: Selection | None) -> str:
    if selection is None:
        return ""
    chosen = ' class="all"'
    rows = "".join(
        f"<tr{chosen if c.members == selection.chosen else ''}><td>{escape(c.name)}</td><td>{c.mean:.4f}</td>"
        f"<td>{_bounds(c.low, c.high)}</td><td>{'' if c.difference is None else f'{c.difference:+.4f}'}</td>"
        f"<td>{_bounds(c.difference_low, c.difference_high, '+')}</td><td>{c.seconds:.2f}</td></tr>"
        for c in selection.candidates
    )
    heads = "".join(
        f"<th>{name}</th>" for name in ("Models", f"Mean {selection.metric}", "95 %", "To the best alone", "95 %", "Seconds a case")
    )
    return (
        f'<p class="lead">Chosen: <b>{escape(" + ".join(selection.chosen))}</b>. {escape(selection.reason)} '
        "Before any cleaning; a class that is rightly absent counts as 1.</p>"
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _bounds(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f"{low:{sign}.4f} to {high:{sign}.4f}"


def _plan(plan: Plan | None) -> str:
    if plan is None:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(path)}</code></td><td><code>{escape(_value(lookup(plan, path)))}</code></td><td>{escape(reason)}</td></tr>"
        for path, reason in plan.reasons.items()
    )
    return (
        f'<p class="lead">Configuration <b>{escape(plan.name)}</b>: every decision with its reason.</p>'
        '<div class="card scroll"><table class="plan"><thead><tr><th>Decision</th><th>Value</th><th>Because</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _value(value: object) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    elif isinstance(value, (tuple, list)):
        value = [v.model_dump(mode="json") if hasattr(v, "model_dump") else v for v in value]
    text = compact_json(value, width=10**6)
    return text if len(text) <= 160 else text[:157] + "..."


def _reading(evaluation: Evaluation) -> str:
    together = () if evaluation.objects is None else evaluation.objects.metrics
    names = tuple(dict.fromkeys((*evaluation.metrics, *together)))
    meanings = [(h.title, h.meaning) for m in names for h in (_heading(evaluation, m),)]
    if evaluation.objects is not None:
        meanings = [*OBJECT_TERMS, *meanings]
        if "lesion_f1" not in names:
            meanings.append(LEFT_OUT)
    items = "".join(f"<dt>{escape(title)}</dt><dd>{escape(meaning)}</dd>" for title, meaning in meanings)
    return (
        f'<div class="card"><dl>{items}<dt>Absent classes</dt><dd>Neither in the reference nor predicted: undefined, left out of means. '
        "Missed, or predicted where there is none: 0 for overlap, the diagonal of the image for distances.</dd>"
        "<dt>Intervals</dt><dd>95 % percentile bootstrap over cases. They show how sure the mean is, not how far cases spread.</dd>"
        "<dt>Mean of classes</dt><dd>Mean of the class means; cases are drawn with all their classes.</dd></dl></div>"
    )


def _round(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.5g}")
