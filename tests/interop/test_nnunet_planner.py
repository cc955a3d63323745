"""nnU-Net's planner, against plans that nnU-Net 2.8.1 made (`nnunet_plans.json`, recorded by `benchmarks/nnunet_planner.py --golden`)."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import PlanError
from medseg.interop.nnunet.maps import feature_map_values, pooling
from medseg.interop.nnunet.planner import make_plans
from medseg.interop.nnunet.presets import DEFAULT, PRESETS, RESENC_L, RESENC_M, Preset
from medseg.interop.nnunet.records import Configuration, NnUNetDataset, NnUNetFingerprint, NnUNetPlans

GOLDEN = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text())


def records(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    cases: int = 20,
    channels: tuple[str, ...] = ("CT",),
    classes: int = 2,
    left: float = 1,
) -> tuple[NnUNetDataset, NnUNetFingerprint]:
    """A dataset of equal cases."""
    labels = {"background": 0, **{f"class {i}": i for i in range(1, classes + 1)}}
    names = {str(i): name for i, name in enumerate(channels)}
    seen = {"mean": 1.0, "median": 1.0, "std": 1.0, "min": 0.0, "max": 2.0, "percentile_00_5": 0.0, "percentile_99_5": 2.0}
    dataset = {"channel_names": names, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    fingerprint = {
        "spacings": [spacing] * cases,
        "shapes_after_crop": [shape] * cases,
        "foreground_intensity_properties_per_channel": dict.fromkeys(names, seen),
        "median_relative_size_after_cropping": left,
    }
    return NnUNetDataset.parse(dataset, "dataset.json"), NnUNetFingerprint.parse(fingerprint, "dataset_fingerprint.json")


def planned(*args: Any, preset: Preset = DEFAULT, **kwargs: Any) -> NnUNetPlans:
    return make_plans(*records(*args, **kwargs), name="Dataset001_Test", preset=preset)


@pytest.mark.parametrize("case", GOLDEN, ids=[f"{case['group']}-{case['preset']}" for case in GOLDEN])
def test_plans_are_those_of_nnunet_to_the_byte(case: dict[str, Any], tmp_path: Path) -> None:
    dataset = NnUNetDataset.parse(case["dataset"], "dataset.json")
    fingerprint = NnUNetFingerprint.parse(case["fingerprint"], "dataset_fingerprint.json")
    plans = make_plans(dataset, fingerprint, name=case["name"], preset=PRESETS[case["preset"]])
    plans.write(tmp_path / "plans.json")
    assert (tmp_path / "plans.json").read_text() == json.dumps(case["plans"], indent=4)


@pytest.mark.parametrize(
    ("shape", "spacing", "cases", "patch", "batch"),
    [
        ((138, 169, 138), (1, 1, 1), 484, (128, 128, 128), 2),
        ((115, 320, 232), (1.37, 1.25, 1.25), 20, (80, 192, 160), 2),
        ((482, 512, 512), (1, 0.77, 0.77), 131, (128, 128, 128), 2),
        ((36, 50, 35), (1, 1, 1), 260, (40, 56, 40), 9),
        ((20, 320, 319), (3.6, 0.62, 0.62), 32, (20, 320, 256), 2),
        ((252, 512, 512), (1.24, 0.79, 0.79), 63, (80, 192, 160), 2),
        ((93, 512, 512), (2.5, 0.8, 0.8), 281, (40, 224, 224), 2),
    ],
)
def test_published_windows_of_the_decathlon(
    shape: tuple[int, ...], spacing: tuple[float, ...], cases: int, patch: tuple[int, ...], batch: int
) -> None:
    found = planned(shape, spacing, cases).configuration("3d_fullres")
    assert (found.patch_size, found.batch_size) == (patch, batch)


def test_anisotropic_topology() -> None:
    found = planned((20, 320, 319), (3.6, 0.62, 0.62), 32).configuration("3d_fullres").architecture.arch_kwargs
    assert found.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert found.kernel_sizes == ((1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * 5)
    assert found.features_per_stage == (32, 64, 128, 256, 320, 320, 320)


def test_feature_maps_of_nnunets_own_examples() -> None:
    """The figures that nnU-Net's source gives for its residual networks, with 3 classes and, other than in planning, a head at every stage."""
    cube, square = pooling((1, 1, 1), (128,) * 3), pooling((1, 1), (512,) * 2)
    assert (cube.divisor, square.divisor) == ((32,) * 3, (128,) * 2)
    assert feature_map_values(cube, RESENC_M, 3) + 3 * sum(n**3 for n in (64, 32, 16, 8)) == 558319104
    seven = replace(square, strides=square.strides[:7], kernels=square.kernels[:7])
    assert feature_map_values(seven, RESENC_M, 3) + 3 * sum(n**2 for n in (256, 128, 64, 32, 16)) == 129793792


def test_cascade_only_where_a_window_sees_little() -> None:
    large = planned((482, 512, 512), (1, 0.77, 0.77), 131)
    assert list(large.configurations) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    low, cascade = large.configuration("3d_lowres"), large.configuration("3d_cascade_fullres")
    assert (low.next_stage, low.batch_dice) == ("3d_cascade_fullres", False)
    assert (cascade.previous_stage, cascade.batch_dice) == ("3d_lowres", True)
    seen = math.prod(low.patch_size) / math.prod(low.median_image_size_in_voxels)
    assert 0.25 <= seen < 0.25 * 1.03**3
    assert cascade.patch_size == large.configuration("3d_fullres").patch_size
    small = planned((64, 64, 64), (1, 1, 1))
    assert list(small.configurations) == ["2d", "3d_fullres"]
    assert not small.configuration("3d_fullres").batch_dice


