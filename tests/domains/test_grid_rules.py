"""The published rules, on fingerprints made by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medseg.dataset import Channel, LabelClass, Labels, Modality
from medseg.device import Machine
from medseg.domains.grid import GridDomain, rules
from medseg.domains.grid.settings import Augmentation, GridSettings, Normalization, Scheme
from medseg.errors import PlanError
from medseg.fingerprint import QUANTILES, CaseStats, ClassStats, Fingerprint, Intensities, ObjectStats
from medseg.plans import DataPlan, InferencePlan, Plan

CPU, GPU = Machine("cpu", 8), Machine("cuda", 24)


def intensities(low=0.0, high=200.0):
    return Intensities(count=1000, mean=(low + high) / 2, std=30.0, quantiles=tuple(np.linspace(low, high, QUANTILES).tolist()))


def fingerprint(shapes, spacings, modality=Modality.mr, cropped=None, names=("tumour",), seen=None):
    ndim = len(shapes[0])
    cases = tuple(
        CaseStats(
            id=f"c{i}",
            digest="d",
            shape=shape,
            spacing=spacing,
            cropped=(cropped or shapes)[i],
            zeros=0.0,
            channels=(seen or intensities(),),
            classes=tuple(ClassStats(voxels=5, volume=5, components=1) for _ in names),
        )
        for i, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True))
    )
    return Fingerprint(
        dataset="x",
        digest="d",
        ndim=ndim,
        channels=(Channel(name="image", modality=modality),),
        labels=Labels(classes=tuple(LabelClass(name=n, values=(i + 1,)) for i, n in enumerate(names))),
        intensities=(seen or intensities(),),
        cases=cases,
    )


def test_spacing_is_the_median_axis_by_axis():
    decided = rules.target_spacing([(1, 2, 3), (1.2, 2, 3), (9, 9, 9)], [(40, 40, 40)] * 3)
    assert decided.value == (1.2, 2, 3)
    assert "median spacing of 3 cases" in decided.because


def test_anisotropic_data_takes_the_tenth_percentile_of_the_coarse_axis():
    spacings = [(s, 1.0, 1.0) for s in (3.0, 5.0, 5.0, 5.0, 5.0)]
    decided = rules.target_spacing(spacings, [(20, 256, 256)] * 5)
    assert decided.value == (3.8, 1.0, 1.0)
    assert "10th percentile (3.8 mm)" in decided.because
    # Coarse in mm, but with many slices all the same: stays the median.
    assert rules.target_spacing(spacings, [(200, 256, 256)] * 5).value == (5.0, 1.0, 1.0)
    # Never finer than the other axes.
    mixed = [(s, 1.0, 1.0) for s in (0.5, 0.5, 5.0, 5.0, 5.0)]
    assert rules.target_spacing(mixed, [(20, 256, 256)] * 5).value == (1.0, 1.0, 1.0)


def test_the_coarsest_axis_comes_first():
    print_ = fingerprint([(256, 20, 256)] * 3, [(1.0, 6.0, 1.0)] * 3)
    assert rules.axis_order(print_.cases).value == (1, 0, 2)
    three_d, two_d = GridDomain.drafts(print_, GPU)
    assert isinstance(three_d.space, GridSettings)
    assert isinstance(two_d.space, GridSettings)
    assert three_d.space.axes == (1, 0, 2)
    assert three_d.space.spacing == (6.0, 1.0, 1.0)
    assert two_d.space.spacing == (None, 1.0, 1.0)
    assert two_d.spacing == (1.0, 1.0)
    assert three_d.windows[0] == (24, 256, 256)
    assert three_d.space.augmentation.in_plane
    assert rules.axis_order(fingerprint([(9, 9, 9)], [(1.0, 1.0, 1.0)]).cases).value == (0, 1, 2)


@pytest.mark.parametrize("modality", list(Modality))
def test_normalisation_by_modality(modality):
    seen = intensities(-100, 300)
    how = rules.normalization(Channel(name="x", modality=modality), seen, 1.0, False).value
    if modality is Modality.ct:
        assert how == Normalization(scheme=Scheme.fixed, low=-98, high=298, mean=100, std=30)
    elif modality is Modality.rgb:
        assert how == Normalization(scheme=Scheme.fixed, low=0, high=65535, mean=32767.5, std=16383.75)
    else:
        assert how == Normalization(scheme=Scheme.zscore)
        assert rules.normalization(Channel(name="x", modality=modality), seen, 0.7, False).value == Normalization(scheme=Scheme.masked)


def test_colours_of_objects_follow_each_image():
    decided = rules.normalization(Channel(name="red", modality=Modality.rgb), intensities(0, 255), 1.0, True)
    assert decided.value == Normalization(scheme=Scheme.spread)
    assert "stain and exposure" in decided.because
    ct = Channel(name="ct", modality=Modality.ct)
    assert rules.normalization(ct, intensities(0, 255), 1.0, True) == rules.normalization(ct, intensities(0, 255), 1.0, False)


@pytest.mark.parametrize(("top", "high"), [(1.0, 1.0), (200.0, 255.0), (300.0, 65535.0), (70000.0, 70000.0)])
def test_colour_range_follows_the_depth_of_the_files(top, high):
    how = rules.normalization(Channel(name="red", modality=Modality.rgb), intensities(0, top), 1.0, False).value
    assert (how.low, how.high, how.mean, how.std) == (0, high, high / 2, high / 4)


def test_crop_where_it_saves_something():
    full, most = [(100, 100, 100)] * 3, [(90, 90, 90)] * 3
    assert rules.crop_to_nonzero(fingerprint(full, [(1, 1, 1)] * 3, cropped=most).cases).value
    decided = rules.crop_to_nonzero(fingerprint(full, [(1, 1, 1)] * 3).cases)
    assert not decided.value
    assert "100%" in decided.because


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (("liver", "tumour"), (0, 1, 2)),
        (("left kidney", "right kidney"), (0, 1)),
        (("kidney_L", "kidney_R"), (0, 1)),
        (("LV", "RV"), (0, 1, 2)),
        (("bright", "cleft"), (0, 1, 2)),
        (("Anterior", "Posterior"), (0, 2)),
        (("LeftUpperLobe",), (1,)),
        (("vertebra L1", "vertebra L5", "L5_S1"), (0, 1, 2)),
        (("R1", "L2 nerve"), (0, 1, 2)),
        (("left1", "right2"), (0, 1)),
        (("Kidney L", "Kidney R"), (0, 1)),
        (("lKidney", "rKidney"), (0, 1)),
        (("LKidney", "liver"), (0, 1)),
        (("kidneyLeft",), (0, 1)),
        (("hippocampus_lh",), (0, 1)),
        (("ctx-rh-insula",), (0, 1)),
        (("L. hippocampus",), (0, 1)),
        (("Left-Cerebral-White-Matter",), (0, 1)),
        (("RIGHT ATRIUM",), (0, 1)),
        (("vertebra_L1",), (0, 1, 2)),
        (("vertebrae_L5", "rib T12"), (0, 1, 2)),
        (("MRI", "Lung", "Rectum"), (0, 1, 2)),
        (("background tissue", "leftover", "upright"), (0, 1, 2)),
        (("lung_upper_lobe_left",), (1,)),
    ],
)
def test_mirroring_keeps_sides_apart(names, axes):
    labels = fingerprint([(9, 9, 9)], [(1, 1, 1)], names=names).labels
    assert rules.mirror_axes(labels, (0, 1, 2), 3, "cuda").value == axes


def test_mirroring_follows_the_order_of_axes():
    labels = fingerprint([(9, 9, 9)], [(1, 1, 1)], names=("left lung",)).labels
    assert rules.mirror_axes(labels, (2, 0, 1), 3, "cuda").value == (1, 2)
    assert rules.mirror_axes(labels, (2, 0, 1), 2, "cuda").value == (0, 1)
    assert rules.mirror_axes(labels, (0, 1, 2), 2, "mps").value == (0,)
    assert rules.mirror_axes(labels, (0, 1), 2, "cpu").value == (0,)
    upper = fingerprint([(9, 9)], [(1, 1)], names=("upper lip",)).labels
    assert rules.mirror_axes(upper, (0, 1), 2, "cpu").value == (1,)


def test_volumes_are_not_mirrored_on_a_cpu_but_images_are():
    volumes = fingerprint([(40, 90, 90)] * 3, [(1.0, 1.0, 1.0)] * 3)
    assert [d.mirror for d in GridDomain.drafts(volumes, CPU)] == [(), ()]
    assert [d.mirror for d in GridDomain.drafts(volumes, GPU)] == [(0, 1, 2), (0, 1)]


def with_objects(lengths, spread=1.0):
    """A case for each length of its typical object of each class."""
    made = fingerprint([(64, 64)] * len(lengths), [(1.0, 1.0)] * len(lengths), names=tuple(lengths[0]))
    cases = []
    for case, typical in zip(made.cases, lengths, strict=True):
        found = [ObjectStats(name=n, count=9, extents=(v / spread,) * 3 + (v,) + (v * spread,) * 3) for n, v in typical.items()]
        cases.append(case.model_copy(update={"objects": tuple(found)}))
    return made.model_copy(update={"cases": tuple(cases)})


def test_zooms_are_larger_where_objects_come_at_different_scales():
    assert rules.zoom(fingerprint([(64, 64)] * 20, [(1.0, 1.0)] * 20)) is rules.USUAL_ZOOM
    alike = [{"cell": 10.0}] * 20
    assert rules.zoom(with_objects(alike, spread=9.0)) is rules.USUAL_ZOOM  # small and large in every case
    differ = [{"cell": length} for length in np.geomspace(5, 15, 20)]
    found = rules.zoom(with_objects(differ))
    assert found.value == round(np.log(np.divide(*np.quantile(np.geomspace(5, 15, 20), (0.95, 0.05), method="nearest"))) / 4, 2) == 0.25
    assert found.because == "zooms of 25%, because the typical object of nine cases in ten differs 2.7-fold in length"
    assert rules.zoom(with_objects(differ[::3])) is rules.USUAL_ZOOM  # too few cases
    far = [{"cell": length} for length in np.geomspace(1, 100, 20)]
    assert rules.zoom(with_objects(far)).value == 0.4
    one_of_two = [{"cell": length, "organ": 10.0} for length in np.geomspace(1, 100, 20)]
    assert rules.zoom(with_objects(one_of_two)) is rules.USUAL_ZOOM  # images are of one scale
    (draft,) = GridDomain.drafts(with_objects(differ), CPU)
    assert draft.space.augmentation.scale == 0.25
    assert draft.reasons["space.augmentation"].startswith("Rotations to 30 degrees, zooms of 25%, because")


def test_colours_are_mixed_where_stains_of_objects_differ():
    spread, fixed = Normalization(scheme=Scheme.spread), Normalization(scheme=Scheme.zscore)
    rgb = [Channel(name=n, modality=Modality.rgb) for n in ("red", "green", "blue")]
    gray = [Channel(name=n, modality=Modality.gray) for n in ("dapi", "actin", "tubulin")]
    assert rules.colours(rgb, [spread] * 3).value == 0.5
    assert rules.colours(rgb, [fixed] * 3) is rules.NO_COLOURS
    assert rules.colours(gray, [spread] * 3) is rules.NO_COLOURS  # each shows something else


def test_small_volumes_are_seen_whole():
    decided = rules.window_candidates([(36, 50, 35)] * 9 + [(46, 58, 43)], (1, 1, 1), 128**3)
    assert decided.value[0] == (40, 56, 40)
    assert "seen whole" in decided.because


def test_images_of_very_different_sizes_are_not_mostly_padding():
    """A window for three quarters of them would be filled to 65 %, one for half of them to 100 %."""
    decided = rules.window_candidates([(256, 256)] * 6 + [(500, 500)] * 4, (1, 1), 768**2)
    assert decided.value[0] == (256, 256)
    assert "holds 50 %" in decided.because
    assert "more than 25% padding" in decided.because
    alike = rules.window_candidates([(256, 256)] * 6 + [(288, 288)] * 4, (1, 1), 768**2)
    assert alike.value[0] == (288, 288)
    assert "holds 75 %" in alike.because


def test_large_volumes_start_isotropic_in_mm_within_the_median():
    first = rules.window_candidates([(400, 512, 512)] * 3, (1.0, 0.8, 0.8), 128**3).value[0]
    extent = np.array(first) * (1.0, 0.8, 0.8)
    assert extent.max() / extent.min() < 1.15
    assert 0.8 * 128**3 < np.prod(first) <= 1.1 * 128**3
    # What a thin axis does not use goes to the others.
    thin = rules.window_candidates([(24, 512, 512)] * 3, (5.0, 0.5, 0.5), 128**3).value[0]
    assert thin[0] == 24
    assert min(thin[1:]) >= 280
    assert abs(thin[1] - thin[2]) <= rules.QUANTUM


@given(
    shape=st.lists(st.integers(1, 600), min_size=2, max_size=3),
    spacing=st.tuples(st.floats(0.2, 8), st.floats(0.2, 8), st.floats(0.2, 8)),
    exponent=st.integers(15, 24),
)
@example(shape=[25, 25, 33], spacing=(4.0, 0.25, 6.0), exponent=15)
@settings(max_examples=100)
def test_candidates_shrink_one_axis_at_a_time(shape, spacing, exponent):
    windows = rules.window_candidates([tuple(shape)], spacing[: len(shape)], 2**exponent).value
    assert len(set(windows)) == len(windows)
    assert all(n >= 1 for w in windows for n in w)
    assert all(n < m + rules.QUANTUM for n, m in zip(windows[0], shape, strict=True))
    for large, small in itertools.pairwise(windows):
        changed = [a for a in range(len(shape)) if large[a] != small[a]]
        assert len(changed) == 1
        assert small[changed[0]] < large[changed[0]]
    assert max(windows[-1]) <= (32 if len(shape) == 3 else 64)


def test_2d_images_give_one_draft():
    (draft,) = GridDomain.drafts(fingerprint([(480, 640)] * 4, [(1.0, 1.0)] * 4, Modality.rgb), CPU)
    assert (draft.name, draft.mirror, draft.shape) == ("2d", (0, 1), (480, 640))
    assert draft.samples == 4 * 480 * 640
    assert len(draft.windows[0]) == 2


def test_volumes_give_3d_and_2d_and_prefer_3d_unless_flat():
    by_name = {d.name: d for d in GridDomain.drafts(fingerprint([(30, 90, 90)] * 4, [(3.0, 1.0, 1.0)] * 4), CPU)}
    assert by_name["3d"].preference > by_name["2d"].preference
    by_name = {d.name: d for d in GridDomain.drafts(fingerprint([(6, 90, 90)] * 4, [(8.0, 1.0, 1.0)] * 4), CPU)}
    assert by_name["3d"].preference < by_name["2d"].preference
    assert "only 6 slices" in by_name["2d"].because
    assert [d.name for d in GridDomain.drafts(fingerprint([(1, 90, 90)] * 4, [(8.0, 1.0, 1.0)] * 4), CPU)] == ["2d"]


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_drafts_are_deterministic_and_every_setting_has_a_reason(machine):
    seen = fingerprint([(60, 200, 180), (50, 220, 190), (80, 180, 170)], [(3.0, 0.8, 0.8)] * 3)
    first, again = GridDomain.drafts(seen, machine), GridDomain.drafts(seen, machine)
    assert first == again
    for draft in first:
        for field in ("axes", "spacing", "crop", "channels.0", "augmentation"):
            assert draft.reasons[f"space.{field}"]
        assert draft.reasons["window"]
        assert draft.reasons["inference.mirror"]
        assert draft.space.augmentation.mirror == draft.mirror


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"spacing": [1, -1, 1]}, "spacing must be positive"),
        ({"axes": [0, 1, 1]}, "axes must be a permutation of 0 to 2"),
        ({"spacing": [1, 1]}, "spacing has 2 values for 3 axes"),
        ({"spacng": [1, 1, 1]}, "Did you mean 'spacing'?"),
        ({"channels": [{"scheme": "fixed"}]}, "needs mean and std, and low and high or neither"),
        ({"channels": [{"scheme": "zscore", "mean": 3}]}, "belong to the scheme 'fixed'"),
        ({"channels": [{"scheme": "fixed", "low": 5, "high": 5, "mean": 0, "std": 1}]}, "low (5.0) must be below high (5.0)"),
        ({"augmentation": {"noise": 1.5}}, "less than or equal to 1"),
        ({"augmentation": {"blur_size": [2, 1]}}, "blur_size must rise"),
        ({"augmentation": {"coarse_size": [0.5, 1.5]}}, "coarse_size must rise"),
    ],
)
def test_impossible_settings(change, text):
    good = {"kind": "grid", "axes": [0, 1, 2], "spacing": [1, 1, None], "crop": True, "channels": [{"scheme": "zscore"}]}
    GridSettings.parse(good, "plan")
    with pytest.raises(PlanError) as caught:
        GridSettings.parse(good | change, "plan")
    assert text in str(caught.value)


def test_defaults_are_a_valid_augmentation():
    assert Augmentation() == Augmentation.model_validate(Augmentation().model_dump())


def test_large_volumes_offer_a_coarser_configuration():
    huge = fingerprint([(400, 512, 512)] * 3, [(1.0, 0.8, 0.8)] * 3, Modality.ct)
    names = {d.name: d for d in GridDomain.drafts(huge, GPU)}
    assert list(names) == ["3d", "3d_low", "3d_cascade", "2d"]
    coarse = names["3d_low"]
    assert 0.9 * 4 * rules.TYPICAL < np.prod(coarse.shape) <= 4 * rules.TYPICAL * 1.01
    assert coarse.spacing[0] / coarse.spacing[1] == pytest.approx(1.25, abs=0.01)
    assert names["3d"].preference > coarse.preference > names["2d"].preference
    assert max(GridDomain.drafts(huge, CPU), key=lambda d: d.preference).name == "3d_low"
    # Fine axes coarsen first.
    value = rules.low_resolution((4.0, 0.5, 0.5), (100, 800, 800)).value
    assert value[0] == 4.0
    assert value[1] == value[2] > 1


def test_few_candidates_are_enough():
    for machine in (CPU, GPU):
        for draft in GridDomain.drafts(fingerprint([(400, 512, 512)] * 3, [(1.0, 0.8, 0.8)] * 3, Modality.ct), machine):
            assert len(draft.windows) <= 30
            voxels = [float(np.prod(w)) for w in draft.windows]
            assert all(b / a >= 0.65 for a, b in itertools.pairwise(voxels))


def plan(**change):
    """A plan with just what the domain looks at."""
    space = {"kind": "grid", "axes": [0, 1, 2], "spacing": [1, 1, 1], "crop": False, "channels": [{"scheme": "zscore"}]}
    space["augmentation"] = {"mirror": [0, 2]}
    seen = fingerprint([(9, 9, 9)], [(1.0, 1.0, 1.0)])
    return Plan.model_construct(
        window=change.get("window", (8, 8, 8)),
        space=GridSettings.parse(space | change.get("space", {}), "plan"),
        data=DataPlan(name="x", digest="d", ndim=change.get("ndim", 3), channels=seen.channels * change.get("n", 1), labels=seen.labels),
        inference=InferencePlan(overlap=0.5, mirror=change.get("mirror", (0,))),
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"window": (8, 8)}, "space.augmentation.mirror must name different axes of the window (0 to 1), got [0, 2]"),
        ({"window": (8,)}, "window has 1 axes; a 3D dataset takes 2 or 3"),
        ({"window": (8, 8, 8, 8)}, "window has 4 axes; a 3D dataset takes 2 or 3"),
        ({"ndim": 2}, "space.axes has 3 axes but the data has 2 dimensions"),
        ({"n": 2}, "space.channels normalises 1 channels but the data has 2"),
        ({"mirror": (0, 0)}, "inference.mirror must name different axes of the window (0 to 2), got [0, 0]"),
        ({"mirror": (3,)}, "inference.mirror must name different axes of the window (0 to 2), got [3]"),
        ({"mirror": (0, 1)}, "inference.mirror flips axes [1] that training never flips"),
    ],
)
def test_impossible_plans(change, text):
    found = GridDomain.check(plan(**change))
    assert found.startswith(text)
    assert bool(found) == bool(text)
