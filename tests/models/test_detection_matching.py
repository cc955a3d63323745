from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import levels, painted

from medseg.models.detection import IGNORED, Level, Truth
from medseg.models.detection.anchors import anchor_boxes
from medseg.models.detection.boxes import iou
from medseg.models.detection.matching import match_anchors, match_regions
from medseg.models.detection.sampling import balanced


def by_definition(truth: Truth, plan: tuple[Level, ...]) -> Tensor:
    """ATSS as published, from tables of all anchors by all objects, with the best candidate of each object, or the best free one."""
    axes = truth.boxes.shape[-1] // 2
    anchors = anchor_boxes(plan, truth.window)
    starts = [0]
    for level in plan:
        starts.append(starts[-1] + len(anchor_boxes([level], truth.window)))
    centres = (anchors[:, :axes] + anchors[:, axes:]) / 2
    best = torch.zeros(len(anchors))
    match = torch.zeros(len(anchors), dtype=torch.int64)
    alike = torch.zeros(len(anchors), dtype=torch.bool)
    wants: dict[int, list[tuple[float, float, int]]] = {}
    for j, (box, kind) in enumerate(zip(truth.boxes[0], truth.classes[0], strict=True)):
        if kind == 0:
            continue
        middle = (box[:axes] + box[axes:]) / 2
        chosen = []
        for start, end in itertools.pairwise(starts):
            near = torch.ones(end - start, dtype=torch.bool)  # a square of cells, not a disc
            for axis in range(axes):
                places = centres[start:end, axis]
                lines = places.unique()
                near &= torch.isin(places, lines[(lines - middle[axis]).abs().argsort()[:3]])
            chosen.append(start + near.nonzero()[:, 0])
        index = torch.cat(chosen)
        overlap = iou(box[None], anchors[index])[0]
        limit = overlap.mean() + overlap.std(correction=0)
        inside = ((centres[index] > box[:axes]) & (centres[index] < box[axes:])).all(1)
        distance = ((centres[index] - middle) / (anchors[index][:, axes:] - anchors[index][:, :axes])).square().sum(1)
        worth = overlap - 0.01 * distance
        top = int(worth.argmax())
        wants[j + 1] = sorted(zip(worth.tolist(), overlap.tolist(), index.tolist(), strict=True), reverse=True)
        for k, (i, value, good) in enumerate(zip(index.tolist(), overlap, inside & (overlap >= limit), strict=True)):
            is_best = k == top
            rank = 1 + value + is_best
            alike[i] |= value >= 0.5
            if (good or is_best) and rank > best[i]:
                best[i], match[i] = rank, j + 1
    for _ in range(2):
        asked: dict[int, tuple[float, int]] = {}
        for j in wants.keys() - set(match.tolist()):
            for _, value, i in wants[j]:
                if match[i] == 0:
                    asked[i] = max(asked.get(i, (0.0, 0)), (value, j))
                    break
        for i, (_, j) in asked.items():
            match[i] = j
    return torch.where((match == 0) & alike, IGNORED, match)


