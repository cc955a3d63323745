"""Windows for training (sampling, augmentation) and for inference (stitching, native resampling)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.case import Batch, PreparedCase
from medseg.dataset import LabelClass, Labels
from medseg.domains.grid.augment import augment_batch
from medseg.domains.grid.maps import BlendedMap, ResampledMap
from medseg.domains.grid.sampling import PER_CLASS, sample_window, source_window, window_locations
from medseg.domains.grid.settings import Augmentation, PriorChanges
from medseg.domains.grid.stitch import stitch_case
from medseg.geometry import Grid
from medseg.models.base import Head

LABELS = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2, 3))), order=(1, 2))
STILL = Augmentation(spatial=0, shift=0, elastic=0, contrast=0, brightness=0, gamma=0, noise=0, blur=0, coarse=0)


def prepared(shape, seed=0, channels=1):
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[tuple(n // 3 for n in shape)] = 1
    label[tuple(slice(n - 1 - n // 4, n) for n in shape)] = 3
    image = rng.normal(size=(channels, *shape)).astype(np.float16)
    return PreparedCase("c", image, label, window_locations(label, LABELS), Grid.plain(shape), ())


def whole(dense):
    parts = list(dense.slabs())
    assert [r.start for r, _ in parts] == [0, *(r.stop for r, _ in parts[:-1])]
    return np.concatenate([v for _, v in parts], 1)


def components_of(label, places):
    """How many locations lie in each component of the nonzero voxels."""
    labelled, count = ndimage.label(label, structure=np.ones((3,) * label.ndim))
    return np.bincount(labelled[tuple(places.T)], minlength=count + 1)


def test_locations_are_voxels_of_the_class_and_bounded():
    label = np.random.default_rng(0).integers(0, 4, (30, 30, 30)).astype(np.uint8)
    label[:3] = 0
    first, second = window_locations(label, LABELS)
    assert first.dtype == np.int32
    assert first.shape[1] == second.shape[1] == 3
    assert PER_CLASS / 2 < len(first) <= PER_CLASS
    assert (label[tuple(first.T)] == 1).all()
    assert set(np.unique(label[tuple(second.T)])) == {2, 3}
    again = window_locations(label, LABELS)
    assert all(np.array_equal(a, b) for a, b in zip((first, second), again, strict=True))
    assert [len(places) for places in window_locations(np.zeros((4, 4), np.uint8), LABELS)] == [0, 0]
    assert window_locations(np.zeros((4, 4), np.uint8), LABELS)[0].shape == (0, 2)


@pytest.mark.parametrize("size", [10, 30])
def test_one_component_has_each_voxel_once(size):
    label = np.zeros((40, 40, 40), np.int16)
    label[5 : 5 + size, 3 : 3 + size, 2 : 2 + size] = 1
    places = window_locations(label, LABELS)[0]
    assert len(places) == min(PER_CLASS, size**3) == len(np.unique(places, axis=0))
    assert np.allclose(places.mean(0), np.array([5, 3, 2]) + (size - 1) / 2, atol=0.5)


def test_half_of_the_locations_are_shared_evenly_by_components():
    """One lesion of 27 000 voxels and ten of one voxel: drawn over voxels alone, these would have 0.04 % of the windows."""
    label = np.zeros((40, 40, 60), np.uint8)
    label[4:34, 4:34, 4:34] = 2
    label[5:35:3, 6, 50] = 3
    places = window_locations(label, LABELS)[1]
    large, *small = components_of(label, places)[1:]
    assert len(small) == 10
    share = PER_CLASS // 2 // 11
    assert all(share <= n <= share + 2 for n in small)
    assert large == pytest.approx(PER_CLASS / 2 + share, abs=12)
    assert (label[tuple(places.T)] > 0).all()


@given(seed=st.integers(0, 10**6), density=st.floats(0.001, 0.2), dims=st.sampled_from([2, 3]))
@settings(max_examples=30)
def test_every_component_has_a_location(seed, density, dims):
    shape = (60, 60) if dims == 2 else (20, 18, 16)
    label = (np.random.default_rng(seed).random(shape) < density).astype(np.uint8)
    places = window_locations(label, LABELS)[0]
    counts = components_of(label, places)
    assert counts[0] == 0
    assert (counts[1:] > 0).all()
    assert len(places) <= PER_CLASS


def test_more_components_than_locations():
    label = np.zeros((200, 200), np.uint8)
    label[::2, ::2] = 1  # 10 000 of them
    places = window_locations(label, LABELS)[0]
    assert len(places) == PER_CLASS == len(np.unique(places, axis=0))
    label[60:] = 0
    label[100:] = 1  # now 3001, of which one is large
    places = window_locations(label, LABELS)[0]
    assert len(places) == PER_CLASS
    small = places[places[:, 0] < 100]
    assert len(np.unique(small, axis=0)) == 3000


def test_annotated_voxels_are_the_last_entry():
    """Values that are no class, but annotated, among them background; and an ignored value below 0."""
    for ignore in (255, -1):
        labels = Labels(classes=LABELS.classes, order=(1, 2), ignore=ignore)
        label = np.full((12, 50, 50), ignore, np.int16)
        label[3, 10:20] = 0
        label[3, 12, 5:9] = 1
        *classes, annotated = window_locations(label, labels)
        assert [len(places) for places in classes] == [4, 0]
        assert np.array_equal(annotated, np.argwhere(label != ignore))
        label[:] = 0
        places = window_locations(label, labels)[-1]
        assert len(places) == PER_CLASS == len(np.unique(places, axis=0))
        assert np.allclose(places.mean(0), (np.array(label.shape) - 1) / 2, atol=1)


def test_scribbles_are_in_every_window():
    """Thin lines of annotation in a volume that is ignored otherwise: of windows that lie anywhere most would hold none."""
    labels = Labels(classes=LABELS.classes, order=(1, 2), ignore=9)
    label = np.full((60, 60, 60), 9, np.uint8)
    label[30, 5:50, 20] = 1
    label[31, 20, 3:40] = 0
    case = PreparedCase("c", np.ones((1, 60, 60, 60), np.float16), label, window_locations(label, labels), Grid.plain(label.shape), ())
    found = [
        (sample_window(case, (12,) * 3, (12,) * 3, np.random.default_rng(s), entry)[1] != 9).any() for s in range(40) for entry in (0, 2)
    ]
    assert all(found)
    anywhere = [(sample_window(case, (12,) * 3, (12,) * 3, np.random.default_rng(s), None)[1] != 9).any() for s in range(40)]
    assert np.mean(anywhere) < 0.3


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    window=st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 24)),
    margin=st.integers(0, 3),
    dims=st.sampled_from([2, 3]),
    focus=st.sampled_from([None, 0, 1]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80)
def test_sampled_windows_come_from_the_case(shape, window, margin, dims, focus, seed):
    case = prepared(shape)
    window = window[-dims:]
    source = tuple(n + 2 * margin for n in window)
    image, label, _ = sample_window(case, window, source, np.random.default_rng(seed), focus)
    assert (image.shape, image.dtype) == ((1, *source), np.float32)
    assert (label.shape, label.dtype) == (source, np.int16)
    inner = tuple(slice(margin, margin + n) for n in window)
    if focus is not None:
        wanted = LABELS.classes[focus].values
        if any(len(places) for places in case.locations) and len(case.locations[focus]):
            assert np.isin(label[inner], wanted).any()
    # The window holds as much of the case as can be: no padding where the case is at least as large.
    covered = np.prod([min(n, w) for n, w in zip(shape[-dims:], window, strict=True)])
    assert np.count_nonzero(image[0][inner]) >= covered - np.count_nonzero(case.image == 0)


def test_sampling_repeats_with_the_same_generator_and_varies_with_another():
    case = prepared((30, 30, 30))
    draws = [sample_window(case, (8, 8, 8), (8, 8, 8), np.random.default_rng(s), None)[0] for s in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_without_a_location_the_window_lies_anywhere():
    case = prepared((40, 40, 40))
    empty = PreparedCase("c", case.image, case.label, (case.locations[0][:0], case.locations[1]), case.native, ())
    absent, anywhere = (sample_window(empty, (4, 4, 4), (4, 4, 4), np.random.default_rng(0), focus)[0] for focus in (0, None))
    assert np.array_equal(absent, anywhere)


def test_only_the_window_is_read():
    class Watched(np.ndarray):
        read = 0

        def __getitem__(self, index):
            found = super().__getitem__(index)
            Watched.read += found.size
            return found

    image = np.zeros((1, 100, 100, 100), np.float16).view(Watched)
    case = PreparedCase("c", image, None, (), Grid.plain((100, 100, 100)), ())
    sample_window(case, (10, 10, 10), (12, 12, 12), np.random.default_rng(0), None)
    assert Watched.read <= 12**3


def test_source_window_has_a_margin_only_where_windows_move():
    assert source_window((32, 40, 40), STILL) == (32, 40, 40)
    moved = source_window((32, 40, 40), Augmentation())
    assert all(a >= b and (a - b) % 2 == 0 for a, b in zip(moved, (32, 40, 40), strict=True))
    assert all(a <= 1.25 * b + 2 for a, b in zip(moved, (32, 40, 40), strict=True))
    flat = source_window((8, 256, 256), Augmentation(in_plane=True, rotation=30, shift=0, scale=0, stretch=0))
    assert flat[0] == 8
    assert flat[1] == flat[2] > 256


def batch(window, n=3, channels=2, margin=4, seed=0):
    torch.manual_seed(seed)
    source = tuple(w + 2 * margin for w in window)
    return Batch(
        torch.randn(n, channels, *source), torch.randint(0, 4, (n, *source), dtype=torch.int16), extra={"prompt": torch.zeros(n, 1)}
    )


@pytest.mark.parametrize("window", [(16, 12), (10, 12, 14)])
def test_augmented_windows_have_the_plans_size_and_known_values(window):
    given_ = batch(window)
    how = Augmentation(mirror=tuple(range(len(window))), blur=1, coarse=1, noise=1, gamma=1, elastic=1)
    result = augment_batch(given_, window, how, (1.0,) * len(window), (0, 1, 2, 3), torch.Generator().manual_seed(0))
    assert result.image.shape == (3, 2, *window)
    assert result.label is not None
    assert (result.label.shape, result.label.dtype) == ((3, *window), torch.int16)
    assert torch.isfinite(result.image).all()
    assert set(result.label.unique().tolist()) <= {0, 1, 2, 3}
    assert "prompt" in result.extra


@pytest.mark.parametrize("how", [Augmentation(mirror=(0, 1)), STILL])
def test_augmentation_repeats_with_the_same_seed_and_leaves_its_input_alone(how):
    given_ = batch((16, 12))
    before = given_.image.clone()
    runs = [augment_batch(given_, (16, 12), how, (1.0, 1.0), (0, 1, 2, 3), torch.Generator().manual_seed(s)) for s in (5, 5, 6)]
    assert torch.equal(given_.image, before)
    assert torch.equal(runs[0].image, runs[1].image)
    assert torch.equal(runs[0].label, runs[1].label)
    assert torch.equal(runs[0].image, runs[2].image) == (how is STILL)


def test_augmentation_without_any_change_is_the_middle():
    given_ = batch((10, 12, 14))
    result = augment_batch(given_, (10, 12, 14), STILL, (1.0,) * 3, (0, 1, 2, 3), torch.Generator().manual_seed(0))
    assert torch.equal(result.image, given_.image[..., 4:-4, 4:-4, 4:-4])
    assert torch.equal(result.label, given_.label[..., 4:-4, 4:-4, 4:-4])


@pytest.mark.parametrize("shift", [0.0, 1e-9])
def test_mirroring_is_the_same_in_both_paths_and_hits_image_and_label(shift):
    given_ = batch((6, 8), n=40)
    how = STILL.model_copy(update={"mirror": (1,), "shift": shift})
    result = augment_batch(given_, (6, 8), how, (1.0, 1.0), (0, 1, 2, 3), torch.Generator().manual_seed(0))
    middle, label = given_.image[..., 4:-4, 4:-4], given_.label[..., 4:-4, 4:-4]
    flipped = 0
    for i in range(40):
        turned = torch.equal(result.label[i], label[i].flip(-1))
        flipped += turned
        torch.testing.assert_close(result.image[i], middle[i].flip(-1) if turned else middle[i], atol=1e-3, rtol=0)
        assert turned or torch.equal(result.label[i], label[i])
    assert 8 < flipped < 32


def test_mixed_colours_leave_grey_as_it_is_and_draw_nothing_where_there_are_none():
    how = STILL.model_copy(update={"colour": 1.0})
    colourful = batch((10, 12), n=4, channels=3, margin=0)
    grey = Batch(image=colourful.image[:, :1].expand(-1, 3, -1, -1), label=colourful.label)
    still, mixed, again = (
        augment_batch(b, (10, 12), how, (1.0, 1.0), (0, 1), torch.Generator().manual_seed(0)) for b in (grey, colourful, colourful)
    )
    torch.testing.assert_close(still.image, grey.image)
    assert torch.equal(mixed.image, again.image)
    weights = torch.linalg.lstsq(colourful.image.flatten(2).mT, mixed.image.flatten(2).mT).solution  # (N, from, to)
    torch.testing.assert_close(weights.sum(1), torch.ones(4, 3))
    assert weights.min() > -1e-4
    assert (weights - torch.eye(3)).abs().amax((1, 2)).min() > 0.01  # every window, each in its own way
    assert len(weights[:, 0, 0].unique()) == 4
    before, after = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    augment_batch(colourful, (10, 12), STILL, (1.0, 1.0), (0, 1), before)
    augment_batch(colourful, (10, 12), how, (1.0, 1.0), (0, 1), after)
    assert not torch.equal(before.get_state(), after.get_state())


def test_rotation_in_millimetres_keeps_a_ball_round():
    """On anisotropic samples a ball stays a ball (an ellipsoid in samples) under any rotation."""
    size, ratio = (17, 51, 51), (3.0, 1.0, 1.0)
    z, y, x = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in size], indexing="ij")
    ball = ((3 * z) ** 2 + y**2 + x**2 < 15**2).to(torch.int16)
    how = STILL.model_copy(update={"spatial": 1.0, "rotation": 180.0, "scale": 0.0, "stretch": 0.0})
    given_ = Batch(ball[None, None].float().repeat(4, 1, 1, 1, 1), ball[None].repeat(4, 1, 1, 1))

    def overlaps(proportions):
        moved = augment_batch(given_, size, how, proportions, (0, 1), torch.Generator().manual_seed(0)).label
        return 2 * (moved * ball).sum((1, 2, 3)) / (moved.sum((1, 2, 3)) + ball.sum())

    assert overlaps(ratio).min() > 0.95  # not 1: slices of 3 mm
    assert overlaps((1.0, 1.0, 1.0)).min() < 0.7


def test_in_plane_augmentation_leaves_slices_apart():
    given_ = batch((6, 20, 20), n=2, channels=1, margin=2)
    given_.image[...] = torch.arange(10.0)[:, None, None]
    how = STILL.model_copy(update={"spatial": 1.0, "rotation": 20.0, "scale": 0.0, "stretch": 0.0, "elastic": 1.0, "in_plane": True})
    result = augment_batch(given_, (6, 20, 20), how, (1.0,) * 3, (0, 1, 2, 3), torch.Generator().manual_seed(0))
    expected = torch.arange(2.0, 8)[None, None, :, None, None].expand(2, 1, 6, 4, 4)
    torch.testing.assert_close(result.image[..., 8:12, 8:12], expected, atol=1e-4, rtol=0)


def echo(windows):
    return {"echo": windows.image, "twice": torch.cat([windows.image[:, :1]] * 2, 1) * 2}


HEADS = (Head("echo", 1), Head("twice", 2))


@given(
    window=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    factor=st.tuples(st.floats(0.2, 3), st.floats(0.2, 3), st.floats(0.2, 3)),
    dims=st.sampled_from([2, 3]),
    overlap=st.sampled_from([0.0, 0.5]),
    batch_size=st.integers(1, 5),
    on_disk=st.booleans(),
)
@settings(max_examples=50)
def test_stitching_what_went_in_gives_it_back_at_any_size(window, factor, dims, overlap, batch_size, on_disk):
    shape = tuple(max(1, round(w * f)) for w, f in zip(window, factor, strict=True))
    case = prepared(shape)
    maps = stitch_case(case, echo, HEADS, window[-dims:], overlap, batch_size, 0 if on_disk else 1e9)
    assert maps["twice"].shape == (2, *shape)
    np.testing.assert_allclose(whole(maps["echo"]), case.image.astype(np.float32), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole(maps["twice"])[1], 2 * case.image[0].astype(np.float32), rtol=1e-4, atol=1e-5)


def test_stitching_is_the_weighted_mean_of_windows():
    """Two windows with constant outputs 0 and 1: a smooth step from one to the other."""
    case = PreparedCase("c", np.zeros((1, 12, 8), np.float16), None, (), Grid.plain((12, 8)), ())
    calls = iter((0.0, 1.0))
    maps = stitch_case(case, lambda w: {"h": torch.full((1, 1, 8, 8), next(calls))}, (Head("h", 1),), (8, 8), 0.5, 1, 1e9)
    line = whole(maps["h"])[0, :, 3]
    assert (line[:4] == 0).all()
    np.testing.assert_allclose(line[8:], 1, rtol=1e-6)
    assert (np.diff(line[3:9]) > 0).all()
    np.testing.assert_allclose(line[4:8] + line[4:8][::-1], 1, atol=1e-6)


def test_windows_outside_a_small_case_are_zero_and_centred():
    seen = []
    case = PreparedCase("c", np.ones((1, 2, 3), np.float16), None, (), Grid.plain((2, 3)), ())
    stitch_case(case, lambda w: seen.append(w.image) or {"echo": w.image}, (Head("echo", 1),), (4, 5), 0.5, 2, 1e9)
    assert len(seen) == 1
    expected = torch.zeros(1, 1, 4, 5)
    expected[..., 1:3, 1:4] = 1
    assert torch.equal(seen[0], expected)
    assert seen[0].dtype == torch.float32


@given(shape=st.tuples(st.integers(1, 12), st.integers(1, 8)), target=st.tuples(st.integers(1, 20), st.integers(1, 12)))
@settings(max_examples=30)
def test_resampled_maps_keep_probabilities(shape, target):
    values = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    values /= values.sum(0)
    source = BlendedMap(values, (np.ones(shape[0]), np.ones(shape[1])))
    dense = ResampledMap(source, target)
    assert dense.shape == (3, *target)
    np.testing.assert_allclose(whole(dense).sum(0), 1, atol=1e-5)
    assert whole(dense).shape == (3, *target)
    rounded = whole(ResampledMap(source, target, half=True))
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, whole(dense).astype(np.float16))


@pytest.mark.parametrize("window", [(16, 12), (10, 12, 14)])
def test_priors_move_as_labels_do(window):
    given_ = batch(window)
    given_.prior = given_.label.clone()
    how = Augmentation(mirror=tuple(range(len(window))), spatial=1, elastic=1)
    moved = augment_batch(given_, window, how, (1.0,) * len(window), (0, 1, 2, 3), torch.Generator().manual_seed(3))
    assert torch.equal(moved.prior, moved.label)
    still = augment_batch(given_, window, STILL, (1.0,) * len(window), (0, 1, 2, 3), torch.Generator().manual_seed(3))
    assert torch.equal(still.prior, still.label)
    damaged = augment_batch(
        given_, window, how, (1.0,) * len(window), (0, 1, 2, 3), torch.Generator().manual_seed(3), PriorChanges(change=1, lose=1)
    )
    assert torch.equal(damaged.label, moved.label)
    assert torch.equal(damaged.image, moved.image)
    assert not torch.equal(damaged.prior, moved.prior)


def test_priors_are_cut_where_labels_are():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (20, 18, 16)).astype(np.uint8)
    image = label[None].astype(np.float16)
    case = PreparedCase("c", image, label, (), Grid.plain(label.shape), (), label)
    for seed in range(5):
        window = sample_window(case, (8, 24, 8), (10, 26, 10), np.random.default_rng(seed), None)
        np.testing.assert_array_equal(window.prior, window.label)
        np.testing.assert_array_equal(window.image[0], window.label)
    assert sample_window(prepared((9, 9, 9)), (4, 4, 4), (4, 4, 4), np.random.default_rng(0), None).prior is None
