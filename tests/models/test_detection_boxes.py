from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from medseg.models.detection.anchors import Level, anchor_boxes, level_of
from medseg.models.detection.boxes import cell_centres, clip, decode, encode, grown, iou, volume, whole
from medseg.models.detection.nms import fast, greedy
from medseg.models.detection.roi_align import Table, roi_align


def some_boxes(count: int, axes: int, generator: torch.Generator, extent: float = 20.0, windows: int = 1) -> Tensor:
    lower = torch.rand(windows, count, axes, generator=generator) * extent
    return torch.cat([lower, lower + 0.5 + torch.rand(windows, count, axes, generator=generator) * extent / 2], -1)


def test_overlap_of_boxes() -> None:
    first = torch.tensor([[0.0, 0, 4, 4], [0, 0, 0, 0], [2, 2, 3, 3]])
    second = torch.tensor([[2.0, 2, 6, 6], [10, 10, 11, 11]])
    assert volume(first).tolist() == [16, 0, 1]
    assert torch.allclose(iou(first, second), torch.tensor([[4 / 28, 0], [0, 0], [1 / 16, 0]]))
    assert iou(torch.zeros(1, 6), torch.zeros(1, 6)).item() == 0


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_overlap_counts_voxels(axes: int) -> None:
    generator = torch.Generator().manual_seed(axes)
    lower = torch.randint(0, 5, (6, axes), generator=generator)
    boxes = torch.cat([lower, lower + torch.randint(1, 6, (6, axes), generator=generator)], 1)
    masks = torch.zeros(6, *(10,) * axes, dtype=torch.bool)
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        mask[tuple(slice(a, b) for a, b in zip(box[:axes], box[axes:], strict=True))] = True
    flat = masks.flatten(1)
    shared, union = (how(flat[:, None], flat[None]).sum(-1) for how in (torch.logical_and, torch.logical_or))
    assert torch.allclose(iou(boxes.float(), boxes.float()), shared / union)


