from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch._subclasses.fake_tensor import FakeTensorMode

from medseg.losses.blobs import BLOBS, number_blobs
from medseg.losses.dice import IGNORED, SMOOTH, Form, exclusive_loss, region_loss


def by_definition(chances: torch.Tensor, truth: torch.Tensor, seen: torch.Tensor, missed: float) -> float:
    """Kofler et al. 2022, equations 1 to 3: every component alone, with the voxels of all others taken out."""
    means = []
    for k in range(truth.shape[1]):
        values = []
        for n in range(len(truth)):
            mask = (truth[n, k] & seen[n]).numpy()
            labelled, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
            for blob in range(1, count + 1):
                own = torch.from_numpy(labelled == blob)
                domain = (~truth[n, k] | own) & seen[n]
                p, t = chances[n, k][domain], own[domain].float()
                hits = (p * t).sum()
                total = hits + missed * (t.sum() - hits) + (1 - missed) * (p.sum() - hits)
                values.append(float(1 - (hits + SMOOTH / 2) / (total + SMOOTH / 2)))
        if values:
            means.append(sum(values) / len(values))
    return sum(means) / len(means) if means else 0.0


@given(
    seed=st.integers(0, 10**6), density=st.sampled_from([0.0, 0.02, 0.2]), missed=st.sampled_from([0.5, 0.7]), dims=st.sampled_from([2, 3])
)
@settings(max_examples=40)
def test_equals_the_definition(seed: int, density: float, missed: float, dims: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, *(7, 6, 5)[:dims])
    logits = torch.randn(2, 3, *shape[1:], generator=generator)
    classes = torch.randint(1, 3, shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
    classes[torch.rand(shape, generator=generator) < 0.2] = IGNORED
    seen, form = classes != IGNORED, Form(missed=missed)
    truth = torch.stack([classes == 1, classes == 2], 1)
    found = exclusive_loss(logits, classes, form=form, blobs=number_blobs(classes))["blob"].item()
    assert found == pytest.approx(by_definition(logits.softmax(1)[:, 1:], truth, seen, missed), abs=1e-5)
    regions = torch.stack([classes >= 1, classes == 2], 1)
    blobs = number_blobs(regions.flatten(0, 1).to(torch.uint8)).view(regions.shape)
    found = region_loss(logits[:, 1:], regions, seen, form=form, blobs=blobs)["blob"].item()
    assert found == pytest.approx(by_definition(logits[:, 1:].sigmoid(), regions, seen, missed), abs=1e-5)


def test_a_missed_small_lesion_costs_as_much_as_a_large_one() -> None:
    """Of a lesion of 100 voxels and one of 1, the small one is missed: the Dice loss is 0.5 %, the blob loss one half."""
    classes = torch.zeros(1, 20, 20, dtype=torch.int64)
    classes[0, 2:12, 2:12] = 1
    classes[0, 16, 16] = 1
    predicted = classes.clone()
    predicted[0, 16, 16] = 0
    logits = 60.0 * torch.stack([0.5 - predicted, predicted - 0.5], 1)
    found = exclusive_loss(logits, classes, blobs=number_blobs(classes))
    assert found["dice"].item() == pytest.approx(1 / 201, abs=1e-4)
    assert found["blob"].item() == pytest.approx(0.5, abs=1e-4)


def test_numbers_begin_anew_in_every_window_and_class() -> None:
    classes = torch.tensor([[[1, 0, 1, 2], [0, 0, 0, 2], [2, 0, IGNORED, 1]], [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]])
    assert number_blobs(classes).tolist() == [[[1, 0, 2, 1], [0, 0, 0, 1], [2, 0, 0, 3]], [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]]


def test_components_beyond_the_most_count_as_one() -> None:
    classes = torch.zeros(1, 40, 40, dtype=torch.int64)
    classes[0, ::2, ::2] = 1  # 400 of them
    numbers = number_blobs(classes)
    assert numbers.max() == BLOBS
    assert (numbers == BLOBS).sum() == 400 - BLOBS + 1
    assert torch.isfinite(exclusive_loss(torch.zeros(1, 2, 40, 40), classes, blobs=numbers)["blob"])


def test_numbering_is_known_to_fake_tensors() -> None:
    with FakeTensorMode():
        found = number_blobs(torch.zeros(2, 5, 6, dtype=torch.int64))
    assert (found.shape, found.dtype) == ((2, 5, 6), torch.int16)
    torch.library.opcheck(number_blobs, (torch.randint(-1, 3, (2, 5, 6)),))
