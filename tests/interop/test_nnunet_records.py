from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import DatasetError, PlanError
from medseg.interop.nnunet.checks import read_folder
from medseg.interop.nnunet.records import NnUNetPlans

GOLDEN = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text())
SEEN = {"mean": 1.0, "median": 1.0, "std": 1.0, "min": 0.0, "max": 2.0, "percentile_00_5": 0.0, "percentile_99_5": 2.0}


def folder(root: Path, dataset: dict[str, Any] | None = None, fingerprint: dict[str, Any] | None = None) -> Path:
    """A valid folder with some keys replaced."""
    files = {
        "dataset.json": {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1, "tumour": 2},
            "numTraining": 2,
            "file_ending": ".nii.gz",
            **(dataset or {}),
        },
        "dataset_fingerprint.json": {
            "spacings": [[1, 1, 1], [1.5, 1, 1]],
            "shapes_after_crop": [[40, 50, 60]] * 2,
            "foreground_intensity_properties_per_channel": {"0": SEEN},
            "median_relative_size_after_cropping": 1.0,
            **(fingerprint or {}),
        },
    }
    for name, data in files.items():
        (root / name).write_text(json.dumps(data))
    return root


def test_unknown_keys_are_kept_and_old_names_read(tmp_path: Path) -> None:
    dataset, fingerprint = read_folder(folder(tmp_path, {"channel_names": None, "modality": {"0": "T1"}, "release": "2.0"}, {"new": [1]}))
    assert dataset.channels == ("T1",)
    assert dataset.content()["release"] == "2.0"
    assert dataset.content()["numTraining"] == 2
    assert fingerprint.content()["new"] == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"channel_names": {"1": "CT", "0": "PET"}},
            "dataset.json, field 'channel_names': the channels are not numbered one by one; nnU-Net takes them in the order of the file; "
            "found 1, 0, expected 0, 1. Renumber or reorder them as in the file names (_0000, _0001, ...).",
        ),
        (
            {"labels": {"0": "background", "1": "liver"}},
            "dataset.json, field 'labels.0.int': Input should be a valid integer",
        ),
        (
            {"labels": {"liver": 1}},
            "dataset.json, field 'labels': the background is not declared as 0; found only liver, expected background: 0. "
            "Files of nnU-Net 1 map values to names; version 2 maps names to values.",
        ),
        (
            {"labels": {"background": 1, "liver": 0}},
            "dataset.json, field 'labels': the background is not declared as 0; found 1, expected background: 0.",
        ),
        (
            {"labels": {"background": 0, "liver": 1, "tumour": 3}},
            "dataset.json, field 'labels': the label values are not consecutive; found 0, 1, 3, expected 0 to 2 without gaps. "
            "Renumber the labels here and in the label images.",
        ),
        (
            {"labels": {"background": 0, "liver": 1, "tumour": 2, "ignore": 255}},
            "dataset.json, field 'labels': the label to ignore is not the highest; found 255, expected the number 3, one more than the "
            "highest label. Renumber it here and in the label images.",
        ),
        (
            {"labels": {"background": 0, "liver": 1, "tumour": 2, "ignore": [3]}},
            "dataset.json, field 'labels': the label to ignore is not the highest; found [3], expected the number 3",
        ),
        (
            {"labels": {"background": 0, "liver": [1, 2], "tumour": 2}},
            "dataset.json, field 'regions_class_order': labels with several values are regions, and nnU-Net must know which value to write "
            "for each; found nothing, expected 2 values, for liver, tumour. List them in the order of 'labels'; later ones overwrite earlier "
            "ones.",
        ),
        (
            {"labels": {"background": 0, "liver": [1, 2], "tumour": 2, "ignore": 3}, "regions_class_order": [1, 2, 3]},
            "dataset.json, field 'regions_class_order': the region order has 3 values for 2 classes; the ignore value 3 does not belong into "
            "it; found [1, 2, 3]. Name for each region the value that a prediction writes, one of its own",
        ),
        (
            {"labels": {"background": 0, "tumour": 2, "liver": [1, 2], "ignore": 3}, "regions_class_order": [2, 1]},
            "dataset.json, field 'regions_class_order': class 'tumour' can never be seen: 'liver' comes later in the region order",
        ),
        (
            {"labels": {"background": 0, "liver": [1, 2], "tumour": 2, "ignore": 3}, "regions_class_order": [1, 3]},
            "dataset.json, field 'regions_class_order': the region order holds the ignore value 3, for class 'tumour'; found [1, 3]",
        ),
        (
            {"labels": {"background": 0, "liver": [1, 2], "tumour": []}, "regions_class_order": [1, 2]},
            "dataset.json, field 'labels': label 'tumour' has no values.",
        ),
        (
            {"numTraining": 3},
            "dataset_fingerprint.json, field 'spacings': 'numTraining' of dataset.json is another number of cases; found 2, expected 3. "
            "Extract the fingerprint again with nnUNetv2_extract_fingerprint --clean, or correct 'numTraining'.",
        ),
        (
            {"channel_names": {"0": "CT", "1": "PET"}},
            "dataset_fingerprint.json, field 'foreground_intensity_properties_per_channel': the channels are not those of dataset.json; "
            "found 0, expected 0, 1. Extract the fingerprint again with nnUNetv2_extract_fingerprint --clean.",
        ),
        ({"channel_names": {}}, 'dataset.json: \'channel_names\' is missing; expected an object like {"0": "CT"}'),
        ({"numTraining": "many"}, "dataset.json, field 'numTraining': Input should be a valid integer"),
    ],
)
def test_contradictions_of_the_dataset(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read_folder(folder(tmp_path, change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"shapes_after_crop": [[40, 50, 60]]},
            "field 'shapes_after_crop': there are not as many shapes as spacings; found 1, expected 2. Extract the fingerprint again",
        ),
        ({"spacings": [[1, 1, 1], [0, 1, 1]]}, "field 'spacings.1.0': Input should be greater than 0; found 0."),
        ({"spacings": [[1, 1], [1, 1]]}, "field 'spacings.0.2': Field required"),
        ({"spacings": []}, "field 'spacings': Tuple should have at least 1 item after validation, not 0; found []."),
        ({"median_relative_size_after_cropping": float("nan")}, "field 'median_relative_size_after_cropping.int'"),
        ({"foreground_intensity_properties_per_channel": None}, "field 'foreground_intensity_properties_per_channel'"),
    ],
)
def test_damaged_fingerprints(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read_folder(folder(tmp_path, fingerprint=change))
    assert f"{tmp_path / 'dataset_fingerprint.json'}, {message}" in str(caught.value)


def test_all_problems_at_once(tmp_path: Path) -> None:
    folder(tmp_path, {"labels": {"liver": 1}, "channel_names": {"1": "CT"}})
    (tmp_path / "dataset_fingerprint.json").write_text('{"spacings": ')
    with pytest.raises(DatasetError) as caught:
        read_folder(tmp_path)
    assert [problem.what.split(";")[0] for problem in caught.value.problems] == [
        "is not valid JSON",
        "the channels are not numbered one by one",
        "the background is not declared as 0",
    ]
    (tmp_path / "dataset_fingerprint.json").write_text("[" * 200_000)
    with pytest.raises(DatasetError, match="is not valid JSON"):
        read_folder(tmp_path)
    with pytest.raises(DatasetError, match=r"2 problems:(.|\n)*dataset.json: cannot be read; found No such file or directory"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("case", GOLDEN, ids=[f"{case['group']}-{case['preset']}" for case in GOLDEN])
def test_plans_keep_every_key_and_type(case: dict[str, Any]) -> None:
    plans = NnUNetPlans.parse(case["plans"], "plans.json")
    assert json.dumps(plans.content()) == json.dumps(case["plans"])


def test_configurations_inherit() -> None:
    data = json.loads(json.dumps(GOLDEN[0]["plans"]))
    data["configurations"]["larger"] = {"inherits_from": "3d_fullres", "batch_size": 4, "my_note": "x"}
    data["configurations"]["larger still"] = {"inherits_from": "larger", "patch_size": [64, 64, 64]}
    data["configurations"]["circle"] = {"inherits_from": "circle"}
    data["configurations"]["orphan"] = {"inherits_from": "3d_lowres"}
    plans = NnUNetPlans.parse(data, "plans.json")
    found = plans.configuration("larger still")
    assert (found.batch_size, found.patch_size, found.content()["my_note"]) == (4, (64, 64, 64), "x")
    assert found.architecture == plans.configuration("3d_fullres").architecture
    with pytest.raises(PlanError, match="plans 'nnUNetPlans': the configuration inherits from itself; found circle -> circle"):
        plans.configuration("circle")
    with pytest.raises(PlanError, match="there is no such configuration; found orphan -> 3d_lowres, expected 2d, 3d_fullres, larger"):
        plans.configuration("orphan")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("patch_size",), [64, 64], "'patch_size', 'spacing' and 'strides' must have the same number of axes, 2 or 3"),
        (("use_mask_for_norm",), [], "'normalization_schemes' and 'use_mask_for_norm' must have one entry per channel each"),
        (("batch_size",), 0, "Input should be greater than or equal to 1; found 0"),
        (("architecture", "network_class_name"), "a.b.Primus", "network 'a.b.Primus' is not supported; expected PlainConvUNet or Residual"),
        (("architecture", "arch_kwargs", "n_stages"), 9, "'features_per_stage' has 4 entries, expected one for each of the 9 stages"),
        (("architecture", "arch_kwargs", "n_conv_per_stage"), None, "expected either 'n_conv_per_stage' or 'n_blocks_per_stage'"),
        (("architecture", "arch_kwargs", "n_conv_per_stage_decoder"), [2], "'n_conv_per_stage_decoder' has 1 entries, expected 3"),
    ],
)
def test_damaged_plans(path: tuple[str, ...], value: Any, message: str) -> None:
    data = json.loads(json.dumps(GOLDEN[0]["plans"]))
    node = data["configurations"]["3d_fullres"]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(PlanError) as caught:
        NnUNetPlans.parse(data, "plans.json")
    assert str(caught.value).startswith("plans.json, field 'configurations.3d_fullres")
    assert message in str(caught.value)
