"""Charts as inline SVG; colours come from the page's style, so they follow its light and dark theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from medseg.metrics import Better

WIDTH, LEFT, RIGHT, ROW = 460, 118, 16, 46
MANY = 300  # points above which they are drawn small


@dataclass(frozen=True)
class Line:
    """One curve; `colour` is an index into the page's palette."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: int


def box_plots(
    title: str, unit: str, better: Better, classes: Sequence[str], ids: Sequence[str], table: NDArray[np.float64], note: str = ""
) -> str:
    """One metric: a box (quartiles, whiskers to 1.5 interquartile ranges), the mean as a diamond, and every case as a point.

    Args:
        table: `(cases, classes)`, NaN where undefined.
        note: meaning of the metric, shown under the title.
    """
    known = table[~np.isnan(table)]
    if len(known) == 0:
        return ""
    ticks = axis(known, better, share=unit == "")
    low, high = ticks[0], ticks[-1]
    height = 14 + ROW * len(classes) + 26

    def at(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low), 2)

    bottom = height - 24
    parts = [
        f'<line class="grid{" zero" if t == 0 and low < 0 else ""}" x1="{at(t)}" x2="{at(t)}" y1="8" y2="{bottom}"/>'
        f'<text class="tick" x="{at(t)}" y="{bottom + 17}" text-anchor="middle">{label(t, ticks)}</text>'
        for t in ticks
    ]
    for row, name in enumerate(classes):
        values, y = table[:, row], 14 + ROW * (row + 0.5)
        shown = name if len(name) <= 16 else name[:15] + "…"
        parts.append(
            f'<text class="name" x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(shown)}<title>{escape(name)}</title></text>'
        )
        parts.append(f'<g class="c{row % 8}">{_box(values, ids, y, at, title)}</g>')
    hint = {Better.up: "higher is better", Better.down: "lower is better", Better.zero: "zero is best"}[better]
    heading = f"{escape(title)}{f' <small>{escape(unit)}</small>' if unit else ''}"
    return (
        f'<figure class="chart"><figcaption><b>{heading}</b><span>{hint}</span><p>{escape(note)}</p></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)} per class">{"".join(parts)}</svg></figure>'
    )


def _box(values: NDArray[np.float64], ids: Sequence[str], y: float, at: Callable[[float], float], title: str) -> str:
    known = np.flatnonzero(~np.isnan(values))
    if len(known) == 0:
        return f'<text class="tick" x="{LEFT + 6}" y="{y + 4}">undefined in every case</text>'
    v = values[known]
    q1, median, q3 = (float(q) for q in np.percentile(v, [25, 50, 75]))
    reach = 1.5 * (q3 - q1)
    inside = v[(v >= q1 - reach) & (v <= q3 + reach)]
    low, high = float(inside.min()), float(inside.max())
    radius = 1.7 if len(v) > MANY else 2.8
    dots = "".join(
        # The golden ratio spreads neighbours evenly without randomness.
        f'<circle cx="{at(float(values[i]))}" cy="{round(y + 9 + 9 * (((n * 0.618034) % 1) - 0.5), 1)}" r="{radius}">'
        f"<title>{escape(ids[i])}: {values[i]:.4g}</title></circle>"
        for n, i in enumerate(known.tolist())
    )
    box_y, h = y - 15, 14
    mean, middle = at(float(v.mean())), box_y + h / 2
    return (
        f'<g class="dots">{dots}</g>'
        f'<path class="whisker" d="M{at(low)} {middle}H{at(q1)}M{at(q3)} {middle}H{at(high)}'
        f'M{at(low)} {middle - 4}v8M{at(high)} {middle - 4}v8"/>'
        f'<rect class="box" x="{at(q1)}" y="{box_y}" width="{max(at(q3) - at(q1), 1):.2f}" height="{h}" rx="2">'
        f"<title>{escape(title)}: median {median:.4g}, quartiles {q1:.4g} to {q3:.4g}</title></rect>"
        f'<line class="median" x1="{at(median)}" x2="{at(median)}" y1="{box_y}" y2="{box_y + h}"/>'
        f'<path class="mean" d="M{mean} {middle - 4.5}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"><title>mean {v.mean():.4g}</title></path>'
    )


