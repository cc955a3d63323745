from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from torch.nn import functional as F  # noqa: N812

from medseg.losses.blobs import number_blobs
from medseg.losses.dice import IGNORED, Form, exclusive_loss, region_loss


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator)
    return logits, torch.randint(0, 3, (2, 4, 5, 6), generator=generator)


@pytest.mark.parametrize("batch", [True, False])
def test_exclusive_equals_monai_and_torch(example: tuple[torch.Tensor, torch.Tensor], batch: bool) -> None:
    logits, classes = example
    weights = torch.tensor([1.0, 2.0, 3.0])
    found = exclusive_loss(logits, classes, weights, Form(batch=batch))
    reference = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5)
    torch.testing.assert_close(found["dice"], reference(logits, classes[:, None]))
    torch.testing.assert_close(found["cross_entropy"], F.cross_entropy(logits, classes, weights))


def test_regions_equal_monai_and_torch(example: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, classes = example
    regions = torch.stack([classes >= 1, classes == 2, classes == 0], 1)
    found = region_loss(logits, regions, torch.ones_like(classes, dtype=torch.bool))
    reference = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)
    torch.testing.assert_close(found["dice"], reference(logits, regions.float()))
    torch.testing.assert_close(found["cross_entropy"], F.binary_cross_entropy_with_logits(logits, regions.float()))


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("missed", [0.3, 0.5, 0.8])
def test_tversky_equals_monai(example: tuple[torch.Tensor, torch.Tensor], batch: bool, missed: float) -> None:
    logits, classes = example
    form = Form(batch=batch, missed=missed)
    how = {"alpha": 1 - missed, "beta": missed, "batch": batch, "smooth_nr": 0.5e-5, "smooth_dr": 0.5e-5}
    reference = TverskyLoss(include_background=False, to_onehot_y=True, softmax=True, **how)
    torch.testing.assert_close(exclusive_loss(logits, classes, form=form)["dice"], reference(logits, classes[:, None]))
    regions = torch.stack([classes >= 1, classes == 2, classes == 0], 1)
    found = region_loss(logits, regions, torch.ones_like(classes, dtype=torch.bool), form=form)
    torch.testing.assert_close(found["dice"], TverskyLoss(sigmoid=True, **how)(logits, regions.float()))


def test_tversky_prefers_inventing_to_missing() -> None:
    """Of two lesions one is missed, or a third is invented: the Dice loss is 1/3 and 1/5."""
    truth = torch.zeros(1, 1, 9, dtype=torch.int64)
    truth[..., [1, 4]] = 1
    sure = torch.tensor([30.0, -30.0])

    def of(found: list[int], missed: float) -> float:
        hot = torch.zeros_like(truth)
        hot[..., found] = 1
        logits = torch.stack([sure[hot], -sure[hot]], 1)
        return exclusive_loss(logits, truth, form=Form(missed=missed))["dice"].item()

    assert [of(found, 0.5) for found in ([1], [1, 4, 7])] == pytest.approx([1 / 3, 1 / 5], abs=1e-4)
    assert [of(found, 0.8) for found in ([1], [1, 4, 7])] == pytest.approx([1 - 1 / 1.8, 1 - 2 / 2.2], abs=1e-4)


@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_focal_equals_monai(example: tuple[torch.Tensor, torch.Tensor], exponent: float) -> None:
    logits, classes = example
    weights = torch.tensor([1.0, 2.0, 3.0])
    form = Form(focal=exponent)
    each = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=exponent, reduction="none")(logits, classes[:, None]).sum(1)
    torch.testing.assert_close(exclusive_loss(logits, classes, form=form)["cross_entropy"], each.mean())
    weighted = (each * weights[classes]).sum() / weights[classes].sum()
    torch.testing.assert_close(exclusive_loss(logits, classes, weights, form)["cross_entropy"], weighted)
    regions = torch.stack([classes >= 1, classes == 2, classes == 0], 1)
    found = region_loss(logits, regions, torch.ones_like(classes, dtype=torch.bool), form=form)
    torch.testing.assert_close(found["cross_entropy"], FocalLoss(gamma=exponent)(logits, regions.float()))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.37, 1.0])