@given(seed=st.integers(0, 10**6), axes=st.sampled_from([2, 3]), flat=st.booleans())
@settings(max_examples=15, deadline=None)
def test_anchors_are_matched_as_published(seed: int, axes: int, flat: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    lower = torch.rand(1, 4, axes, generator=generator) * 20  # no ties: corners are no whole numbers
    boxes = torch.cat([lower, lower + 1 + torch.rand(1, 4, axes, generator=generator) * 11], -1)
    window = (32,) * axes
    truth = Truth(
        boxes, torch.tensor([[1, 2, 0, 1]]), torch.tensor([[1, 2, 0, 4]], dtype=torch.int32), torch.zeros(1, *window, dtype=torch.int32)
    )
    plan = levels(axes)
    if flat:  # few thick slices, and two sizes of anchors for each cell
        sides = [(3.0, 6.0, 6.0)[-axes:], (4.0, 9.0, 5.0)[-axes:]]
        plan = tuple(Level((1, n, n)[-axes:], tuple(tuple(n * side for side in size) for size in sides)) for n in (2, 4))
    assert torch.equal(match_anchors(truth, plan)[0], by_definition(truth, plan))


def test_every_object_has_an_anchor() -> None:
    """One voxel, at a corner of a cell; a bright speck beside a large object; one as large as the window."""
    for axes in (2, 3):
        window = (32,) * axes
        for balls in ([((5.5,) * axes, 0.6, 1)], [((16.0,) * axes, 30.0, 1)], [((0.5,) * axes, 0.6, 1), ((10.0,) * axes, 6.0, 2)]):
            _, truth = painted(window, [balls], 3)
            match = match_anchors(truth, levels(axes))
            assert set(match[match > 0].tolist()) == set(range(1, len(balls) + 1))


def test_objects_of_one_cell_have_an_anchor_each() -> None:
    """Specks one beside the other in one cell of stride 4, and 64 at a distance of 3, of which 36 have a cell of their own."""
    plan = (Level((4, 4), ((16.0, 16.0),)), Level((8, 8), ((32.0, 32.0),)))
    for places, size, least in (
        ([(32, 33), (34, 33)], 1, 2),
        ([(32, 32), (32, 34), (34, 32)], 1, 3),
        ([(8 + 3 * i, 8 + 3 * j) for i in range(8) for j in range(8)], 2, 61),
    ):
        values = torch.zeros(1, 64, 64, dtype=torch.int32)
        for k, (y, x) in enumerate(places, 1):
            values[0, y : y + size, x : x + size] = k
        boxes = torch.tensor([[(y, x, y + size, x + size) for y, x in places]], dtype=torch.float32)
        count = len(places)
        truth = Truth(boxes, torch.ones(1, count, dtype=torch.int64), torch.arange(1, count + 1, dtype=torch.int32)[None], values)
        match = match_anchors(truth, plan)
        assert len(match[match > 0].unique()) >= least


def test_a_speck_has_one_anchor() -> None:
    """Nine anchors, or 27, hold it within them."""
    for axes in (2, 3):
        _, truth = painted((32,) * axes, [[((15.5,) * axes, 0.6, 1)]], 1)
        match = match_anchors(truth, levels(axes))
        assert (match > 0).sum() == 1
        anchor = anchor_boxes(levels(axes), truth.window)[int(match[0].argmax())]
        assert ((anchor[:axes] + anchor[axes:]) / 2 - 15.5).abs().max() <= 1


def test_five_hundred_objects_have_anchors() -> None:
    balls = [((5.0 + 11 * i, 5.0 + 11 * j), 4.0, 1) for i in range(23) for j in range(22)]
    _, truth = painted((256, 256), [balls], 512)
    match = match_anchors(truth, levels(2))
    assert set(match[match > 0].tolist()) == set(range(1, 507))
    assert (match > 0).sum() < 8 * 506


def test_nothing_is_matched_where_there_is_nothing() -> None:
    _, truth = painted((16, 16), [[]], 2)
    assert (match_anchors(truth, levels(2)) == 0).all()
    boxes = torch.tensor([[[0.0, 0, 4, 4], [1, 1, 3, 3]]])
    assert match_regions(boxes, torch.tensor([[True, False]]), truth, 0.5).tolist() == [[0, IGNORED]]


def test_what_is_not_annotated_counts_nowhere() -> None:
    _, truth = painted((16, 16), [[((4.0, 4.0), 3.0, 1)]], 2)
    truth.map[:, 8:] = IGNORED
    match = match_anchors(truth, levels(2))
    finest = match[0, :64].view(8, 8)
    assert (finest[4:] == IGNORED).all()
    assert (finest[:4] >= 0).any()
    boxes = torch.tensor([[[10.0, 10, 12, 12], [0, 10, 4, 14], [1, 1, 7, 7]]])
    assert match_regions(boxes, torch.ones(1, 3, dtype=torch.bool), truth, 0.5).tolist() == [[IGNORED, 0, 1]]


def test_regions_are_matched_with_what_they_overlap_most() -> None:
    truth = Truth(
        torch.tensor([[[0.0, 0, 4, 4], [2, 0, 6, 4], [0, 0, 4, 4]]]),
        torch.tensor([[1, 2, 0]]),
        torch.tensor([[1, 2, 0]], dtype=torch.int32),
        torch.zeros(1, 8, 8, dtype=torch.int32),
    )
    boxes = torch.tensor([[[0.0, 0, 4, 4], [2, 0, 6, 3], [4, 0, 8, 4], [1.9, 0, 5.9, 4]]])
    assert match_regions(boxes, torch.ones(1, 4, dtype=torch.bool), truth, 0.5).tolist() == [[1, 2, 0, 2]]


def test_samples_are_balanced() -> None:
    match = torch.tensor([[1, 2, 3, 4, 0, 0, 0, 0, 0, -1], [1, 0, 0, -1, -1, -1, -1, -1, -1, -1]])
    torch.manual_seed(0)
    seen = set()
    for _ in range(30):
        index, counts = balanced(match, 6, 2)
        assert index.shape == counts.shape == (2, 6)
        found = match.gather(1, index)
        assert (found[0, :2] > 0).all()
        assert (found[0, 2:] == 0).all()
        assert counts[0].all()
        assert len(set(index[0].tolist())) == 6
        assert (counts[1].tolist(), found[1, :3].tolist()) == ([True] * 3 + [False] * 3, [1, 0, 0])
        seen |= set(index[0, :2].tolist())
    assert seen == {0, 1, 2, 3}
    torch.manual_seed(3)
    first = balanced(match, 6, 2)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(first, balanced(match, 6, 2), strict=True))
    assert balanced(match, 99, 50)[0].shape == (2, 10)


