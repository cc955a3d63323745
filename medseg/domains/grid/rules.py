"""The published rules that turn a fingerprint into grids, normalisation and windows. Each is a pure function that says why.

Source unless stated otherwise: Isensee et al., nnU-Net, Nature Methods 18 (2021), Methods and Supplementary Notes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from medseg.dataset import Channel, Labels, Modality
from medseg.domains.grid.settings import Normalization, Scheme
from medseg.fingerprint import OBJECT_QUANTILES, CaseStats, Fingerprint, Intensities
from medseg.geometry import Shape
from medseg.imaging.resample import ANISOTROPY

T = TypeVar("T")
CROP_WORTH = 0.95  # cropping that keeps more of the volume than this is not worth a step
MASK_WORTH = 0.75  # nnU-Net: normalise inside the body when cropping to nonzero removes a quarter of the volume
QUANTUM = 8  # windows in multiples of 8 take three halvings without rounding
COVER = 96**3  # voxels of a 3D window that is large enough to try to hold whole cases
COVER_2D = 512**2
FEW_SLICES = 8
FEWEST_SLICES = 4
DIRECTIONS = (  # words in class names, by canonical axis (z, y, x)
    frozenset({"superior", "inferior", "upper", "lower", "cranial", "caudal", "top", "bottom"}),
    frozenset({"anterior", "posterior", "ventral", "dorsal", "front", "back"}),
    frozenset({"left", "right", "l", "r", "lt", "rt", "lh", "rh"}),
)
CAPITALS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<![A-Za-z])([LR])(?=[A-Z][a-z])")  # where a word begins: `kidneyLeft`, `lKidney`, `LKidney`
TYPICAL = 128**3  # voxels of a 3D window that common machines train with
WHOLE = 75  # per cent of cases that a covering window holds along each axis; the last quarter would double its size
ENOUGH_CASES = 10  # with objects of a class, before their scales are compared
LARGEST_ZOOM = 0.4  # nnU-Net zooms by 0.7 to 1.4
FILLED = 0.75  # of a 2D window that holds so many cases, in the mean over cases; padding costs as much as pixels and teaches nothing


@dataclass(frozen=True)
class Decided(Generic[T]):
    """A value and the reason for it."""

    value: T
    because: str


USUAL_ZOOM = Decided(0.15, "zooms of 15 %")
NO_COLOURS = Decided(0.0, "")


def axis_order(cases: tuple[CaseStats, ...]) -> Decided[tuple[int, ...]]:
    """The coarsest axis first: 2D windows go through it slice by slice, and memory-mapped slabs lie along it."""
    spacing = median([c.spacing for c in cases])
    ndim = len(spacing)
    coarsest = int(np.argmax(spacing))
    if ndim == 2 or spacing[coarsest] <= min(spacing) * 1.0001 or coarsest == 0:
        return Decided(tuple(range(ndim)), f"median spacing {mm(spacing)} needs no other order")
    order = (coarsest, *(a for a in range(ndim) if a != coarsest))
    return Decided(order, f"the axis with the largest median spacing ({spacing[coarsest]:.4g} mm of {mm(spacing)}) comes first")


def target_spacing(spacings: list[tuple[float, ...]], shapes: list[Shape]) -> Decided[tuple[float, ...]]:
    """The median spacing; for clearly anisotropic data the 10th percentile along the coarse axis, so that few cases lose slices."""
    target = list(median(spacings))
    because = f"median spacing of {len(spacings)} cases"
    if len(target) == 3:
        worst = int(np.argmax(target))
        others = [a for a in range(3) if a != worst]
        size = np.median(np.asarray(shapes, dtype=np.float64), axis=0)
        if target[worst] > ANISOTROPY * max(target[a] for a in others) and size[worst] * ANISOTROPY < min(size[a] for a in others):
            fine = float(np.percentile([s[worst] for s in spacings], 10))
            because = (
                f"median spacing {mm(tuple(target))} is anisotropic (more than {ANISOTROPY:g} times coarser along one axis), "
                f"so that axis takes its 10th percentile ({fine:.4g} mm)"
            )
            target[worst] = max(fine, max(target[a] for a in others))
    return Decided(tuple(round(float(t), 6) for t in target), because)


def low_resolution(spacing: tuple[float, ...], shape: tuple[float, ...]) -> Decided[tuple[float, ...]] | None:
    """A coarser spacing for volumes of which a window sees less than a quarter; None where windows see enough.

    Axes that are more than twice as fine as the coarsest coarsen first (nnU-Net's `3d_lowres`).

    Args:
        shape: median prepared shape at `spacing`.
    """
    most = 4 * TYPICAL
    voxels = float(np.prod(shape))
    if voxels <= most:
        return None
    coarse = np.asarray(spacing, dtype=np.float64)
    extent = np.asarray(shape, dtype=np.float64) * coarse
    while np.prod(extent / coarse) > most:
        fine = coarse.max() / coarse > 2
        coarse = coarse * np.where(fine if fine.any() else np.ones_like(fine), 1.03, 1.0)
    value = tuple(round(float(s), 6) for s in coarse)
    because = (
        f"a window of about {TYPICAL / 1e6:.1f} million voxels sees {TYPICAL / voxels:.0%} of a median case of {voxels / 1e6:.0f} million "
        f"at {mm(spacing)}; at {mm(value)} it sees a quarter"
    )
    return Decided(value, because)


def crop_to_nonzero(cases: tuple[CaseStats, ...]) -> Decided[bool]:
    """Crop where the border is empty in enough cases to matter."""
    kept = kept_by_crop(cases)
    if kept < CROP_WORTH:
        return Decided(True, f"the box of nonzero voxels holds {kept:.0%} of the median case")
    return Decided(False, f"the box of nonzero voxels holds {kept:.0%} of the median case: cropping would save nothing")


def kept_by_crop(cases: tuple[CaseStats, ...]) -> float:
    """Median fraction of a case that remains after cropping to nonzero voxels."""
    return float(np.median([np.prod(c.cropped) / np.prod(c.shape) for c in cases]))


def normalization(channel: Channel, seen: Intensities, kept: float, objects: bool) -> Decided[Normalization]:
    """CT by the dataset's foreground, colours by their range or, where `objects` are told apart, by each case's own percentiles, everything
    else by each case's own mean and deviation."""
    if channel.modality is Modality.ct and seen.std > 0 and seen.percentile(0.5) < seen.percentile(99.5):
        low, high = (round(seen.percentile(q), 4) for q in (0.5, 99.5))
        how = Normalization(scheme=Scheme.fixed, low=low, high=high, mean=round(seen.mean, 4), std=round(seen.std, 4))
        return Decided(how, f"CT numbers mean the same in every case: foreground percentiles 0.5 and 99.5 are {low:g} and {high:g} HU")
    if channel.modality is Modality.rgb and objects:
        because = (
            "micrographs and photographs of objects differ in stain and exposure: each case's median, most often its background, maps to 0, "
            "and its 1st and 99.8th percentile 4 apart"
        )
        return Decided(Normalization(scheme=Scheme.spread), because)
    if channel.modality is Modality.rgb:
        top = seen.quantiles[-1]
        high = next((h for h in (1.0, 255.0, 65535.0) if top <= h), top)
        how = Normalization(scheme=Scheme.fixed, low=0, high=high, mean=high / 2, std=high / 4)
        return Decided(how, f"colour: the fixed range 0 to {high:g} maps to -2 to 2, which keeps the relations between channels")
    if kept < MASK_WORTH:
        because = f"{channel.modality.value} intensities are relative, and zero background fills {1 - kept:.0%}"
        return Decided(Normalization(scheme=Scheme.masked), because)
    return Decided(Normalization(scheme=Scheme.zscore), f"{channel.modality.value} intensities are relative: z-score of each case")


def mirror_axes(labels: Labels, order: tuple[int, ...], window_axes: int, device: str) -> Decided[tuple[int, ...]]:
    """Mirror along the window axes that leave every class what it is (nnU-Net mirrors all); volumes on a CPU are not mirrored.

    Args:
        order: canonical axis of each prepared axis, the last ones being the window's.
        device: kind of device that trains.
    """
    ndim = len(order)
    if ndim == 3 and device == "cpu":
        return Decided(
            (),
            "scans are brought to one orientation, so mirrored anatomy does not occur, and learning it costs time that short training on a "
            "CPU does not have; prediction is also faster by the number of mirror images",
        )
    bound = {axis: names for axis in range(ndim) if (names := _directed(labels, axis, ndim))}
    axes = tuple(a for a in range(window_axes) if order[ndim - window_axes + a] not in bound)
    if not bound:
        return Decided(axes, "no class is named by a side of the body, so mirrored images are as good as real ones")
    named = sorted({name for names in bound.values() for name in names})
    return Decided(axes, f"mirroring would swap classes that are named by a direction ({', '.join(named[:4])})")


def zoom(fingerprint: Fingerprint) -> Decided[float]:
    """The largest log zoom of augmentation: `USUAL_ZOOM`, or more where cases show one kind of object at different scales.

    Scales are compared by the median object of each case. Where objects are small and large in every case alike, zooms would add little.
    """
    lengths: dict[str, list[float]] = {}
    for case in fingerprint.cases:
        for one in case.objects:
            if one.extents:
                lengths.setdefault(one.name, []).append(one.extents[OBJECT_QUANTILES.index(0.5)])
    if not lengths or min(map(len, lengths.values())) < ENOUGH_CASES:
        return USUAL_ZOOM
    ratio = min(float(np.divide(*np.quantile(found, (0.95, 0.05), method="nearest"))) for found in lengths.values())
    largest = round(min(math.log(ratio) / 4, LARGEST_ZOOM), 2)
    if largest <= USUAL_ZOOM.value:
        return USUAL_ZOOM
    return Decided(largest, f"zooms of {largest:.0%}, because the typical object of nine cases in ten differs {ratio:.2g}-fold in length")


def colours(channels: Sequence[Channel], how: Sequence[Normalization]) -> Decided[float]:
    """How often channels are mixed: where they are colours of objects that differ in stain (`Scheme.spread`)."""
    if any(c.modality is not Modality.rgb for c in channels) or any(one.scheme is not Scheme.spread for one in how):
        return NO_COLOURS
    return Decided(0.5, "mixed channels, because stains differ, and ")


def _directed(labels: Labels, axis: int, ndim: int) -> list[str]:
    """Classes whose names hold a direction along a canonical axis."""
    directions = DIRECTIONS[axis] if ndim == 3 else (DIRECTIONS[0] | DIRECTIONS[1], DIRECTIONS[2])[axis]
    spaced = {name: CAPITALS.sub(r"\1 ", name).lower() for name in labels.names}
    return [name for name, text in spaced.items() if directions & _words(text)]


def _words(text: str) -> set[str]:
    """Words of a name in lower case. A number after a word leaves the word (`left1`), but not one or two letters (`L1` is a vertebra)."""
    tokens = set(re.findall(r"[a-z0-9]+", text))
    return tokens | {word for word in re.findall(r"[a-z]+", text) if len(word) > 2}


def window_candidates(shapes: list[Shape], spacing: tuple[float, ...], largest: int) -> Decided[tuple[Shape, ...]]:
    """Windows from the largest that makes sense down to the smallest, each shrunk along the axis that is largest relative to the data.

    The first holds the whole of most cases if that is small, or of half of them where it would be filled badly. Otherwise it is nnU-Net's:
    as large in mm along every axis, bounded by the median shape.

    Args:
        shapes: prepared shapes along the window axes.
        largest: voxels that the first window may have.
    """
    middle = tuple(round(float(v)) for v in np.median(np.asarray(shapes, dtype=np.float64), axis=0))
    most = tuple(int(np.ceil(v)) for v in np.percentile(np.asarray(shapes), WHOLE, axis=0))
    cover, share = tuple(_up(n) for n in most), WHOLE
    if len(cover) == 2 and _filled(shapes, cover) < FILLED:
        cover, share, most = tuple(_up(n) for n in middle), 50, middle
    if np.prod(cover) <= (COVER if len(cover) == 3 else COVER_2D) and np.prod(cover) <= largest:
        first = cover
        because = f"holds {share} % of the prepared cases along each axis ({by(most)}, median {by(middle)}), so they are seen whole"
        if share < WHOLE:
            because += f"; one for {WHOLE} % would be more than {1 - FILLED:.0%} padding"
    else:
        cube = np.asarray([1 / s for s in spacing])
        cube *= (largest / cube.prod()) ** (1 / len(cube))
        bound = tuple(min(_up(m), _near(c)) for m, c in zip(middle, cube, strict=True))
        # What the median cuts off along a short axis goes to the others.
        while True:
            room = [a for a in range(len(bound)) if bound[a] < _up(middle[a])]
            if not room:
                break
            axis = min(room, key=lambda a: bound[a] * spacing[a])
            grown = tuple(min(n + QUANTUM, _up(middle[axis])) if a == axis else n for a, n in enumerate(bound))
            if np.prod(grown) > largest:
                break
            bound = grown
        first = bound
        because = f"median prepared shape {by(middle)}, about as many mm along every axis as spacing {mm(spacing)} allows"
    candidates = [first]
    while (smaller := _shrink(candidates[-1], middle)) is not None:
        candidates.append(smaller)
    return Decided(tuple(candidates), because)


def _shrink(window: Shape, middle: Shape) -> Shape | None:
    """The next smaller window, or None when every axis is at its smallest."""
    smallest = tuple(min(n, 32 if len(window) == 3 else 64) for n in window)
    able = [a for a in range(len(window)) if window[a] > smallest[a]]
    if not able:
        return None
    axis = max(able, key=lambda a: (window[a] / middle[a], window[a], -a))
    step = max(QUANTUM, 2 ** ((window[axis] // 4).bit_length() - 1))  # about a fifth: every candidate costs the planner a measurement
    return tuple(max(smallest[a], n - step) if a == axis else n for a, n in enumerate(window))


def _filled(shapes: list[Shape], window: Shape) -> float:
    """Mean share of a window that lies within the case."""
    return float(np.minimum(np.asarray(shapes) / np.asarray(window), 1.0).prod(1).mean())


def _up(size: int) -> int:
    """Rounded up to the quantum, where that adds little: an axis of a few slices keeps its size."""
    return size if size < 2 * QUANTUM else -(-size // QUANTUM) * QUANTUM


def _near(size: float) -> int:
    return max(1, round(size)) if size < 2 * QUANTUM else round(size / QUANTUM) * QUANTUM


def median(values: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """The median along each axis."""
    return tuple(float(v) for v in np.median(np.asarray(values, dtype=np.float64), axis=0))


def mm(spacing: tuple[float, ...]) -> str:
    """Spacing as text."""
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm"


def by(shape: tuple[int, ...]) -> str:
    """A shape as text."""
    return " x ".join(str(n) for n in shape)