def test_hardest_is_the_mean_of_the_highest_losses_of_voxels_that_count(
    example: tuple[torch.Tensor, torch.Tensor], share: float, weighted: bool
) -> None:
    logits, classes = example
    classes = classes.clone()
    classes[0, :2] = IGNORED
    weights = torch.tensor([1.0, 2.0, 3.0]) if weighted else torch.ones(3)
    seen = classes != IGNORED
    each = F.cross_entropy(logits, classes, weights, ignore_index=IGNORED, reduction="none")[seen]
    kept = each.sort(descending=True).indices[: math.ceil(share * len(each))]
    expected = each[kept].sum() / weights[classes[seen]][kept].sum()
    found = exclusive_loss(logits, classes, weights if weighted else None, Form(hardest=share))
    torch.testing.assert_close(found["cross_entropy"], expected)
    regions = torch.stack([classes >= 1, classes == 2, classes == 0], 1)
    each = F.binary_cross_entropy_with_logits(logits, regions.float(), reduction="none").movedim(1, -1)[seen].flatten()
    found = region_loss(logits, regions, seen, form=Form(hardest=share))
    torch.testing.assert_close(found["cross_entropy"], each.sort(descending=True).values[: math.ceil(share * len(each))].mean())


FORMS = [Form(), Form(missed=0.7), Form(focal=0.5), Form(focal=2), Form(hardest=0.1), Form(False, 0.8, 1.0, 0.3)]


@given(form=st.sampled_from(FORMS), seed=st.integers(0, 1000), weighted=st.booleans())
def test_ignored_voxels_count_nowhere(form: Form, seed: int, weighted: bool) -> None:
    """Logits and gradients at ignored voxels do not matter: the loss is that of the rest."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 6, 5, generator=generator)
    classes = torch.randint(0, 3, (2, 6, 5), generator=generator)
    classes[torch.rand(classes.shape, generator=generator) < 0.4] = IGNORED
    weights = torch.tensor([1.0, 2.0, 5.0]) if weighted else None
    ignored = classes == IGNORED
    blobs = number_blobs(classes)
    other = torch.where(ignored[:, None], 50 * torch.randn(logits.shape, generator=generator), logits).requires_grad_()
    first, second = (exclusive_loss(values, classes, weights, form, blobs) for values in (logits, other))
    assert list(first) == ["dice", "cross_entropy", "blob"]
    for name in first:
        torch.testing.assert_close(first[name], second[name])
    torch.stack(list(second.values())).sum().backward()
    assert other.grad is not None
    assert (other.grad.movedim(1, -1)[ignored] == 0).all()
    if form == Form():
        torch.testing.assert_close(first["cross_entropy"], F.cross_entropy(logits, classes, weights, ignore_index=IGNORED))
    regions = torch.stack([classes == 1, classes == 2, classes >= 1], 1)
    blobs = number_blobs(regions.flatten(0, 1).to(torch.uint8)).view(regions.shape)
    first, second = (region_loss(values.detach(), regions, ~ignored, None, form, blobs) for values in (logits, other))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["background", "ignored"])
@pytest.mark.parametrize("sure", [0.0, 90.0])
def test_finite_without_foreground(kind: str, form: Form, sure: float) -> None:
    logits = torch.full((2, 3, 4, 4), -sure)
    logits[:, 0] = sure
    logits.requires_grad_()
    classes = torch.full((2, 4, 4), 0 if kind == "background" else IGNORED)
    regions = torch.zeros(2, 3, 4, 4, dtype=torch.int16)
    terms = exclusive_loss(logits, classes, None, form, number_blobs(classes)) | {
        f"region {k}": v for k, v in region_loss(logits, regions, classes != IGNORED, None, form, regions).items()
    }
    torch.stack(list(terms.values())).sum().backward()
    assert all(math.isfinite(v.item()) for v in terms.values())
    assert terms["blob"].item() == terms["region blob"].item() == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_perfect_and_worst() -> None:
    classes = torch.tensor([[[0, 1], [2, 1]]])
    hot = F.one_hot(classes, 3).movedim(-1, 1).float()
    assert exclusive_loss(40 * hot, classes)["dice"].item() == pytest.approx(0, abs=1e-5)
    assert exclusive_loss(-40 * hot, classes)["dice"].item() == pytest.approx(1, abs=1e-4)


def test_half_precision_outputs_are_summed_in_float32() -> None:
    """A bfloat16 sum over 200,000 voxels would be off by per cents."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 60, 60, 60, generator=generator).bfloat16()
    classes = torch.randint(0, 2, (1, 60, 60, 60), generator=generator)
    low, high = exclusive_loss(logits, classes), exclusive_loss(logits.double().float(), classes)
    assert low["dice"].dtype == torch.float32
    torch.testing.assert_close(low, high, rtol=1e-6, atol=1e-7)
