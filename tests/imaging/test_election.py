"""The strongest channel of a resampled map, against making the whole map and looking."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medseg.geometry import Shape
from medseg.imaging import election
from medseg.imaging.election import strongest_slabs
from medseg.imaging.resample import resample_slabs

Map = NDArray[np.float32]


def slabs(values: Map, rows: int) -> Iterator[tuple[slice, Map]]:
    for start in range(0, values.shape[1], rows):
        yield slice(start, min(start + rows, values.shape[1])), values[:, start : start + rows]


def made(channels: int, shape: Shape, smooth: bool) -> Map:
    torch.manual_seed(0)
    noise = torch.randn(channels, *shape)
    if not smooth:
        return noise.numpy()
    coarse = torch.randn(1, channels, *(max(2, n // 8) for n in shape))
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return (8 * torch.nn.functional.interpolate(coarse, size=shape, mode=mode)[0] + 0.3 * noise).numpy()


def whole(values: Map, shape: Shape, apart: int | None, half: bool) -> Map:
    """The resampled map, and rounded if asked."""
    result = np.concatenate([part for _, part in resample_slabs(slabs(values, 3), values.shape[1:], shape, apart)], axis=1)
    return result.astype(np.float16).astype(np.float32) if half else result


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(
    ("channels", "source", "shape", "apart"),
    [
        (5, (9, 20, 17), (17, 31, 30), None),
        (7, (9, 20, 17), (30, 75, 70), 0),  # several tiles along two axes, slices taken whole
        (3, (40, 50), (75, 33), None),  # an image; one axis grows, one shrinks
        (6, (12, 13, 14), (3, 30, 5), None),  # shrinks by more than neighbours
        (1, (5, 5, 5), (9, 9, 9), None),
        (300, (3, 9, 9), (7, 9, 20), None),  # more channels than a byte counts, and an axis that stays
        (4, (1, 9, 9), (5, 9, 12), None),
    ],
)
def test_equal_to_the_whole_map(
    monkeypatch: pytest.MonkeyPatch, channels: int, source: Shape, shape: Shape, apart: int | None, smooth: bool, half: bool
) -> None:
    values = made(channels, source, smooth)
    expected = whole(values, shape, apart, half)
    best = np.sort(expected, axis=0)[-2:]
    close = (best[-1] - best[0] < 1e-5) if channels > 1 else np.zeros(shape, bool)  # the last bit may decide otherwise
    assert half or close.mean() < 1e-3
    for rows, band in ((1, 1), (2, 8)):
        monkeypatch.setattr(election, "ROWS", band)
        parts = list(strongest_slabs(slabs(values, rows), source, shape, apart, half))
        assert [part.start for part, _ in parts] == [0, *(part.stop for part, _ in parts[:-1])]
        assert parts[-1][0].stop == shape[0]
        found = np.concatenate([one for _, one in parts])
        assert np.array_equal(found[~close], expected.argmax(0)[~close])
        if half:  # equal 16-bit values are ties, and of these the first channel wins
            assert (found != expected.argmax(0)).mean() < 1e-3


def test_of_equal_channels_the_first_wins() -> None:
    values = np.zeros((3, 4, 4), np.float32)
    values[1:, 2:] = 1
    (_, found), *rest = strongest_slabs(slabs(values, 4), (4, 4), (8, 8))
    assert not rest
    assert np.array_equal(found, np.repeat([[0] * 8, [1] * 8], (3, 5), axis=0))


def test_rounding_makes_ties_that_the_first_wins() -> None:
    """2048 and 2049 are one number in 16 bits, so a channel that is lower everywhere may win."""
    values = np.stack([np.full((4, 4), 2048, np.float32), np.full((4, 4), 2048.9, np.float32)])
    assert {int(v) for _, part in strongest_slabs(slabs(values, 4), (4, 4), (6, 6)) for v in part.flat} == {1}
    assert {int(v) for _, part in strongest_slabs(slabs(values, 4), (4, 4), (6, 6), half=True) for v in part.flat} == {0}


def test_a_class_may_win_between_voxels_where_it_wins_nowhere() -> None:
    """Second everywhere, first in between: pruning must not lose it."""
    values = np.array([[[0, 10, 0, 10]], [[10, 0, 10, 0]], [[9, 9, 9, 9]]], np.float32)
    (_, found), *_ = strongest_slabs(slabs(values, 1), (1, 4), (1, 12))
    assert set(found.ravel().tolist()) == {0, 1, 2}
    assert np.array_equal(found, whole(values, (1, 12), None, False).argmax(0))


def test_channels_that_cannot_win_are_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    values = made(40, (6, 40, 40), smooth=False)
    values[3] += 100
    seen: list[int] = []
    first = election._first
    monkeypatch.setattr(election, "_first", lambda values, half=False: (seen.append(len(values)), first(values, half))[1])
    assert {int(v) for _, part in strongest_slabs(slabs(values, 2), (6, 40, 40), (11, 75, 75)) for v in np.unique(part)} == {3}
    assert not seen
    values[3, :, :20, :20] -= 98
    list(strongest_slabs(slabs(values, 2), (6, 40, 40), (11, 75, 75)))
    assert seen
    assert max(seen) <= 40
