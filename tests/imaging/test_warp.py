import math

import pytest
import torch

from medseg.imaging import warp as module
from medseg.imaging.intensity import blur, change_contrast, change_gamma, coarsen
from medseg.imaging.warp import rotation_matrices, sampling_grid, warp


def identity(n, d):
    return torch.eye(d).repeat(n, 1, 1), torch.zeros(n, d)


@pytest.mark.parametrize("shape", [(9, 8), (7, 8, 9)])
def test_identity_cuts_the_middle(shape):
    window = tuple(n - 2 for n in shape)
    image = torch.randn(2, 3, *shape)
    label = torch.randint(0, 5, (2, *shape), dtype=torch.int16)
    grid = sampling_grid(shape, window, *identity(2, len(shape)))
    warped, (moved,) = warp(image, (label,), ((0, 1, 2, 3, 4),), grid)
    middle = (..., *[slice(1, -1)] * len(shape))
    torch.testing.assert_close(warped, image[middle], atol=1e-4, rtol=0)
    assert moved.dtype == torch.int16
    assert torch.equal(moved, label[middle])


def test_quarter_turn_equals_rot90():
    image, label = torch.randn(1, 1, 9, 9), torch.randint(0, 3, (1, 9, 9), dtype=torch.int16)
    matrix = rotation_matrices(torch.tensor([[math.pi / 2]]), 2)
    warped, (moved,) = warp(image, (label,), ((0, 1, 2),), sampling_grid((9, 9), (9, 9), matrix, torch.zeros(1, 2)))
    turns = [k for k in (1, 3) if torch.equal(moved, torch.rot90(label, k, (1, 2)))]
    assert len(turns) == 1
    torch.testing.assert_close(warped, torch.rot90(image, turns[0], (2, 3)), atol=1e-4, rtol=0)


def test_rotations_are_orthogonal():
    matrix = rotation_matrices(torch.rand(5, 3) * 6, 3)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3).repeat(5, 1, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(5))


def test_shift_moves_by_samples_and_fills_with_zeros():
    image = torch.arange(1.0, 26).view(1, 1, 5, 5)
    grid = sampling_grid((5, 5), (5, 5), torch.eye(2)[None], torch.tensor([[2.0, 0.0]]))
    warped, (moved,) = warp(image, (image[:, 0].to(torch.int16),), (tuple(range(26)),), grid)
    torch.testing.assert_close(warped[0, 0, :3], image[0, 0, 2:], atol=1e-4, rtol=0)
    assert not warped[0, 0, 3:].any()
    assert not moved[0, 3:].any()


def test_many_label_values_go_in_groups_with_equal_result(monkeypatch):
    image, label = torch.randn(2, 1, 12, 12), torch.randint(-1, 9, (2, 12, 12), dtype=torch.int16)
    grid = sampling_grid((12, 12), (10, 10), rotation_matrices(torch.tensor([[0.3], [1.0]]), 2), torch.zeros(2, 2))
    _, (at_once,) = warp(image, (label,), (tuple(range(-1, 9)),), grid)
    monkeypatch.setattr(module, "MOST_MAPS", 2)
    _, (in_groups,) = warp(image, (label,), (tuple(range(-1, 9)),), grid)
    assert torch.equal(at_once, in_groups)
    assert set(at_once.unique().tolist()) == set(range(-1, 9))


def test_half_covered_voxels_become_background_only_when_it_is_the_largest():
    label = torch.zeros(1, 4, 4, dtype=torch.int16)
    label[:, :, 2:] = 3
    grid = sampling_grid((4, 4), (4, 4), torch.eye(2)[None], torch.tensor([[0.0, 0.4]]))
    _, (moved,) = warp(torch.zeros(1, 1, 4, 4), (label,), ((0, 3),), grid)
    assert moved[0, 0].tolist() == [0, 0, 3, 3]
    grid = sampling_grid((4, 4), (4, 4), torch.eye(2)[None], torch.tensor([[0.0, 0.6]]))
    _, (moved,) = warp(torch.zeros(1, 1, 4, 4), (label,), ((0, 3),), grid)
    assert moved[0, 0].tolist() == [0, 3, 3, 0]


def test_contrast_keeps_the_mean():
    image = torch.randn(3, 2, 8, 8)
    changed = change_contrast(image, torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(changed[0], image[0])
    torch.testing.assert_close(changed[1].mean((1, 2)), image[1].mean((1, 2)))
    torch.testing.assert_close(changed[1].std((1, 2)), 2 * image[1].std((1, 2)))
    torch.testing.assert_close(changed[2].mean((1, 2)), image[2].mean((1, 2)) + 1)


def test_gamma_keeps_mean_deviation_and_order():
    image = torch.randn(2, 1, 6, 6, 6)
    changed = change_gamma(image, torch.tensor([1.0, 1.7]))
    assert torch.equal(changed[0], image[0])
    torch.testing.assert_close(changed[1].mean(), image[1].mean(), atol=1e-4, rtol=0)
    torch.testing.assert_close(changed[1].std(), image[1].std(), atol=1e-4, rtol=0)
    assert torch.equal(changed[1].flatten().argsort(), image[1].flatten().argsort())


def test_gamma_of_a_constant_is_finite():
    assert torch.isfinite(change_gamma(torch.full((1, 1, 4, 4), 3.0), torch.tensor([1.5]))).all()


@pytest.mark.parametrize("shape", [(12, 10), (8, 9, 10)])
def test_blur_is_a_gaussian_per_window(shape):
    from scipy import ndimage

    image = torch.randn(3, 2, *shape)
    sigma = torch.tensor([0.5, 1.0, 0.8])
    result = blur(image, sigma)
    for n in range(3):
        for c in range(2):
            expected = ndimage.gaussian_filter(image[n, c].numpy(), float(sigma[n]), mode="nearest", radius=3)
            torch.testing.assert_close(result[n, c], torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_coarsen_keeps_shape_and_loses_detail():
    image = torch.randn(1, 1, 16, 16, 16)
    coarse = coarsen(image, 0.5)
    assert coarse.shape == image.shape
    assert coarse.std() < image.std()
    assert torch.equal(coarsen(image, 1.0), image)
