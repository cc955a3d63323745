"""Preparation, its inverse, and what a case contributes to the fingerprint."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.case import Case
from medseg.dataset import LabelClass, Labels
from medseg.domains.grid.measure import measure_case
from medseg.domains.grid.prepare import prepare_case, prepared_shape, restore_array, restore_objects
from medseg.domains.grid.settings import Augmentation, GridSettings, Interpolation, Normalization, Scheme
from medseg.errors import DatasetError
from medseg.geometry import Crop, Grid, Reorient, Resample
from medseg.prediction import FoundObjects

ZSCORE = Normalization(scheme=Scheme.zscore)
LABELS = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))), ignore=9)


def space(ndim=3, spacing=None, crop=False, axes=None, channels=(ZSCORE,)):
    return GridSettings(axes=axes or tuple(range(ndim)), spacing=spacing or (None,) * ndim, crop=crop, channels=channels)


def half_seen(seed=0):
    """A flipped case of two channels; the second was measured in about half of the volume, beyond which it is 0."""
    rng = np.random.default_rng(seed)
    affine = np.diag([-1.0, 2.0, -3.0, 1.0])[:, [2, 1, 0, 3]]
    grid = Grid((8, 10, 12), affine)
    field = Grid((4, 10, 12), affine)
    image = rng.normal((500, 300), (50, 40), (8, 10, 12, 2)).transpose(3, 0, 1, 2).astype(np.float32)
    image[1, 4:] = 0
    image[:, :, :2] = 0  # cropped away
    label = np.zeros(grid.shape, np.uint8)
    label[2:6, 4:6, 3:5] = 1
    return Case("c", image, label, grid, fields=(None, field))


def test_only_measured_voxels_decide_how_a_channel_is_normalised():
    """Tissue looks the same however little of the volume the channel covers, with and without cropping and masking."""
    case = half_seen()
    seen, masked = case.image[1, :4, 2:], Normalization(scheme=Scheme.masked)
    for crop, scheme in itertools.product((False, True), (ZSCORE, masked)):
        prepared = prepare_case(case, space(crop=crop, channels=(ZSCORE, scheme)))
        back = restore_array(prepared.image, prepared.trail)
        values = seen if crop or scheme is masked else case.image[1, :4]
        expected = (seen - values.mean()) / values.std()
        np.testing.assert_allclose(back[1, :4, 2:], expected, rtol=1e-4, atol=1e-4)
        assert np.unique(back[1, 4:, 2:]) == pytest.approx(-values.mean() / values.std(), rel=1e-4)
        whole = prepare_case(Case("c", case.image, None, case.grid), space(crop=crop, channels=(ZSCORE, scheme)))
        np.testing.assert_array_equal(prepared.image[0], whole.image[0])
        assert np.abs(prepared.image[1] - whole.image[1]).max() > 0.5


def test_only_measured_voxels_count_in_the_fingerprint():
    case = half_seen()
    stats = measure_case(case, LABELS, "x")
    assert [c.count for c in stats.channels] == [16, 8]
    assert stats.channels[1].mean == pytest.approx(case.image[1, 2:4, 4:6, 3:5].mean(), rel=1e-5)
    bare = measure_case(Case("c", case.image, None, case.grid, fields=case.fields), LABELS, "x")
    assert [c.count for c in bare.channels] == [8 * 10 * 12, 4 * 10 * 12]


@st.composite
def worlds(draw):
    """An oblique, permuted, flipped 3D grid and a label map with a border of empty image."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(3))
    columns = np.eye(3)[:, draw(st.sampled_from(list(itertools.permutations(range(3)))))] * rng.choice([-1, 1], 3)
    rotation, triangular = np.linalg.qr(columns + draw(st.floats(0, 0.3)) * rng.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.sign(np.diag(triangular)) * rng.uniform(0.3, 4, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    image = rng.normal(100, 20, (1, *shape)).astype(np.float32)
    for axis in range(1, 4):
        image[(slice(None),) * axis + (slice(0, draw(st.integers(0, shape[axis - 1] // 2))),)] = 0
    return Case("c", image, rng.integers(0, 3, shape).astype(np.uint8), Grid(shape, affine))


@given(case=worlds(), axes=st.permutations(range(3)), crop=st.booleans())
@settings(max_examples=80)
def test_restore_undoes_prepare_to_the_voxel(case, axes, crop):
    prepared = prepare_case(case, space(axes=tuple(axes), crop=crop))
    inside = restore_array(np.ones_like(prepared.label), prepared.trail, fill=0).astype(bool)
    restored = restore_array(prepared.label, prepared.trail, fill=77)
    assert restored.shape == case.label.shape
    assert restored.dtype == case.label.dtype
    np.testing.assert_array_equal(restored[inside], case.label[inside])
    assert (restored[~inside] == 77).all()
    assert not case.image[0][~inside].any()  # only empty voxels may be cropped
    if not crop:
        assert inside.all()
    if prepared.label.any():  # an object that is a label map is restored like one
        box = np.array([[0, 0, 0, *prepared.label.shape]], float)
        mask = (255 * (prepared.label == prepared.label.max())).astype(np.uint8)
        found = FoundObjects(prepared.label.shape, box, np.ones(1, np.float32), np.ones(1, np.int32), (mask,))
        back = restore_objects(found, prepared.trail)
        lower, voxels = back.mask(0)
        whole = np.zeros(back.shape, bool)
        whole[tuple(slice(a, a + n) for a, n in zip(lower, voxels.shape, strict=True))] = voxels
        np.testing.assert_array_equal(whole, restore_array(mask, prepared.trail) > 0)


@given(case=worlds(), axes=st.permutations(range(3)), crop=st.booleans(), target=st.floats(0.5, 3))
@settings(max_examples=40)
def test_the_prepared_grid_tells_where_voxels_lie(case, axes, crop, target):
    prepared = prepare_case(case, space(axes=tuple(axes), crop=crop, spacing=(target, None, target)))
    grid = case.grid
    for step in prepared.trail:
        grid = step.grid(grid)
    assert grid == prepared.grid
    assert prepared.image.shape == (1, *grid.shape)
    assert prepared.label.shape == grid.shape
    assert prepared.image.dtype == np.float32
    assert np.isfinite(prepared.image).all()
    assert prepared.image.flags.c_contiguous
    directions = np.abs(prepared.grid.direction)
    order = [2 - int(np.argmax(directions[:, a])) for a in range(3)]
    if directions.max(0).min() > 0.8:
        assert order == list(axes)
        assert all(prepared.grid.direction[2 - o, a] > 0 for a, o in enumerate(order))


def test_orientation_is_canonical_without_resampling():
    values = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) + 1
    plain = Case("c", values, None, Grid.plain((2, 3, 4)))
    step = Reorient(axes=(2, 0, 1), flips=(True, False, True))
    turned = Case("c", step.apply(values), None, step.grid(plain.grid))
    np.testing.assert_allclose(prepare_case(turned, space()).image, prepare_case(plain, space()).image)


def test_trail_holds_only_steps_that_change_something():
    image = np.ones((1, 4, 6, 6), np.float32)
    kinds = [type(s) for s in prepare_case(Case("c", image, None, Grid.plain((4, 6, 6))), space(crop=True, spacing=(1, 1, 1))).trail]
    assert kinds == [Reorient]
    image[:, 0] = 0
    kinds = [type(s) for s in prepare_case(Case("c", image, None, Grid.plain((4, 6, 6))), space(crop=True, spacing=(0.5, 1, 1))).trail]
    assert kinds == [Reorient, Crop, Resample]


def test_an_empty_image_is_not_cropped_away():
    image = np.zeros((1, 4, 6, 6), np.float32)
    prepared = prepare_case(Case("c", image, None, Grid.plain((4, 6, 6))), space(crop=True))
    assert prepared.image.shape == (1, 4, 6, 6)
    assert not prepared.image.any()


def test_prepared_shape_keeps_the_extent():
    grid = Grid.plain((10, 20, 1), (3.0, 0.5, 2.0))
    assert prepared_shape(grid, space(spacing=(1.5, 1.0, 9.0))) == (20, 10, 1)
    assert prepared_shape(grid, space()) == (10, 20, 1)


def test_fixed_normalisation_of_2d_colour():
    how = Normalization(scheme=Scheme.fixed, low=0, high=255, mean=127.5, std=63.75)
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 6)).astype(np.uint8)
    prepared = prepare_case(Case("c", image, None, Grid.plain((5, 6))), space(2, channels=(how,) * 3))
    np.testing.assert_allclose(prepared.image, image / 63.75 - 2, atol=1e-6)


def test_masked_normalisation_leaves_the_background_at_zero():
    image = np.zeros((2, 8, 8, 8), np.float32)
    image[0, 2:6, 2:6, 2:6] = np.random.default_rng(0).normal(50, 5, (4, 4, 4))
    image[1, 2:6, 2:6, 2:6] = np.random.default_rng(1).normal(9, 2, (4, 4, 4))
    prepared = prepare_case(Case("c", image, None, Grid.plain((8, 8, 8))), space(channels=(Normalization(scheme=Scheme.masked),) * 2))
    assert not prepared.image[:, 0].any()
    np.testing.assert_allclose(prepared.image[:, 2:6, 2:6, 2:6].mean((1, 2, 3)), 0, atol=1e-5)


@pytest.mark.parametrize(("interpolation", "filled"), [("smooth", True), ("nnunet", False)])
def test_holes_of_images_are_background_as_in_nnunet(interpolation, filled):
    image = np.random.default_rng(0).normal(50, 5, (1, 12, 12)).astype(np.float32)
    image[:, 0], image[:, 5, 5] = 0, 0
    how = space(ndim=2, channels=(Normalization(scheme=Scheme.masked),)).model_copy(update={"interpolation": Interpolation(interpolation)})
    prepared = prepare_case(Case("c", image, None, Grid.plain((12, 12))), how).image[0]
    assert not prepared[0].any()
    assert (prepared[5, 5] < -5) == filled
    body = ndimage.binary_fill_holes(image[0] != 0) if filled else ndimage.binary_fill_holes(image != 0)[0]  # nnU-Net: (1, y, x)
    inside = image[0][body]
    np.testing.assert_allclose(prepared[body], (inside - inside.mean()) / inside.std(), atol=1e-4)
    assert not prepared[~body].any()


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (
            Case("p7", np.zeros((2, 4, 4, 4)), None, Grid.plain((4, 4, 4))),
            "case 'p7': the case has the wrong number of channels; found 2, expected 1.",
        ),
        (
            Case("p7", np.zeros((1, 4, 4)), None, Grid.plain((4, 4))),
            "case 'p7': the case has the wrong number of dimensions; found 2D, expected 3D.",
        ),
    ],
)
def test_cases_that_do_not_fit(case, text):
    with pytest.raises(DatasetError) as caught:
        prepare_case(case, space())
    assert str(caught.value) == text


def test_absurd_spacing_is_an_error_and_not_a_crash():
    case = Case("p7", np.ones((1, 40, 40, 40), np.int16), None, Grid.plain((40, 40, 40), (1000.0, 1000.0, 1000.0)))
    with pytest.raises(DatasetError, match=r"case 'p7': resampling from 1000 x 1000 x 1000 mm to 1 x 1 x 1 mm .* Correct the spacing"):
        prepare_case(case, space(spacing=(1, 1, 1)))


def test_measure_of_a_known_case():
    image = np.zeros((2, 6, 8, 10), np.float32)
    image[0, 1:5, 2:7, 3:9] = 5
    label = np.zeros((6, 8, 10), np.int16)
    label[1, 2, 3:5] = label[4, 6, 8] = 1
    label[0, 0, 0] = 9
    image[1, label == 1] = [1, 2, 6]
    stats = measure_case(Case("c", image, label, Grid.plain((6, 8, 10), (2.0, 1.0, 0.5))), LABELS, "d1")
    assert (stats.id, stats.digest, stats.shape, stats.spacing, stats.cropped) == ("c", "d1", (6, 8, 10), (2, 1, 0.5), (4, 5, 6))
    assert stats.zeros == 0.75
    assert (stats.channels[1].count, stats.channels[1].mean) == (3, 3.0)
    assert stats.channels[1].quantiles[0::100] == (1.0, 2.0, 6.0)
    a, b = stats.classes
    assert (a.voxels, a.volume, a.components, a.sizes) == (3, 3.0, 2, (1, 1, 1, 2, 2))
    assert a.box == ((1, 5), (2, 7), (3, 9))
    assert (b.voxels, b.components, b.sizes, b.box) == (0, 0, (), ())
    assert stats.ignored == 1
    known = measure_case(Case("c", image, label, Grid.plain((6, 8, 10), (2.0, 1.0, 0.5))), Labels(classes=LABELS.classes), "d1")
    assert known.ignored == 0
    assert '"ignored":1' in stats.model_dump_json()
    assert "ignored" not in known.model_dump_json()  # files of datasets without an ignore value stay what they were


@given(case=worlds())
@settings(max_examples=20)
def test_measure_does_not_depend_on_orientation(case):
    step = Reorient(axes=(1, 2, 0), flips=(True, False, True))
    turned = Case("c", step.apply(case.image), step.apply(case.label), step.grid(case.grid))
    assert measure_case(turned, LABELS, "") == measure_case(case, LABELS, "")


def test_measure_without_label_takes_the_whole_image():
    stats = measure_case(Case("c", np.arange(100, dtype=np.uint8).reshape(1, 10, 10), None, Grid.plain((10, 10))), LABELS, "")
    assert stats.channels[0].count == 100
    assert stats.channels[0].mean == 49.5
    assert [c.voxels for c in stats.classes] == [0, 0]


def test_preparation_key_ignores_augmentation_only():
    one = space()
    assert one.preparation_key() == one.model_copy(update={"augmentation": Augmentation(noise=0)}).preparation_key()
    assert one.preparation_key() != one.model_copy(update={"crop": True}).preparation_key()


@pytest.mark.parametrize(("interpolation", "expected"), [(Interpolation.smooth, 0), (Interpolation.nnunet, 1)])
def test_background_outside_of_the_body_votes_apart_as_in_nnunet(interpolation, expected):
    """Two voxels of class 1, one of background within the body, one outside of it; a tie goes to the nearest voxel."""
    space = GridSettings(
        axes=(0, 1), spacing=(2, 2), crop=True, channels=(Normalization(scheme=Scheme.zscore),), interpolation=interpolation
    )
    image, values = np.array([[[1, 2], [3, 0]]], np.float32), np.array([[1, 1], [0, 0]], np.uint8)
    found = prepare_case(Case("c", image, values, Grid.plain((2, 2)), prior=values), space)
    assert found.prior.tolist() == found.label.tolist() == [[expected]]
