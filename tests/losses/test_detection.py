from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from medseg.losses.detection import anchor_loss, box_loss, class_loss, giou, mask_loss, semantic_loss


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_agreement_of_boxes(axes: int) -> None:
    unit = torch.tensor([0.0] * axes + [1.0] * axes)
    apart = unit + 2
    assert giou(unit, unit).item() == 1
    hull = 3**axes
    assert giou(unit, apart).item() == pytest.approx(-(hull - 2) / hull)
    half = torch.cat([unit[:axes], unit[axes:] / 2])
    assert giou(unit, half).item() == pytest.approx(0.5**axes)
    assert math.isfinite(giou(torch.zeros(2 * axes), torch.zeros(2 * axes)).item())


def test_the_hardest_background_counts() -> None:
    """Of 200 anchors of background, 32 at least, three for each object where that is more."""
    surprise = torch.arange(202.0)[None]
    match = torch.zeros(1, 202)
    assert anchor_loss(surprise, match).item() == pytest.approx(sum(range(170, 202)) / 32)
    match[0, :20] = 1
    match[0, 201] = -1
    expected = sum(range(20)) + sum(range(141, 201))
    assert anchor_loss(surprise, match).item() == pytest.approx(expected / 80)
    assert anchor_loss(surprise, torch.full((1, 202), -1.0)).item() == 0


def test_boxes_of_background_do_not_count() -> None:
    truth = torch.tensor([[[0.0, 0, 4, 4], [2, 2, 8, 8]]])
    boxes = torch.tensor([[[0.0, 0, 4, 2], [2, 2, 8, 8], [0, 0, 1, 1], [5, 5, 6, 6]]], requires_grad=True)
    loss = box_loss(boxes, truth, torch.tensor([[1.0, 2, 0, -1]]))
    assert loss.item() == pytest.approx(0.5 / 2)
    loss.backward()
    assert boxes.grad[0, 0].abs().sum() > 0
    assert not boxes.grad[0, 2:].any()
    assert box_loss(boxes, truth, torch.zeros(1, 4)).item() == 0


def test_classes_of_regions() -> None:
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    classes, match = torch.tensor([[2, 1]]), torch.tensor([[2.0, 1, 0, -1]])
    expected = functional.cross_entropy(logits[0, :3], torch.tensor([1, 2, 0]))
    assert class_loss(logits, classes, match).item() == pytest.approx(expected.item())
    assert class_loss(logits, classes, torch.full((1, 4), -1.0)).item() == 0


def test_masks_count_alike_whatever_their_size() -> None:
    logits = torch.zeros(1, 3, 4)
    outlines = torch.tensor([[[1.0, 1, 0, 0], [1, -1, -1, -1], [-1, -1, -1, -1]]])
    dice = [(2 * 1 + 1) / (2 + 2 + 1), (2 * 0.5 + 1) / (0.5 + 1 + 1)]
    assert mask_loss(logits, outlines).item() == pytest.approx(math.log(2) + 1 - sum(dice) / 2)
    assert mask_loss(40 * (2 * outlines - 1), outlines).item() == pytest.approx(0, abs=1e-6)
    assert mask_loss(logits, -torch.ones_like(outlines)).item() == 0


def test_masks_are_best_where_they_are_the_shares_that_objects_fill() -> None:
    """Also of cells that an object fills by less than half, and beside ones that do not count."""
    outlines = torch.tensor([[[0.0, 0.1, 0.3, 0.5, 0.8, 1.0, -1.0]]])
    best = outlines.clamp_min(0).logit().clamp(-12, 12).requires_grad_()
    assert mask_loss(best, outlines).item() == pytest.approx(0, abs=1e-4)
    for cell in range(1, 5):
        for more in (-0.5, 0.5):
            other = best.detach().clone()
            other[0, 0, cell] += more
            assert mask_loss(other, outlines).item() > mask_loss(best, outlines).item() + 1e-3
    further = best.detach() + 1
    found, truth = further.sigmoid()[0, 0, :6], outlines[0, 0, :6]
    surprise = functional.binary_cross_entropy(found, truth) - functional.binary_cross_entropy(truth, truth)
    expected = surprise + 1 - (torch.minimum(2 * found, 2 * truth).sum() + 1) / (found.sum() + truth.sum() + 1)
    assert mask_loss(further, outlines).item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_should_be_has_no_gradient() -> None:
    """Outputs of a step in portions are leaves that all ask for a gradient."""
    logits, outlines = torch.zeros(1, 1, 4, requires_grad=True), torch.ones(1, 1, 4, requires_grad=True)
    mask_loss(logits, outlines).backward()
    assert outlines.grad is None
    assert logits.grad is not None


def test_classes_of_cells() -> None:
    logits = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([[[1.0, 2], [0, -1]]])
    truth = torch.tensor([[[1.0, 0], [0, 0]], [[0, 1.0], [0, 0]]])[None]
    each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    assert semantic_loss(logits, classes).item() == pytest.approx((each.sum() - each[0, :, 1, 1].sum()).item() / 6, abs=1e-6)
    assert semantic_loss(logits, -torch.ones_like(classes)).item() == 0
