"""Pictures of objects: which were found, which missed and which invented, each told apart by colour, line and symbol."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Labels, ObjectForm
from medseg.evaluation.page.outline import outline
from medseg.evaluation.page.overlays import box_of, gray_or_colour, photo_of, png
from medseg.evaluation.pairing import Pair, read_pair
from medseg.imaging.crop import value_boxes
from medseg.metrics.instances import count_objects, match

HUES = 8  # colours of objects that the page's style knows
FOUND, INVENTED, MISSED, KNOWN = "found", "invented", "missed", "known"
LEAST = 0.004  # radius of a symbol, as a share of the slice's longer side, so that it is seen however small its object is
CROSS, RING = 0.28, 0.5  # radius of symbols, as a share of that of their object: where both are, the cross lies in the ring


@dataclass(frozen=True)
class Shape:
    """One object in a slice.

    Attributes:
        kind: `found`, `invented`, `missed`, or `known` for the reference's outline of an object that was found.
        hue: its colour; neighbours have different ones.
        path: SVG path.
        centre, radius: `(x, y)` of a pixel of it near its middle, and the radius of a disk of its area.
        title: shown when the pointer rests on it.
    """

    kind: str
    hue: int
    path: str
    centre: tuple[float, float]
    radius: float
    title: str


@dataclass(frozen=True)
class ObjectView:
    """One slice; see `overlays.View`. Outlines are in pixels of the slice, whatever the size of the picture."""

    title: str
    width: float
    height: float
    picture: str
    size: tuple[int, int]
    shapes: tuple[Shape, ...]


def object_views(case: Pair, images: Sequence[Path], labels: Labels, predicted: ObjectForm | None = None) -> tuple[ObjectView, ...]:
    """The image in 2D; in 3D one slice per plane: the one through the most objects that were missed or invented, else through the most objects.

    Raises:
        ImageError: the image has another shape than the reference.
    """
    prediction, truth = read_pair(case, labels, predicted)
    table = count_objects(prediction.array[0], truth.array[0], labels)
    pairs = match(table, 0.5, strict=True)
    names = {0: "no class", **dict(enumerate(labels.names, 1))}
    ious = dict(zip(pairs.prediction.tolist(), pairs.iou.tolist(), strict=True))
    told: tuple[dict[int, tuple[str, str]], ...] = ({}, {})  # of the truth, of the prediction: code -> kind and title
    partnered = set(pairs.truth.tolist())
    for i, code in enumerate(table.truth.ids.tolist()):
        name = f"{names[int(table.truth.classes[i])]} {_number(code, labels)}"
        told[0][code] = (KNOWN, f"reference: {name}") if i in partnered else (MISSED, f"missed: {name}, {table.truth.sizes[i]} voxels")
    invented = set(pairs.invented.tolist())
    for i, code in enumerate(table.prediction.ids.tolist()):
        name = f"{names[int(table.prediction.classes[i])]} {_number(code, labels)}"
        if i in ious:
            told[1][code] = (FOUND, f"{name}: IoU {ious[i]:.2f}")
        elif i in invented:
            told[1][code] = (INVENTED, f"not in the reference: {name}, {table.prediction.sizes[i]} voxels")
        else:
            told[1][code] = (FOUND, f"{name}: mostly where the reference is unknown")
    step = truth.grid.canonical()
    grid = step.grid(truth.grid)
    things = [int(v) for one in labels.classes if one.name in labels.things for v in one.values]
    codes = []
    for array in (truth.array[0], prediction.array[0]):
        shown = np.where(np.isin(labels.semantic(array), things), array, 0)
        codes.append(step.apply(shown[None])[0])
    occupied: NDArray[np.bool_] = (codes[0] != 0) | (codes[1] != 0)
    box = box_of(occupied)
    photo = photo_of(images, truth.grid.shape, step)
    codes = [c[box] for c in codes]
    photo = None if photo is None else gray_or_colour(photo[(slice(None), *box)])
    if codes[0].ndim == 2:
        return (_view("", photo, codes, told, grid.spacing),)
    wrong = [
        np.isin(c, [code for code, (kind, _) in known.items() if kind in (MISSED, INVENTED)]) for c, known in zip(codes, told, strict=True)
    ]
    found = []
    for axis, plane in enumerate(("axial", "coronal", "sagittal")):
        index = _telling(codes, wrong, axis)
        spacing = tuple(s for a, s in enumerate(grid.spacing) if a != axis)
        title = f"{plane} {box[axis].start + index + 1} of {grid.shape[axis]}"
        cut = [np.take(c, index, axis=axis) for c in codes]
        picture = None if photo is None else np.take(photo, index, axis=axis + 1)
        if plane != "axial":  # superior is up
            cut, picture = [c[::-1] for c in cut], None if picture is None else picture[:, ::-1]
        found.append(_view(title, picture, cut, told, spacing))
    return tuple(found)


def view_svg(view: ObjectView) -> str:
    """The slice as a figure."""
    columns, rows = view.size
    scale = (view.width / columns, view.height / rows)
    picture = f'<image width="{columns}" height="{rows}" preserveAspectRatio="none" href="{view.picture}"/>' if view.picture else ""
    shapes = sorted(view.shapes, key=lambda s: (FOUND, KNOWN, INVENTED, MISSED).index(s.kind))
    drawn = [f'<path d="{shape.path}"/>' for shape in shapes]
    least = LEAST * max(view.width, view.height)
    layers = [*zip(shapes, drawn, strict=True), *((s, _sign(s, scale, least)) for s in shapes if s.kind in (INVENTED, MISSED))]
    drawn = [f'<g class="o {shape.kind} h{shape.hue}"><title>{escape(shape.title)}</title>{what}</g>' for shape, what in layers]
    caption = f"<figcaption>{escape(view.title)}</figcaption>" if view.title else ""
    frame = f'viewBox="0 0 {view.width:.6g} {view.height:.6g}" role="img" aria-label="{escape(view.title or "objects")}"'
    scaled = f'<g transform="scale({scale[0]:.6g} {scale[1]:.6g})">{picture}{"".join(drawn)}</g>'
    return f'<figure class="view" style="aspect-ratio:{view.width / view.height:.4g}"><svg {frame}>{scaled}</svg>{caption}</figure>'


def hues(codes: NDArray[np.integer]) -> dict[int, int]:
    """A colour for each object of a 2D map such that those that touch, or nearly so, have different ones wherever `HUES` suffice."""
    ids = np.unique(codes)
    near: dict[int, set[int]] = {int(i): set() for i in ids if i}
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1), (0, 3), (3, 0), (3, 3), (3, -3)):
        rows = slice(dy, None), slice(None, -dy or None)
        columns = (slice(dx, None), slice(None, -dx or None)) if dx >= 0 else (slice(None, dx), slice(-dx, None))
        a, b = codes[rows[0], columns[0]].ravel(), codes[rows[1], columns[1]].ravel()
        meet = (a != b) & (a != 0) & (b != 0)
        for one, other in np.unique(np.stack([a[meet], b[meet]], 1), axis=0).tolist():
            near[one].add(other)
            near[other].add(one)
    chosen: dict[int, int] = {}
    uses = [0] * HUES
    for code in sorted(near, key=lambda c: (-len(near[c]), c)):
        taken = {chosen[n] for n in near[code] if n in chosen}
        free = [h for h in range(HUES) if h not in taken] or list(range(HUES))
        chosen[code] = min(free, key=lambda h: (uses[h], h))
        uses[chosen[code]] += 1
    return chosen


def _telling(codes: Sequence[NDArray[np.integer]], wrong: Sequence[NDArray[np.bool_]], axis: int) -> int:
    """Index of the slice through the most wrong objects, then the most objects, then the most voxels."""

    def counts(arrays: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
        total = np.zeros(arrays[0].shape[axis], np.int64)
        for array in arrays:
            lines = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
            total += [np.count_nonzero(np.unique(line)) for line in lines]
        return total

    voxels = sum((np.moveaxis(c, axis, 0).reshape(c.shape[axis], -1) != 0).sum(1) for c in codes)
    order = np.lexsort((voxels, counts(codes), counts([np.where(w, c, 0) for c, w in zip(codes, wrong, strict=True)])))
    return int(order[-1])


def _view(
    title: str,
    picture: NDArray[np.uint8] | None,
    codes: Sequence[NDArray[np.integer]],
    told: Sequence[dict[int, tuple[str, str]]],
    spacing: tuple[float, ...],
) -> ObjectView:
    rows, columns = codes[0].shape
    colours = hues(codes[1])
    shapes = []
    for array, known in zip(codes, told, strict=True):
        for code, mask, top, left in _masks(array, known):
            kind, text = known[code]
            y, x = _middle(mask)
            shapes.append(
                Shape(
                    kind,
                    colours.get(code, 0) if kind == FOUND else 0,
                    outline(mask, (left, top)),
                    (left + x + 0.5, top + y + 0.5),
                    float(np.sqrt(mask.sum() / np.pi)),
                    text,
                )
            )
    return ObjectView(
        title,
        width=columns * spacing[1],
        height=rows * spacing[0],
        picture="" if picture is None else png(picture),
        size=(columns, rows),
        shapes=tuple(shapes),
    )


def _masks(array: NDArray[np.integer], codes: Collection[int]) -> list[tuple[int, NDArray[np.bool_], int, int]]:
    """Code, mask and corner (row, column) of each of the objects that are in a 2D map, in its own box."""
    boxes = value_boxes(array, tuple(codes)) if codes else {}
    return [(code, array[box] == code, box[0].start, box[1].start) for code, box in boxes.items()]


def _middle(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel of a mask that is farthest from its edge."""
    from scipy import ndimage

    depth = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), mask.shape)
    return int(y), int(x)


def _number(code: int, labels: Labels) -> int:
    return int(labels.numbers(code))


def _sign(shape: Shape, scale: tuple[float, float], least: float) -> str:
    """A cross in what was invented, a ring in what was missed, round also where pixels are not square; `least` is the smallest radius of a cross."""
    x, y = shape.centre
    share = RING if shape.kind == MISSED else CROSS
    r = max(least * share / CROSS, share * shape.radius * min(scale))
    dx, dy = r / scale[0], r / scale[1]
    if shape.kind == MISSED:
        return f'<ellipse cx="{x:.4g}" cy="{y:.4g}" rx="{dx:.3g}" ry="{dy:.3g}"/>'
    return (
        f'<path class="sign" d="M{x - dx:.4g} {y - dy:.4g}L{x + dx:.4g} {y + dy:.4g}M{x - dx:.4g} {y + dy:.4g}L{x + dx:.4g} {y - dy:.4g}"/>'
    )
