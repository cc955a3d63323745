"""Surface distances against MONAI and brute force."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from medseg.metrics.surface import Surfaces, element_areas

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.metrics import compute_surface_dice
    from monai.metrics.utils import get_code_to_measure_table, get_mask_edges

SPACINGS = {2: [(1.0, 1.0), (0.5, 2.0)], 3: [(1.0, 1.0, 1.0), (3.0, 0.8, 1.2)]}


def filled(pair):
    return all(mask.any() for mask in pair)


def pairs():
    shapes = st.one_of(hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    return shapes.flatmap(lambda s: st.tuples(hnp.arrays(bool, s), hnp.arrays(bool, s))).filter(filled)


@settings(max_examples=60)
@given(pairs(), st.integers(0, 1), st.sampled_from([0.5, 1.0, 2.0, 3.3]))
def test_like_monai_and_brute_force(pair, which, tolerance):
    prediction, truth = pair
    spacing = SPACINGS[truth.ndim][which]
    found = Surfaces.between(prediction, truth, spacing)

    a, b = (torch.from_numpy(np.pad(m, 1)) for m in pair)
    edges_a, edges_b, areas_a, areas_b = get_mask_edges(a, b, crop=False, spacing=spacing)
    points = [np.argwhere(e.numpy()) * np.array(spacing) for e in (edges_a, edges_b)]
    weights = [area[edge].numpy().astype(float) for area, edge in ((areas_a, edges_a), (areas_b, edges_b))]
    distances = cdist(*points)
    directed = distances.min(1), distances.min(0)

    assert found.average == pytest.approx(sum(d @ w for d, w in zip(directed, weights, strict=True)) / sum(w.sum() for w in weights))
    near = sum(w[d <= tolerance].sum() for d, w in zip(directed, weights, strict=True))
    assert found.dice(tolerance) == pytest.approx(near / sum(w.sum() for w in weights))
    assert found.hausdorff(100) == pytest.approx(max(d.max() for d in directed))
    for percent in (50, 95):
        expected = []
        for d, w in zip(directed, weights, strict=True):
            order = np.argsort(d, kind="stable")
            reached = np.cumsum(w[order]) / w.sum() >= percent / 100 - 1e-6
            expected.append(d[order][np.argmax(reached)])
        assert found.hausdorff(percent) == pytest.approx(max(expected))


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
@settings(max_examples=20)
@given(pairs(), st.sampled_from([0.5, 1.0, 2.5]))
def test_nsd_like_monai_itself(pair, tolerance):
    spacing = SPACINGS[pair[0].ndim][1]
    a, b = (torch.from_numpy(np.pad(m, 2))[None, None].float() for m in pair)
    expected = compute_surface_dice(a, b, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True)
    assert Surfaces.between(*pair, spacing).dice(tolerance) == pytest.approx(float(expected), abs=1e-5)


def test_shifted_cube_has_known_distances():
    truth = np.zeros((40, 40, 40), bool)
    truth[10:30, 10:30, 10:30] = True
    found = Surfaces.between(np.roll(truth, 4, axis=0), truth, (2.0, 1.0, 1.0))  # 8 mm
    assert found.hausdorff(100) == 8.0
    assert found.hausdorff(95) == 8.0
    assert found.dice(8.0) == 1.0
    # A fifth of each side wall sticks out, and one of two end faces per cube is 8 mm away.
    assert 0.4 < found.dice(1.0) < 0.75


def test_surface_area_of_a_ball():
    z, y, x = np.ogrid[-20:21, -20:21, -10:11]
    ball = z**2 + y**2 + (2 * x) ** 2 <= 18**2
    areas = Surfaces.between(ball, ball, (1.0, 1.0, 2.0)).areas_truth
    assert areas.sum() == pytest.approx(4 * np.pi * 18**2, rel=0.15)  # facets of whole voxels overestimate by a tenth


@pytest.mark.parametrize("spacing", [s for all_spacings in SPACINGS.values() for s in all_spacings])
def test_areas_of_elements_are_monais(spacing):
    expected = get_code_to_measure_table(spacing)[0]
    assert element_areas(spacing) == pytest.approx(expected.numpy(), rel=1e-6)


def test_symmetric():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 6, 6, 6)) < 0.4
    there, back = Surfaces.between(a, b, (1.0, 2.0, 3.0)), Surfaces.between(b, a, (1.0, 2.0, 3.0))
    assert there.average == pytest.approx(back.average)
    assert there.hausdorff() == back.hausdorff()
    assert there.dice(2) == pytest.approx(back.dice(2))
