from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.losses import DiceLoss
from torch.nn import functional as F  # noqa: N812

from medseg.losses.dice import IGNORED, exclusive_loss, region_loss


@pytest.fixture
def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator)
    return logits, torch.randint(0, 3, (2, 4, 5, 6), generator=generator)


@pytest.mark.parametrize("batch", [True, False])
def test_exclusive_equals_monai_and_torch(example: tuple[torch.Tensor, torch.Tensor], batch: bool) -> None:
    logits, classes = example
    weights = torch.tensor([1.0, 2.0, 3.0])
    found = exclusive_loss(logits, classes, weights, batch)
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


@given(seed=st.integers(0, 1000), weighted=st.booleans())
def test_ignored_voxels_count_nowhere(seed: int, weighted: bool) -> None:
    """Logits and gradients at ignored voxels do not matter: the loss is that of the rest."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 6, 5, generator=generator)
    classes = torch.randint(0, 3, (2, 6, 5), generator=generator)
    classes[torch.rand(classes.shape, generator=generator) < 0.4] = IGNORED
    weights = torch.tensor([1.0, 2.0, 5.0]) if weighted else None
    ignored = classes == IGNORED
    other = torch.where(ignored[:, None], 50 * torch.randn(logits.shape, generator=generator), logits).requires_grad_()
    first, second = exclusive_loss(logits, classes, weights), exclusive_loss(other, classes, weights)
    for name in first:
        torch.testing.assert_close(first[name], second[name])
    (second["dice"] + second["cross_entropy"]).backward()
    assert other.grad is not None
    assert (other.grad.movedim(1, -1)[ignored] == 0).all()
    torch.testing.assert_close(first["cross_entropy"], F.cross_entropy(logits, classes, weights, ignore_index=IGNORED))
    regions = torch.stack([classes == 1, classes == 2, classes >= 1], 1)
    torch.testing.assert_close(region_loss(logits, regions, ~ignored), region_loss(other.detach(), regions, ~ignored))


@pytest.mark.parametrize("kind", ["background", "ignored"])
def test_finite_without_foreground(kind: str) -> None:
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    classes = torch.full((2, 4, 4), 0 if kind == "background" else IGNORED)
    terms = exclusive_loss(logits, classes) | {
        f"region {k}": v for k, v in region_loss(logits, torch.zeros(2, 3, 4, 4), classes != IGNORED).items()
    }
    torch.stack(list(terms.values())).sum().backward()
    assert all(math.isfinite(v.item()) for v in terms.values())
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