def test_outlines_are_the_shares_of_cells_that_objects_fill() -> None:
    values = torch.zeros(1, 6, 6, dtype=torch.int32)
    values[0, :, :2], values[0, 0, 0], values[0, 3:, 3:] = 7, 9, IGNORED
    values[0, 3, 3] = 7
    truth = Truth(torch.tensor([[[0.0, 0, 6, 6]]]), torch.tensor([[1]]), torch.tensor([[7]], dtype=torch.int32), values)
    found = truth.outlines(truth.boxes, torch.tensor([[1]]), 2).view(2, 2)
    assert found.flatten().tolist() == pytest.approx([5 / 9, 0, 6 / 9, 1])  # of the last cell nothing but one voxel counts


def test_outlines_are_read_at_the_nearest_voxel() -> None:
    values = torch.zeros(1, 6, 8, dtype=torch.int32)
    values[0, 1:5, 2:6] = 7
    values[0, 1:3, 4:6] = 9
    values[0, 4, 2] = IGNORED
    truth = Truth(torch.tensor([[[1.0, 2, 5, 6], [1, 4, 3, 6]]]), torch.tensor([[1, 1]]), torch.tensor([[7, 9]], dtype=torch.int32), values)
    boxes = torch.tensor([[[1.0, 2, 5, 6], [1, 4, 3, 6], [-2, 2, 4, 4]]])
    found = truth.outlines(boxes, torch.tensor([[1, 2, 1]]), 4).view(3, 4, 4)
    assert found[0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [IGNORED, 1, 1, 1]]
    assert (found[1] == 1).all()
    assert found[2].tolist() == [[0] * 4, [1] * 4, [1] * 4, [1] * 4]  # of what lies within the window
    assert (truth.outlines(boxes, torch.tensor([[0, -1, 0]]), 4) == IGNORED).all()


@pytest.mark.parametrize("axes", [2, 3])
def test_the_classes_of_cells_are_those_of_their_centres(axes: int) -> None:
    balls = [((5.0,) * axes, 4.0, 2), ((11.0,) * axes, 3.0, 1)]
    _, truth = painted((16,) * axes, [balls, []], 5)
    truth.map[1, 0] = IGNORED
    found = truth.semantic((8,) * axes)
    expected = truth.map[(slice(None), *(slice(1, None, 2),) * axes)]
    assert torch.equal(found, torch.where(expected == IGNORED, IGNORED, expected >> 16).long())