def curves(title: str, x_name: str, lines: Sequence[Line]) -> str:
    """Curves over training. The last value of each is written beside its name."""
    width, height, left, right, top, bottom = 460, 230, 52, 14, 10, 26
    xs, ys = np.concatenate([li.x for li in lines]), np.concatenate([li.y for li in lines])
    x_ticks = nice(float(xs.min()), float(xs.max()), 6, inside=True)
    x0, x1 = float(xs.min()), float(xs.max()) if xs.max() > xs.min() else float(xs.min()) + 1
    y_ticks = nice(float(ys.min()), float(ys.max()), 5)
    y0, y1 = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (width - left - right) * (x - x0) / (x1 - x0), 1),
            round(height - bottom - (height - top - bottom) * (y - y0) / (y1 - y0), 1),
        )

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at(x0, t)[1]}" y2="{at(x0, t)[1]}"/>'
        f'<text class="tick" x="{left - 8}" y="{at(x0, t)[1] + 3.5}" text-anchor="end">{label(t, y_ticks)}</text>'
        for t in y_ticks
    ]
    parts += [f'<text class="tick" x="{at(t, y0)[0]}" y="{height - 8}" text-anchor="middle">{label(t, x_ticks)}</text>' for t in x_ticks]
    for line in lines:
        points = [at(float(x), float(y)) for x, y in zip(line.x, line.y, strict=True)]
        text = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<g class="c{line.colour % 8}"><polyline class="curve" points="{text}"/>')
        parts.append(f'<circle class="end" cx="{points[-1][0]}" cy="{points[-1][1]}" r="3.2"/></g>')
    legend = "".join(f'<span class="key c{li.colour % 8}"><i></i>{escape(li.name)} <b>{li.y[-1]:.4g}</b></span>' for li in lines)
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><span>over {escape(x_name)}</span></figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def plot(title: str, note: str, axes: tuple[str, str], lines: Sequence[Line], ticks: Sequence[tuple[float, str]]) -> str:
    """Curves of shares from 0 to 1 over an axis with these `ticks` (place, text), which it covers; classes differ in colour and in dashes."""
    width, height, left, right, top, bottom = 460, 260, 52, 14, 10, 40
    x0, x1 = ticks[0][0], ticks[-1][0]

    def at(x: float, y: float) -> tuple[float, float]:
        return round(left + (width - left - right) * (x - x0) / (x1 - x0), 1), round(height - bottom - (height - top - bottom) * y, 1)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at(x0, t)[1]}" y2="{at(x0, t)[1]}"/>'
        f'<text class="tick" x="{left - 8}" y="{at(x0, t)[1] + 3.5}" text-anchor="end">{t:g}</text>'
        for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    parts += [f'<text class="tick" x="{at(t, 0)[0]}" y="{height - 24}" text-anchor="middle">{text}</text>' for t, text in ticks]
    parts.append(f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">{escape(axes[0])}</text>')
    keys = []
    for line in lines:
        points = " ".join(f"{x},{y}" for x, y in (at(float(x), float(y)) for x, y in zip(line.x, line.y, strict=True)))
        look = f"c{line.colour % 8} d{line.colour % 4}"
        parts.append(f'<g class="{look}"><title>{escape(line.name)}</title><polyline class="curve" points="{points}"/></g>')
        sample = f'<svg class="sample {look}" viewBox="0 0 26 6"><polyline class="curve" points="0,3 26,3"/></svg>'
        keys.append(f'<span class="key">{sample}{escape(line.name)}</span>')
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><span>{escape(axes[1])}</span><p>{escape(note)}</p></figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="legend">{"".join(keys)}</div></figure>'
    )


def shares(title: str, note: str, x_name: str, bars: Sequence[tuple[str, float, str]], colour: int) -> str:
    """Bars of shares from 0 to 1, one beside the other: the text below each, its share, and the text on it."""
    width, height, left, right, top, bottom = 460, 230, 44, 14, 18, 40
    step = (width - left - right) / len(bars)

    def at(share: float) -> float:
        return round(height - bottom - (height - top - bottom) * share, 1)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at(t)}" y2="{at(t)}"/>'
        f'<text class="tick" x="{left - 8}" y="{at(t) + 3.5}" text-anchor="end">{t:g}</text>'
        for t in (0.0, 0.5, 1.0)
    ]
    for i, (text, share, note_above) in enumerate(bars):
        x = left + step * (i + 0.5)
        parts.append(
            f'<rect class="box" x="{x - 0.36 * step:.1f}" y="{at(share)}" width="{0.72 * step:.1f}" height="{at(0) - at(share):.1f}"/>'
            f'<text class="tick" x="{x:.1f}" y="{at(share) - 4}" text-anchor="middle">{escape(note_above)}</text>'
            f'<text class="tick" x="{x:.1f}" y="{height - 24}" text-anchor="middle">{escape(text)}</text>'
        )
    parts.append(f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_name)}</text>')
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><p>{escape(note)}</p></figcaption>'
        f'<svg class="c{colour % 8}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def axis(values: NDArray[np.float64], better: Better, share: bool) -> list[float]:
    """Ticks of an axis that shows where perfect is: 1 for shares, 0 for distances, 0 in the middle for signed errors."""
    low, high = float(values.min()), float(values.max())
    if better is Better.up and share and low >= 0 and high <= 1:
        return nice(min(low, 0.95), 1.0, 5)
    if better is Better.zero:
        return nice(min(low, -0.01), max(high, 0.01), 5)
    return nice(min(0.0, low), high if high > 0 else 1.0, 5)


def nice(low: float, high: float, count: int, inside: bool = False) -> list[float]:
    """About `count` round numbers from below `low` to above `high` (`inside`: from above `low` to below `high`)."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    slack = 1e-6 * (1 if not inside else -1)
    first, last = (
        (math.ceil(low / step + slack), math.floor(high / step - slack))
        if inside
        else (math.floor(low / step + slack), math.ceil(high / step - slack))
    )
    return [round(i * step, 12) for i in range(first, last + 1)]


def label(value: float, ticks: Sequence[float]) -> str:
    """A tick's text with as many decimals as the distance of ticks asks for."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1
    if max(abs(t) for t in ticks) < 1e-3 or max(abs(t) for t in ticks) >= 1e5:
        return f"{value:.2g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, decimals) != round(step, decimals + 1):
        decimals += 1
    return f"{value:.{decimals}f}"