def test_flat_images_have_2d_only() -> None:
    plans = planned((1, 800, 600), (999, 1, 1), channels=("rgb_to_0_1",) * 3)
    assert list(plans.configurations) == ["2d"]
    assert plans.configuration("2d").normalization_schemes == ("RGBTo01Normalization",) * 3


def test_coarse_axis_comes_first_and_takes_its_tenth_percentile() -> None:
    dataset, fingerprint = records((256, 256, 10), (1.5, 1.5, 10), 20)
    spacings = ((1.5, 1.5, 5), *fingerprint.spacings[3:], (1.5, 1.5, 5), (1.5, 1.5, 5))
    plans = make_plans(dataset, fingerprint.model_copy(update={"spacings": spacings}), name="Dataset001_Test")
    assert plans.transpose_forward == (2, 0, 1)
    assert plans.transpose_backward == (1, 2, 0)
    assert plans.original_median_spacing_after_transp == (10, 1.5, 1.5)
    assert plans.configuration("3d_fullres").spacing == (5, 1.5, 1.5)


def test_normalisation_by_channel_name_and_mask() -> None:
    names = ("CT", "cT", "CT1", "nonorm", "T2", "Rescale_to_0_1")
    schemes = (
        "CTNormalization",
        "CTNormalization",
        "ZScoreNormalization",
        "NoNormalization",
        "ZScoreNormalization",
        "RescaleTo01Normalization",
    )
    cropped = planned((64, 64, 64), (1, 1, 1), channels=names, left=0.7499).configuration("2d")
    assert cropped.normalization_schemes == schemes
    assert cropped.use_mask_for_norm == (False, False, True, False, True, False)
    assert not any(planned((64, 64, 64), (1, 1, 1), channels=names, left=0.75).configuration("2d").use_mask_for_norm)


def test_batch_holds_a_twentieth_of_the_dataset_but_two_windows() -> None:
    batches = [planned((36, 50, 35), (1, 1, 1), cases).configuration("3d_fullres").batch_size for cases in (10, 260, 2000)]
    assert batches == [2, 9, 58]  # at least two, a twentieth, the memory
    assert planned((36, 50, 35), (1, 1, 1), 10, preset=RESENC_M).configuration("3d_fullres").batch_size == 7  # the whole dataset


def test_memory_is_a_parameter() -> None:
    half, usual, double = (
        planned((500, 500, 500), (1, 1, 1), preset=replace(RESENC_L, memory=memory)).configuration("3d_fullres").patch_size
        for memory in (12, 24, 48)
    )
    assert (half, usual, double) == ((160, 160, 128), (192, 192, 192), (256, 256, 224))


@pytest.mark.parametrize(
    ("ending", "asked", "spacing", "reader"),
    [
        (".nii.gz", None, (1, 1, 1), "SimpleITKIO"),
        (".NII", None, (1, 1, 1), "NibabelIO"),
        (".nii.gz", "NibabelIOWithReorient", (1, 1, 1), "NibabelIOWithReorient"),
        (".nii.gz", "None", (1, 1, 1), "SimpleITKIO"),
        (".mha", "NoSuchIO", (1, 1, 1), "SimpleITKIO"),
        (".tif", None, (999, 1, 1), "NaturalImage2DIO"),
        (".tif", None, (3, 1, 1), "Tiff3DIO"),
        (".tiff", None, (3, 1, 1), "Tiff3DIO"),
    ],
)
def test_reader(ending: str, asked: str | None, spacing: tuple[float, ...], reader: str) -> None:
    dataset, fingerprint = records((1, 64, 64), spacing)
    dataset = dataset.model_copy(update={"file_ending": ending, "overwrite_image_reader_writer": asked})
    assert make_plans(dataset, fingerprint, name="Dataset001_Test").image_reader_writer == reader


def test_files_that_nnunet_does_not_read() -> None:
    dataset, fingerprint = records((64, 64, 64), (1, 1, 1))
    with pytest.raises(PlanError, match=r"dataset.json, field 'file_ending': nnU-Net reads no such files; found .jpg, expected .png, .bmp"):
        make_plans(dataset.model_copy(update={"file_ending": ".jpg"}), fingerprint, name="Dataset001_Test")


def test_spacings_for_which_the_rules_give_no_network() -> None:
    with pytest.raises(PlanError, match=r"found a median case of 64x100000x90 voxels .* and 1[5-9] stages, expected .* at most 14 stages"):
        planned((64, 100_000, 90), (1, 1e-4, 1))


axis = st.tuples(st.integers(1, 700), st.floats(0.1, 12))


@settings(max_examples=60)
@given(first=axis, second=axis, third=axis, classes=st.integers(1, 200), preset=st.sampled_from(list(PRESETS.values())))
def test_every_plan_is_one_that_nnunet_can_train(
    first: tuple[int, float], second: tuple[int, float], third: tuple[int, float], classes: int, preset: Preset
) -> None:
    shape, spacing = zip(first, second, third, strict=True)
    try:
        plans = planned(shape, spacing, classes=classes, preset=preset)
    except PlanError as error:
        if "give no network" in str(error) and ("x0 " in str(error) or "x0x" in str(error)):
            return  # a single voxel, thinner than what it is resampled to
        raise
    assert plans.content() == NnUNetPlans.parse(json.loads(json.dumps(plans.content())), "plans").content()
    for name in plans.configurations:
        found: Configuration = plans.configuration(name)
        network = found.architecture.arch_kwargs
        total = [math.prod(stride[a] for stride in network.strides) for a in range(len(found.patch_size))]
        assert found.batch_size >= 2
        assert all(n % t == 0 and n // t >= 1 for n, t in zip(found.patch_size, total, strict=True))
        assert all(n < m + t for n, m, t in zip(found.patch_size, found.median_image_size_in_voxels, total, strict=True))
