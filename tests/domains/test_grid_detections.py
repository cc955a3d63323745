"""Objects that windows, views and networks see come out once: from a truth that is cut into perfect slots back to that truth."""

from __future__ import annotations

import dataclasses
import itertools
import mmap

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from seen import HEAD, case_of, found_in, painted, perfect_slots, quality, same_objects, scattered, seen_codes

from medseg.case import Batch
from medseg.dataset import NUMBER_BITS
from medseg.domains.grid import detections as grid_detections
from medseg.domains.grid.detections import Collector, mean_objects
from medseg.domains.grid.domain import GridDomain
from medseg.domains.grid.stitch import layout, stitch_as_nnunet, stitch_case
from medseg.geometry import Crop, Resample, Shape
from medseg.imaging import gathering
from medseg.models.base import Head, ObjectHead
from medseg.models.slots import Slots
from medseg.prediction import FoundObjects

FIRST = 1 << NUMBER_BITS


def disc(shape: Shape, *discs: tuple[float, float, float]) -> NDArray[np.int32]:
    """Objects 1, 2, ... of class 1: `(y, x, radius)`."""
    codes = np.zeros(shape, np.int32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for number, (cy, cx, radius) in enumerate(discs, 1):
        codes[((y - cy) ** 2 + (x - cx) ** 2 <= radius**2) & (codes == 0)] = FIRST | number
    return codes


def collected(shape: Shape, window: Shape, views: list[list[list[Slots]]], mask: int, slots: int, overlap: float = 0.5) -> FoundObjects:
    """Objects of a case for whose windows, in order, these slots of each view are given."""
    head = ObjectHead(HEAD, slots=slots, mask=mask, axes=len(window))
    full, starts = layout(shape, window, overlap)
    collector = Collector(head, shape, full, starts, 2**20)
    for start, said in zip(itertools.product(*starts), views, strict=True):
        collector.add(start, torch.cat([one.pack() for one in said]))
    return collector.found()


def slots_of(mask: int, *objects: tuple[float, int, tuple[float, ...], NDArray], slots: int = 8) -> Slots:
    """`(1, slots)` out of scores, classes, boxes and masks."""
    axes = len(objects[0][2]) // 2 if objects else 2
    result = Slots(
        torch.zeros(1, slots),
        torch.zeros(1, slots, dtype=torch.int64),
        torch.zeros(1, slots, 2 * axes),
        torch.zeros(1, slots, *(mask,) * axes),
    )
    for k, (score, kind, box, cells) in enumerate(objects):
        result.scores[0, k], result.classes[0, k] = score, kind
        result.boxes[0, k], result.masks[0, k] = torch.tensor(box), torch.as_tensor(cells, dtype=torch.float32)
    return result


def in_file(array) -> bool:
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


@pytest.mark.parametrize(
    ("shape", "window", "count", "radius", "mask"),
    [
        ((120, 150), (48, 64), 40, (1, 10), 48),
        ((90, 70), (32, 32), 6, (14, 30), 64),  # objects larger than a window
        ((30, 36, 40), (16, 16, 16), 25, (1, 6), 24),
        ((10, 12), (32, 32), 4, (1, 4), 32),  # smaller than the window
        ((40, 400), (40, 64), 30, (2, 9), 40),  # windows along one axis only
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_was_cut_comes_back_to_the_voxel(shape, window, count, radius, mask, seed) -> None:
    truth = scattered(shape, count, radius, seed)
    found = found_in(truth, window, mask)
    codes, scores = painted(found)
    assert codes.dtype == np.int32
    assert same_objects(codes, truth)
    assert len(found) == len(scores) == len(np.unique(truth)) - 1
    assert set(scores) == set(np.unique(codes).tolist()) - {0}
    assert all(0.5 < score <= 0.9001 for score in scores.values())


@pytest.mark.parametrize("mask", [14, 28])
def test_masks_of_few_cells_are_good_enough(mask) -> None:
    truth = scattered((256, 256), 60, (4, 14), 3)
    codes, _ = painted(found_in(truth, (96, 96), mask))
    assert quality(codes, truth) >= 0.98


def test_five_hundred_objects() -> None:
    truth = np.zeros((240, 500), np.int32)
    for number, (y, x) in enumerate(itertools.product(range(0, 240, 12), range(0, 500, 20)), 1):
        truth[y : y + 3 + number % 9, x : x + 4 + number % 16] = ((number % 2 + 1) << NUMBER_BITS) | number
    codes, scores = painted(found_in(truth, (96, 96), 16))
    assert len(scores) == 500
    assert same_objects(codes, truth)


def test_objects_that_fill_their_surroundings_and_touch_everywhere() -> None:
    """A mosaic without background: every object touches its neighbours and many touch borders."""
    y, x = np.mgrid[:96, :96]
    truth = (FIRST | (1 + y // 13 * 8 + x // 13)).astype(np.int32)
    codes, scores = painted(found_in(truth, (32, 40), 52))
    assert same_objects(codes, truth)
    assert len(scores) == 64


def test_an_empty_case_has_no_objects() -> None:
    found = found_in(np.zeros((40, 40), np.int32), (32, 32), 7)
    assert (len(found), found.boxes.shape, found.shape) == (0, (0, 4), (40, 40))
    codes, scores = painted(found)
    assert not codes.any()
    assert scores == {}


@pytest.mark.parametrize("ndim", [2, 3])
def test_one_voxel_objects_in_every_corner_and_in_the_middle(ndim) -> None:
    shape = (20, 21, 22)[:ndim]
    truth = np.zeros(shape, np.int32)
    for number, place in enumerate([*itertools.product(*((0, n - 1) for n in shape)), tuple(n // 2 for n in shape)], 1):
        truth[place] = FIRST | number
    codes, scores = painted(found_in(truth, (8,) * ndim, 3))
    assert same_objects(codes, truth)
    assert list(scores.values()) == pytest.approx([0.9] * (2**ndim + 1))


def test_one_object_that_is_the_whole_case() -> None:
    truth = np.full((50, 60), FIRST | 7, np.int32)
    codes, scores = painted(found_in(truth, (16, 16), 4))
    assert (codes == (FIRST | 1)).all()
    assert scores == {FIRST | 1: pytest.approx(0.9)}


@pytest.mark.parametrize("memory", [0, 2**10])
def test_little_memory_changes_nothing(memory, monkeypatch) -> None:
    monkeypatch.setattr(gathering, "PORTION", 500)
    monkeypatch.setattr(grid_detections, "SMALL", 300)
    truth = scattered((100, 120), 30, (2, 12), 5)
    codes, scores = painted(found_in(truth, (48, 48), 48))
    found = found_in(truth, (48, 48), 48, memory=memory)
    assert sum(in_file(mask) for mask in found.masks) >= len(found) - 10
    again, same = painted(found)
    assert np.array_equal(codes, again)
    assert scores == same


def test_two_touching_discs_stay_two_under_any_window() -> None:
    truth = disc((64, 96), (32, 30, 14), (32, 58, 14))
    for window in ((64, 96), (32, 32), (48, 40), (24, 96)):
        codes, scores = painted(found_in(truth, window, 96))
        assert same_objects(codes, truth)
        assert len(scores) == 2


def test_a_view_that_sees_two_discs_as_one_does_not_unite_them() -> None:
    """A chain: the blob agrees with each disc by half, the discs with each other not at all."""
    truth = disc((40, 80), (20, 25, 14), (20, 54, 14))
    apart = perfect_slots(truth, 4, 80)
    blob = perfect_slots(np.where(truth, FIRST | 1, 0).astype(np.int32), 4, 80, score=0.99)
    for views in itertools.permutations([apart, blob, apart, apart]):
        found = collected((40, 80), (40, 80), [list(views)], 80, 4)
        codes, scores = painted(found, threshold=0.5)
        assert same_objects(codes, truth)
        assert sorted(scores.values()) == pytest.approx(sorted(found.scores[found.scores >= 0.5].tolist()))


def test_a_row_of_touching_discs_does_not_become_one_object() -> None:
    """Windows cut a chain of ten discs; every second view sees pairs of them as one."""
    truth = disc((30, 220), *((15, 15 + 21 * k, 10) for k in range(10)))
    pairs = np.where(truth, FIRST | (((truth & 0xFFFF) + 1) // 2), 0).astype(np.int32)
    full, starts = layout(truth.shape, (30, 64), 0.5)
    said = []
    for start in itertools.product(*starts):
        part = tuple(slice(a, a + n) for a, n in zip(start, full, strict=True))
        said.append([perfect_slots(np.ascontiguousarray(codes[part]), 8, 64) for codes in (truth, pairs, truth)])
    codes, scores = painted(collected(truth.shape, (30, 64), said, 64, 8), threshold=0.5)
    assert same_objects(codes, truth)
    assert len(scores) == 10


def test_parts_that_only_one_later_window_shows_to_be_one_object_are_united() -> None:
    """Ends of one object at a lower and at a right border of earlier windows: they never met before a window saw all of it."""
    truth = disc((200, 300), (99.3, 159.2, 9.6))
    for radius in (7.5, 9.6, 12.2):
        truth = disc((200, 300), (99.3, 159.2, radius))
        found = found_in(truth, (64, 64), 64)
        assert len(found) == 1
        assert found.scores[0] == pytest.approx(0.9)


def test_of_two_classes_for_one_object_the_better_score_wins() -> None:
    ball = np.ones((4, 4))
    view = slots_of(4, (0.6, 1, (2, 2, 8, 9), ball), (0.8, 2, (2, 2, 8, 9), ball), (0.7, 1, (2, 3, 8, 9), ball))
    found = collected((20, 20), (20, 20), [[view]], 4, 8)
    assert found.classes.tolist() == [2]
    assert found.scores == pytest.approx([0.8])
    assert found.boxes.tolist() == [[2, 2, 8, 9]]


def test_views_vote_for_the_class() -> None:
    ball = np.ones((4, 4))
    views = [slots_of(4, (score, kind, (2, 2, 8, 9), ball)) for score, kind in ((0.9, 1), (0.5, 2), (0.6, 2))]
    found = collected((20, 20), (20, 20), [views], 4, 8)
    assert found.classes.tolist() == [2]
    assert found.scores == pytest.approx([2 / 3])


def test_what_one_of_four_views_sees_is_a_quarter_as_sure() -> None:
    ball = np.ones((4, 4))
    both = slots_of(4, (0.8, 1, (2, 2, 8, 9), ball), (0.8, 1, (12, 12, 18, 18), ball))
    one = slots_of(4, (0.8, 1, (2, 2, 8, 9), ball))
    found = collected((20, 20), (20, 20), [[one, both, one, one]], 4, 8)
    assert sorted(zip(found.boxes[:, 0].tolist(), found.scores.tolist(), strict=True)) == [
        (2, pytest.approx(0.8)),
        (12, pytest.approx(0.2)),
    ]
    codes, scores = painted(found, threshold=0.5)
    assert list(scores.values()) == pytest.approx([0.8])
    assert len(np.unique(codes)) == 2


def test_what_one_of_the_windows_that_could_see_it_sees_is_less_sure() -> None:
    """Three windows along an axis: the middle object lies whole in two of them."""
    ball, nothing = np.ones((4, 4)), slots_of(4)
    seen = slots_of(4, (0.8, 1, (0, 14, 8, 18), ball))
    found = collected((8, 40), (8, 20), [[seen], [nothing], [nothing]], 4, 8)
    assert found.boxes.tolist() == [[0, 14, 8, 18]]
    assert found.scores == pytest.approx([0.4])


def test_merged_masks_are_means_weighted_by_score_and_place() -> None:
    masks = [np.full((4, 4), value) for value in (1.0, 0.6)]
    views = [slots_of(4, (score, 1, (2, 2, 6, 6), mask)) for score, mask in zip((0.8, 0.4), masks, strict=True)]
    found = collected((8, 8), (8, 8), [views], 4, 8)
    assert np.unique(found.masks[0]).tolist() == [round(255 * (0.8 * 1.0 + 0.4 * 0.6) / 1.2)]


def test_boxes_beyond_the_case_are_clipped_and_empty_ones_dropped() -> None:
    """The case is centred in the window: its first voxel is the window's fifth."""
    ball = np.ones((4, 4))
    view = slots_of(
        4,
        (0.9, 1, (0, 0, 8, 8), ball),
        (0.9, 1, (0, 0, 4, 16), ball),  # padding alone
        (0.9, 1, (9, 9, 30, 30), ball),
        (0.9, 1, (8, 12, 7, 13), ball),  # ends before it begins
        (0.9, 1, (6, 6, 8, 8), np.zeros((4, 4))),
        (0.0, 0, (6, 6, 8, 8), ball),
        (0.04, 1, (6, 6, 8, 8), ball),  # below the floor
    )
    found = collected((8, 8), (16, 16), [[view]], 4, 8)
    assert sorted(found.boxes.tolist()) == [[0, 0, 4, 4], [5, 5, 8, 8]]


def test_slots_that_do_not_fit_the_head_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"'objects' has at most 8 slots for each view of a window, got \(1, 9, 22\)"):
        collected((20, 20), (20, 20), [[slots_of(4, slots=9)]], 4, 8)


def test_slices_become_objects_of_the_volume() -> None:
    truth = np.zeros((24, 60, 64), np.int32)
    z, y, x = np.mgrid[:24, :60, :64]
    for number, (cz, cy, cx, radius) in enumerate(
        [(8, 14, 14, 7.3), (8, 14, 29, 7.3), (14, 40, 30, 9.5), (4, 45, 55, 3.2), (20, 45, 55, 3.2)], 1
    ):
        truth[((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= radius**2) & (truth == 0)] = ((number % 2 + 1) << NUMBER_BITS) | number
    truth[11, 2, 60] = FIRST | 9  # one voxel in one slice
    found = found_in(truth, (32, 32), 32)
    codes, scores = painted(found)
    assert same_objects(codes, truth)
    assert list(scores.values()) == pytest.approx([0.9] * 6, abs=0.02)
    assert found.shape == truth.shape


def test_slices_of_objects_side_by_side_are_not_mixed_up() -> None:
    """An object that ends beside one that begins: the one that begins lies over the other's last slices, which go on elsewhere."""
    truth = np.zeros((8, 20, 20), np.int32)
    truth[:5, 2:12, 2:12] = FIRST | 1
    truth[4:, 6:16, 11:19] = np.where(truth[4:, 6:16, 11:19] == 0, FIRST | 2, truth[4:, 6:16, 11:19])
    assert same_objects(painted(found_in(truth, (20, 20), 20))[0], truth)


@pytest.mark.parametrize("axis", [0, 2])
def test_objects_and_maps_of_one_network(axis) -> None:
    """A network with both kinds of heads, as panoptic ones have."""
    truth = scattered((20, 70, 60)[-2:] if axis == 0 else (20, 30, 30), 12, (2, 7), 7)
    axes = truth.ndim
    heads = (Head("classes", 1), ObjectHead(HEAD, slots=40, mask=24, axes=axes))
    window = (32, 32) if axes == 2 else (16, 16, 16)

    def run(windows: Batch) -> dict[str, torch.Tensor]:
        slots = torch.cat([perfect_slots(seen_codes(image), 40, 24).pack() for image in windows.image])[:, None]
        return {HEAD: slots, "classes": windows.image[:, :1]}

    for stitch in (stitch_case, stitch_as_nnunet):
        for order in (heads, heads[::-1]):
            maps = stitch(case_of(truth), run, order, window, 0.5, 3, 2**30)
            codes, _ = painted(maps[HEAD])
            assert same_objects(codes, truth)
            values = np.concatenate([values for _, values in maps["classes"].slabs()], 1)[0]
            assert np.array_equal(np.rint(values), truth >> NUMBER_BITS)


def test_the_mean_of_networks_is_one_object_each() -> None:
    truth = scattered((80, 90), 20, (2, 9), 11)
    parts = [found_in(truth, (48, 48), 48) for _ in range(3)]
    together = mean_objects(parts, 1e9)
    codes, scores = painted(together)
    assert same_objects(codes, truth)
    assert list(scores.values()) == pytest.approx([0.9] * len(together), abs=0.05)
    empty = found_in(np.zeros_like(truth), (48, 48), 48)
    lonely = mean_objects([parts[0], empty, empty], 1e9)
    assert sorted(lonely.scores.tolist()) == pytest.approx(sorted((parts[0].scores / 3).tolist()))
    assert len(mean_objects([empty, empty], 1e9)) == 0


def test_the_mean_of_networks_holds_neighbours_at_most(monkeypatch) -> None:
    """Objects that lie apart are merged one after the other, and what is finished goes into files."""
    truth = disc((40, 400), *((20, 20 + 40 * k, 12) for k in range(8)), (20, 345, 12), (20, 365, 12))
    seen = found_in(truth, (40, 40), 48)
    parts = [seen, dataclasses.replace(seen, scores=seen.scores / 2)]
    at_once = []
    plain = grid_detections.detections

    def counted(boxes, *rest):
        at_once.append(len(boxes))
        return plain(boxes, *rest)

    monkeypatch.setattr(grid_detections, "detections", counted)
    monkeypatch.setattr(gathering, "PORTION", 0)
    found = mean_objects(parts, 0)
    assert at_once == [1] * 16 + [2] * 2
    assert all(in_file(mask) for mask in found.masks)
    assert len(found) == 10
    codes, scores = painted(found)
    assert same_objects(codes, truth)
    assert list(scores.values()) == pytest.approx((0.75 * seen.scores[np.lexsort(seen.boxes.T[::-1])]).tolist(), abs=0.01)


def resampled(found: FoundObjects, plans, shape: Shape, thick: int | None = None) -> FoundObjects:
    """Objects of a case that was resampled from `shape` before it was cropped to nothing less."""
    plan = next(plan for plan in plans if plan.name == "3d")
    trail = (Crop(start=(0,) * 3, shape=shape, source=shape), Resample(source=shape, shape=found.shape, thick=thick))
    (native,) = GridDomain(plan).native({HEAD: found}, trail, (ObjectHead(HEAD, slots=1, mask=1, axes=3),)).values()
    assert isinstance(native, FoundObjects)
    return native


def test_objects_go_back_to_native_voxels(plans) -> None:
    """Every voxel of the prepared grid was two, three and one: labels that were blocks are those blocks again."""
    truth = scattered((20, 22, 24), 14, (2, 6), 13)
    native = resampled(found_in(truth, (16, 16, 16), 24), plans, (40, 66, 24))
    assert native.shape == (40, 66, 24)
    codes, scores = painted(native)
    blocks = truth.repeat(2, 0).repeat(3, 1)
    assert len(scores) == len(np.unique(truth)) - 1
    assert quality(codes, blocks) >= 0.93  # corners of blocks are rounded, as maps that go back linearly round them
    assert np.array_equal(np.unique(codes >> NUMBER_BITS), np.unique(truth >> NUMBER_BITS))


def test_slices_that_were_resampled_apart_are_repeated(plans) -> None:
    truth = scattered((6, 30, 30), 8, (2, 6), 2)
    native = resampled(found_in(truth, (6, 30, 30), 30), plans, (18, 30, 30), thick=0)
    assert same_objects(painted(native)[0], truth.repeat(3, 0))


def test_a_coarser_native_grid(plans) -> None:
    """Objects of even blocks survive being halved; what is smaller than a native voxel is not lost."""
    truth = np.zeros((16, 16, 16), np.int32)
    truth[2:8, 4:10, 2:6] = FIRST | 1
    truth[10:14, 2:4, 8:14] = FIRST | 2
    truth[12, 12, 12] = FIRST | 3
    native = resampled(found_in(truth, (16, 16, 16), 24), plans, (8, 8, 8))
    codes, scores = painted(native)
    assert len(scores) == 3
    expected = np.where(truth[::2, ::2, ::2] & 0xFFFF, truth[::2, ::2, ::2], 0)
    assert same_objects(codes, expected)


def test_the_domain_counts_masks_not_slots(plans) -> None:
    plan = next(plan for plan in plans if plan.name == "3d")
    domain = GridDomain(plan)
    assert domain.footprint((10, 20, 30), ObjectHead(HEAD, slots=100, mask=14, axes=3)) == 6000
    assert domain.footprint((10, 20, 30), Head("maps", 2)) == 48000


def test_the_mean_of_a_domain_knows_objects(plans) -> None:
    truth = scattered((20, 22, 24), 8, (2, 6), 17)
    found = found_in(truth, (16, 16, 16), 24)
    (mean,) = GridDomain(plans[0]).mean([{HEAD: found}, {HEAD: found}], 1e9).values()
    assert np.array_equal(painted(mean)[0], painted(found)[0])


def test_full_windows_are_warned_of_once(caplog) -> None:
    """Not where the faintest object of a full one is none, probably."""
    cells = np.ones((4, 4))
    for faintest, said in ((0.6, 1), (0.4, 0)):
        caplog.clear()
        full = slots_of(4, (0.9, 1, (1, 1, 5, 5), cells), (faintest, 1, (7, 7, 11, 11), cells), slots=2)
        collected((12, 24), (12, 12), [[full]] * 3, 4, 2)
        assert [record.getMessage().startswith("all 2 places for objects of a window are taken") for record in caplog.records] == [
            True
        ] * said