@pytest.mark.parametrize("axes", [2, 3])
def test_deltas_are_undone(axes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, anchors = (some_boxes(50, axes, generator) for _ in range(2))
    assert torch.allclose(decode(encode(boxes, anchors), anchors), boxes, atol=1e-4)
    assert torch.allclose(decode(torch.zeros_like(anchors), anchors), anchors, atol=1e-5)
    huge = decode(torch.full_like(anchors, 1e4), anchors)
    assert torch.isfinite(huge).all()
    assert (huge[..., axes:] - huge[..., :axes] <= 63 * (anchors[..., axes:] - anchors[..., :axes])).all()


def test_boxes_within_a_window() -> None:
    boxes = torch.tensor([[-3.0, 2, 4, 99], [-5, -5, -1, -1], [7, 7, 8, 8]])
    inside = clip(boxes, (8, 10))
    assert inside.tolist() == [[0, 2, 4, 10], [0, 0, 0, 0], [7, 7, 8, 8]]
    assert whole(inside).tolist() == [True, False, True]
    assert grown(torch.tensor([2.0, 2, 4, 12]), 0.1).tolist() == pytest.approx([1.8, 1, 4.2, 13])
    assert torch.allclose(cell_centres(torch.tensor([2.0, 0, 4, 8]), 2), torch.tensor([[2.5, 3.5], [2, 6]]))


def test_anchors_lie_about_the_centres_of_cells() -> None:
    levels = (Level((1, 2), ((2.0, 4.0), (4.0, 2.0))), Level((2, 4), ((4.0, 8.0), (8.0, 4.0))))
    anchors = anchor_boxes(levels, (2, 4))
    assert anchors.shape == (4 * 2 + 1 * 2, 4)
    assert anchors[0].tolist() == [0.5 - 1, 1 - 2, 0.5 + 1, 1 + 2]
    assert anchors[1].tolist() == [0.5 - 2, 1 - 1, 0.5 + 2, 1 + 1]
    assert anchors[2].tolist() == [-0.5, 1, 1.5, 5]  # the next cell along the last axis
    assert anchors[-1].tolist() == [1 - 4, 2 - 2, 1 + 4, 2 + 2]


def test_regions_are_read_where_cells_are_as_large_as_those_of_their_grid() -> None:
    levels = tuple(Level((s,) * 3, ((4.0 * s,) * 3,)) for s in (2, 4, 8))
    sizes = [1.0, 8.0, 11.0, 12.0, 16.0, 22.0, 23.0, 200.0]
    boxes = torch.tensor([[0.0, 0, 0, s, s, s] for s in sizes])
    assert level_of(boxes, levels, 4).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert level_of(2 * boxes, levels, 8).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert level_of(torch.zeros(1, 6), levels, 4).tolist() == [0]


def by_definition(maps: list[Tensor], strides: list[tuple[int, ...]], boxes: Tensor, levels: Tensor, cells: int) -> Tensor:
    """Point by point, corner by corner."""
    axes = maps[0].ndim - 2
    result = torch.zeros(*boxes.shape[:2], maps[0].shape[1], *(cells,) * axes, dtype=maps[0].dtype)
    for n, r in itertools.product(*map(range, boxes.shape[:2])):
        level = int(levels[n, r])
        spatial = maps[level].shape[2:]
        for cell in itertools.product(range(cells), repeat=axes):
            place = []
            for axis, index in enumerate(cell):
                low, high = float(boxes[n, r, axis]), float(boxes[n, r, axes + axis])
                at = (low + (index + 0.5) / cells * (high - low)) / strides[level][axis] - 0.5
                place.append(min(max(at, 0.0), spatial[axis] - 1.0))
            for corner in itertools.product((0, 1), repeat=axes):
                index = [min(int(p) + c, s - 1) for p, c, s in zip(place, corner, spatial, strict=True)]
                weight = 1.0
                for p, c in zip(place, corner, strict=True):
                    weight *= p - int(p) if c else 1 - (p - int(p))
                result[(n, r, slice(None), *cell)] += weight * maps[level][(n, slice(None), *index)]
    return result.flatten(0, 1)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_regions_are_aligned_as_defined(axes: int) -> None:
    generator = torch.Generator().manual_seed(axes)
    shapes, strides = [(8, 6, 4)[:axes], (4, 3, 4)[:axes]], [(2, 2, 1)[:axes], (4, 4, 1)[:axes]]
    maps = [torch.randn(2, 3, *shape, generator=generator) for shape in shapes]
    boxes = some_boxes(5, axes, generator, extent=12.0, windows=2) - 2  # some leave the window
    levels = torch.randint(0, 2, (2, 5), generator=generator)
    found = roi_align(Table.of(maps, strides), boxes, levels, 4)
    assert found.shape == (10, 3, *(4,) * axes)
    assert torch.allclose(found, by_definition(maps, strides, boxes, levels, 4), atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(roi_align(Table.of(maps, strides), boxes, levels, 4), found)


def test_a_linear_map_is_read_exactly() -> None:
    """A box with as many cells as voxels gives back the voxels, and half a voxel further what lies between them."""
    image = torch.arange(48.0).view(1, 1, 6, 8)
    table, level = Table.of([image], [(1, 1)]), torch.zeros(1, 1, dtype=torch.int64)
    assert torch.equal(roi_align(table, torch.tensor([[[1.0, 2, 5, 6]]]), level, 4)[0, 0], image[0, 0, 1:5, 2:6])
    between = roi_align(table, torch.tensor([[[1.5, 2, 5.5, 6]]]), level, 4)[0, 0]
    assert torch.equal(between, (image[0, 0, 1:5, 2:6] + image[0, 0, 2:6, 2:6]) / 2)


@pytest.mark.parametrize("axes", [2, 3])
def test_gradients_reach_the_maps(axes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 2, *(n,) * axes, generator=generator, dtype=torch.float64, requires_grad=True) for n in (4, 2)]
    boxes = some_boxes(3, axes, generator, extent=6.0, windows=2).double()
    levels = torch.tensor([[0, 1, 0], [1, 1, 0]])

    def aligned(*given: Tensor) -> Tensor:
        return roi_align(Table.of(given, [(2,) * axes, (4,) * axes]), boxes, levels, 3)

    assert torch.autograd.gradcheck(aligned, maps)


@pytest.mark.parametrize("axes", [2, 3])
def test_rows_are_summed_alike_where_they_are_taken_one_by_one(axes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices without sums of rows."""
    generator = torch.Generator().manual_seed(axes)
    boxes, levels = some_boxes(5, axes, generator, extent=12.0, windows=2) - 2, torch.randint(0, 2, (2, 5), generator=generator)
    weights = torch.randn(10, 3, *(4,) * axes, generator=generator)
    found = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr("medseg.models.detection.roi_align.ROW_BY_ROW", devices)
        monkeypatch.setattr(functional, "embedding_bag", functional.embedding_bag if not devices else None)
        maps = [torch.randn(2, 3, *(n,) * axes, generator=torch.Generator().manual_seed(n), requires_grad=True) for n in (8, 4)]
        values = roi_align(Table.of(maps, [(2,) * axes, (4,) * axes]), boxes, levels, 4)
        found.append([values, *torch.autograd.grad((values * weights).sum(), maps)])
    for whole_sums, row_by_row in zip(*found, strict=True):
        assert torch.allclose(whole_sums, row_by_row, atol=1e-5)


def slowly(boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    table = iou(boxes, boxes).tolist()
    for i in scores.argsort(descending=True, stable=True).tolist():
        if valid[i] and not any(table[i][j] > threshold for j in kept):
            kept.append(i)
    return kept


@given(
    seed=st.integers(0, 10**6), axes=st.sampled_from([2, 3]), threshold=st.sampled_from([0.1, 0.3, 0.7]), keep=st.sampled_from([3, 25, 60])
)
@settings(max_examples=25, deadline=None)
def test_greedy_suppression_is_exact(seed: int, axes: int, threshold: float, keep: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, scores = some_boxes(40, axes, generator, 8.0, 2), torch.randperm(80, generator=generator).view(2, 40) / 80
    valid = torch.rand(2, 40, generator=generator) < 0.9
    index, there = greedy(boxes, scores, valid, threshold, keep, 50)
    assert index.shape == there.shape == (2, keep)
    for n in range(2):
        assert index[n][there[n]].tolist() == slowly(boxes[n], scores[n], valid[n], threshold)[:keep]


def test_greedy_suppression_over_several_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = some_boxes(700, 2, generator, 60.0), torch.rand(1, 700, generator=generator)
    valid = torch.ones(1, 700, dtype=torch.bool)
    expected = slowly(boxes[0], scores[0], valid[0], 0.3)
    assert len(expected) > 60
    for keep in (10, 60, 600):
        index, there = greedy(boxes, scores, valid, 0.3, keep, 700)
        assert index[there].tolist() == expected[:keep]
        assert there[0].tolist() == sorted(there[0].tolist(), reverse=True)


def test_a_chain_is_told_apart() -> None:
    """Of a, b, c, each of which covers the next, greedy suppression keeps a and c; Fast NMS lets b, which is covered itself, cover c."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18]]])
    scores, valid = torch.tensor([[0.9, 0.8, 0.7]]), torch.ones(1, 3, dtype=torch.bool)
    index, there = greedy(boxes, scores, valid, 0.4, 4, 9)
    assert (index[there].tolist(), there.tolist()) == ([0, 2], [[True, True, False, False]])
    index, there = fast(boxes, scores, valid, 0.4, 4, 9)
    assert (index[there].tolist(), there.tolist()) == ([0], [[True, False, False, False]])
    valid[0, 1] = False
    index, there = fast(boxes, scores, valid, 0.4, 4, 9)
    assert index[there].tolist() == [0, 2]


def test_fast_suppression_is_as_published() -> None:
    generator = torch.Generator().manual_seed(1)
    boxes, scores = some_boxes(600, 2, generator, 80.0), torch.rand(1, 600, generator=generator)
    order = scores[0].argsort(descending=True)
    table = functional.relu(iou(boxes[0][order], boxes[0][order])).triu(1)
    expected = order[table.amax(0) <= 0.3]
    index, there = fast(boxes, scores, torch.ones(1, 600, dtype=torch.bool), 0.3, 600, 600)
    assert index[there].tolist() == expected.tolist()


def test_nothing_to_choose_from() -> None:
    boxes, scores, valid = torch.zeros(2, 5, 4), torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    for choose in (greedy, fast):
        _, there = choose(boxes, scores, valid, 0.5, 8, 100)
        assert there.shape == (2, 8)
        assert not there.any()
