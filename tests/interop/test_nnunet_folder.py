"""Model folders of nnU-Net: import, export, and everything that is refused."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from typer.testing import CliRunner

from medseg.commands import app, main
from medseg.domains.grid.settings import Blending, Interpolation, Orientation, Scheme
from medseg.errors import ModelError, PlanError, UsageError
from medseg.inference.predictor import Predictor
from medseg.interop.nnunet.checkpoint import read_checkpoint
from medseg.interop.nnunet.folder import Exported, export_model, import_model
from medseg.interop.nnunet.weights import aliases
from medseg.plans import Plan

RECORDED = Path(__file__).parent / "recorded"
Change = Callable[[dict[str, Any]], None]


def nothing(content: dict[str, Any]) -> None:
    """The default change."""


def record_of(recorded: str, stage: str = "") -> dict[str, Any]:
    """What nnU-Net did; with `stage` one of a recorded cascade."""
    content: dict[str, Any] = torch.load(RECORDED / f"{recorded if stage else f'pipeline_{recorded}'}.pt", weights_only=True)
    return content[stage] if stage else content


def model_folder(
    root: Path,
    folds: tuple[int | str, ...] = (0,),
    plans: Change = nothing,
    dataset: Change = nothing,
    checkpoint: Change = nothing,
    recorded: str = "thick",
    stage: str = "",
) -> Path:
    """What nnU-Net's trainer leaves behind, of the recorded tiny network; each fold's weights differ a little."""
    record = record_of(recorded, stage)
    plans(record["plans"])
    dataset(record["dataset"])
    root.mkdir(parents=True)
    (root / "plans.json").write_text(json.dumps(record["plans"]))
    (root / "dataset.json").write_text(json.dumps(record["dataset"]))
    for number, fold in enumerate(folds):
        weights = {name: weight * (1 + 0.01 * number) for name, weight in record["weights"].items()}
        content = {
            "network_weights": OrderedDict((alias, w) for name, w in weights.items() for alias in aliases(name)),
            "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01, "params": [0]}]},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.1)], "lrs": [0.01]},
            "_best_ema": np.float64(0.7),
            "current_epoch": 1000,
            "init_args": {
                "plans": record["plans"],
                "configuration": record["configuration"],
                "fold": fold,
                "dataset_json": record["dataset"],
                "device": torch.device("cpu"),
            },
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": record["mirror"],
        }
        checkpoint(content)
        (root / f"fold_{fold}").mkdir()
        torch.save(content, root / f"fold_{fold}" / "checkpoint_final.pth")
    return root


def write_case(folder: Path, recorded: str = "thick", stage: str = "") -> np.ndarray:
    """The recorded image as files, and nnU-Net's segmentation of it."""
    record = record_of(recorded, stage)
    folder.mkdir()
    for index, channel in enumerate(record["image"].numpy()):
        image = sitk.GetImageFromArray(channel)
        image.SetSpacing([float(s) for s in record["spacing"][::-1]])
        image.SetDirection([-1, 0, 0, 0, 1, 0, 0, 0, -1])  # nnU-Net does not look at it
        sitk.WriteImage(image, str(folder / f"case_{index:04}.nii.gz"))
    expected: np.ndarray = record["segmentation"].numpy()
    return expected


def refusal(folder: Path, out: Path, **options: Any) -> str:
    with pytest.raises((ModelError, PlanError)) as caught:
        import_model(folder, out, **options)
    assert not out.exists()
    assert not [p for p in out.parent.iterdir() if ".partial." in p.name]
    return str(caught.value)


@pytest.mark.parametrize("recorded", ["thick", "slices", "regions", "middle"])
def test_import_and_predict_gives_nnunets_segmentation(tmp_path: Path, recorded: str) -> None:
    """From files to a file by the command line; equal to what nnU-Net made of the same image."""
    folder, images = model_folder(tmp_path / "nnUNetTrainer__nnUNetPlans__x", (0, 1), recorded=recorded), tmp_path / "images"
    expected = write_case(images, recorded)
    runner = CliRunner()
    done = runner.invoke(app, ["import", "nnunet", str(folder), "-o", str(tmp_path / "run")], catch_exceptions=False)
    assert done.exit_code == 0
    done = runner.invoke(app, ["predict", str(tmp_path / "run"), str(images), "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "case.nii.gz")))
    assert (found == expected).mean() > 0.999


def test_what_an_imported_model_is(tmp_path: Path) -> None:
    plan, folds = import_model(model_folder(tmp_path / "m", folds=(1, 0)), tmp_path / "run")
    assert folds == (0, 1)
    assert sorted(p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*") if p.is_file()) == [
        "fold_0/network_0.safetensors",
        "fold_1/network_0.safetensors",
        "plan.json",
        "provenance.json",
    ]
    assert Plan.load(tmp_path / "run" / "plan.json") == plan
    assert "nnUNetTrainer" in (tmp_path / "run" / "provenance.json").read_text()
    assert (plan.name, plan.window, plan.inference.mirror) == ("3d_fullres", (4, 8, 12), (0, 1))
    space = plan.space
    assert (space.axes, space.spacing, space.crop) == ((2, 0, 1), (3.5, 1.0, 1.0), True)
    assert (space.orientation, space.interpolation, space.blending) == (Orientation.file, Interpolation.nnunet, Blending.nnunet)
    assert [c.scheme for c in space.channels] == [Scheme.masked, Scheme.fixed]
    assert plan.data.labels.names == ("a", "b")  # by value, not in the order of the file
    assert plan.data.labels.ignore == 3
    assert len(Predictor.load(tmp_path / "run", device="cpu").ensemble.networks) == 2


@pytest.mark.parametrize("recorded", ["thick", "slices", "regions"])
def test_export_gives_back_what_was_imported(tmp_path: Path, recorded: str) -> None:
    """Weights to the bit, and the same plan again; what prediction does not use may differ."""
    folder = model_folder(tmp_path / "m", folds=(0, 2) if recorded == "thick" else ("all",), recorded=recorded)
    plan, _ = import_model(folder, tmp_path / "run", folds=(0, 2) if recorded == "thick" else None)
    (exported,) = export_model(tmp_path / "run", tmp_path / "out")
    assert exported == Exported(tmp_path / "out", ("0", "2") if recorded == "thick" else ("all",))
    for fold in exported.folds:
        old, new = (read_checkpoint(root / f"fold_{fold}" / "checkpoint_final.pth") for root in (folder, tmp_path / "out"))
        assert (old.trainer, old.configuration, old.mirror) == (new.trainer, new.configuration, new.mirror)
        assert sorted(old.weights) == sorted(new.weights)
        assert all(torch.equal(old.weights[name], new.weights[name]) for name in old.weights)
    again, _ = import_model(tmp_path / "out", tmp_path / "again", folds=None if recorded != "thick" else (0, 2))
    different = {"data", "reasons"}
    assert again.model_dump(exclude=different) == plan.model_dump(exclude=different)
    assert again.data.labels == plan.data.labels
    written, original = (json.loads((root / "plans.json").read_text())["configurations"] for root in (tmp_path / "out", folder))
    unused = {"median_image_size_in_voxels"}
    (name,) = original
    assert {k: v for k, v in written[name].items() if k not in unused} == {k: v for k, v in original[name].items() if k not in unused}


def set_in(path: str, value: object) -> Change:
    """A change of one value of the only configuration, by a dotted path."""

    def change(plans: dict[str, Any]) -> None:
        node = next(iter(plans["configurations"].values()))
        *parents, leaf = path.split(".")
        for part in parents:
            node = node[part]
        node[leaf] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            set_in("resampling_fn_data", "resample_torch_fornnunet"),
            ["unknown function", "'resampling_fn_data'", "resample_torch_fornnunet"],
        ),
        (set_in("resampling_fn_probabilities_kwargs.order_z", 1), ["'resampling_fn_probabilities_kwargs'", "'order_z': 1"]),
        (set_in("normalization_schemes", ["ZScoreNormalization", "MyNorm"]), ["unknown way", "'normalization_schemes.1'", "MyNorm"]),
        (set_in("preprocessor_name", "MyPreprocessor"), ["custom class", "MyPreprocessor", "DefaultPreprocessor"]),
        (set_in("architecture.network_class_name", "my.package.MyNet"), ["network 'my.package.MyNet'", "PlainConvUNet"]),
        (set_in("architecture.arch_kwargs.norm_op", "torch.nn.BatchNorm3d"), ["layers that are not known", "norm_op", "BatchNorm3d"]),
        (set_in("architecture.arch_kwargs.nonlin_first", True), ["layers that are not known", "nonlin_first"]),
        (lambda plans: plans.update(image_reader_writer="Tiff3DIO"), ["image_reader_writer", "Tiff3DIO"]),
        (set_in("spacing", [0.0, 1.0, 1.0]), ["spacing must be positive", "plans.json"]),
        (set_in("architecture.arch_kwargs.features_per_stage", [4, 8]), ["not those of the network in plans.json", "[8, 4, 3, 3, 3]"]),
    ],
)
def test_what_medseg_would_do_otherwise_is_refused(tmp_path: Path, change: Change, words: list[str]) -> None:
    text = refusal(model_folder(tmp_path / "m", plans=change), tmp_path / "run")
    assert all(word in text for word in words), text


def test_all_problems_at_once(tmp_path: Path) -> None:
    """A custom trainer, an unknown normalisation and a fold without its checkpoint, in one error."""
    folder = model_folder(
        tmp_path / "m",
        (0, 1, 2),
        set_in("normalization_schemes", ["ZScoreNormalization", "MyNorm"]),
        checkpoint=lambda content: content.update(trainer_name="nnUNetTrainerMine"),
    )
    (folder / "fold_1" / "checkpoint_final.pth").rename(folder / "fold_1" / "checkpoint_latest.pth")
    text = refusal(folder, tmp_path / "run")
    assert "3 problems" in text
    for word in ("custom trainer", "nnUNetTrainerMine", "MyNorm", "fold_1", "checkpoint_latest.pth", "--folds 0,2"):
        assert word in text


@pytest.mark.parametrize(
    ("folds", "wanted", "words"),
    [
        ((0, 1, 3), None, ["fold_2", "the fold is missing", "--folds 0,1,3"]),
        ((0,), (0, 4), ["fold_4", "the fold is missing"]),
        ((0,), (None,), ["fold_all", "the fold is missing"]),
        ((), None, ["holds no trained fold"]),
    ],
)
def test_missing_folds_are_named(tmp_path: Path, folds: tuple[int, ...], wanted: Any, words: list[str]) -> None:
    text = refusal(model_folder(tmp_path / "m", folds), tmp_path / "run", folds=wanted)
    assert all(word in text for word in words), text


def test_a_missing_fold_and_a_custom_trainer_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_folder(tmp_path / "m", (0, 2), checkpoint=lambda content: content.update(trainer_name="nnUNetTrainerMine"))
    monkeypatch.setattr("sys.argv", ["medseg", "import", "nnunet", str(folder), "-o", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error 2 problems:\n"
        f"  1. {folder / 'fold_1'}: the fold is missing; found no checkpoint, expected checkpoint_final.pth. "
        "Finish its training, or choose --folds 0,2.\n"
        f"  2. {folder / 'fold_0' / 'checkpoint_final.pth'}: the model was trained with a custom trainer, which may build another network or "
        "predict in another way; found nnUNetTrainerMine, expected nnUNetTrainer, or one of nnU-Net's own that train the same network. "
        "Predict with nnU-Net and that trainer's code.\n"
    )
    assert not (tmp_path / "run").exists()


def test_folds_of_two_trainings_are_refused(tmp_path: Path) -> None:
    turns = iter([(0, 1), None])
    folder = model_folder(tmp_path / "m", (0, 1), checkpoint=lambda content: content.update(inference_allowed_mirroring_axes=next(turns)))
    assert "the folds differ in mirroring" in refusal(folder, tmp_path / "run")
    assert import_model(folder, tmp_path / "run", folds=(1,))[0].inference.mirror == ()


class Evil:
    """Pickles into a call."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.mkdir, ("never",)


def test_a_checkpoint_that_holds_code_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = model_folder(tmp_path / "m", checkpoint=lambda content: content.update(extra=Evil()))
    text = refusal(folder, tmp_path / "run")
    assert "posix.mkdir" in text or "nt.mkdir" in text
    assert "they are refused" in text
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "is no readable checkpoint"),
        (lambda path: path.write_bytes(b""), "is no readable checkpoint"),
        (lambda path: torch.save({"state_dict": {}}, path), "is no checkpoint of nnU-Net"),
        (lambda path: torch.save([1, 2], path), "is no checkpoint of nnU-Net"),
    ],
)
def test_damaged_checkpoints(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    folder = model_folder(tmp_path / "m")
    damage(folder / "fold_0" / "checkpoint_final.pth")
    text = refusal(folder, tmp_path / "run")
    assert words in text
    assert "checkpoint_final.pth" in text


def test_best_checkpoint(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    assert "checkpoint_best.pth" in refusal(folder, tmp_path / "run", checkpoint="best")
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    assert import_model(folder, tmp_path / "run", checkpoint="best")[1] == (0,)


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    text = refusal(tmp_path / "empty", tmp_path / "run")
    assert all(word in text for word in ("plans.json", "dataset.json", "no trained fold"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("")
    with pytest.raises(UsageError, match="is not empty"):
        import_model(folder, tmp_path / "run")
    import_model(folder, tmp_path / "other")
    with pytest.raises(UsageError, match="is not empty"):
        export_model(tmp_path / "other", tmp_path / "run")


def test_models_that_nnunet_cannot_run_are_refused(tmp_path: Path) -> None:
    """A U-Net of medseg's own kind and preparation, with every reason at once."""
    plan, _ = import_model(model_folder(tmp_path / "m"), tmp_path / "run")
    content = plan.model_dump(mode="json") | {"reasons": {}}
    content["network"] = {
        **{name: content["network"][name] for name in ("features", "strides", "kernels", "residual", "deep_supervision")},
        "kind": "unet",
        "encoder": [1, 1],
        "decoder": [1],
        "skip": "add",
    }
    content["space"] |= {"orientation": "canonical", "interpolation": "smooth", "blending": "centred", "crop": False}
    content["inference"]["overlap"] = 0.25
    content["data"]["labels"]["classes"][1]["values"] = [5]
    content["target"]["cleaning"] = [{"cls": "", "largest": True}]
    Plan.parse(content, "changed").save(tmp_path / "run" / "plan.json")
    with pytest.raises(ModelError) as caught:
        export_model(tmp_path / "run", tmp_path / "out")
    text = str(caught.value)
    fields = ("network.kind", "space.orientation", "space.interpolation", "space.blending", "space.crop", "inference.overlap")
    assert all(field in text for field in (*fields, "data.labels", "target.cleaning", "8 problems")), text
    assert "found unet, expected nnunet" in text
    assert not (tmp_path / "out").exists()


def older(plans: dict[str, Any]) -> None:
    """As nnU-Net 2.0 wrote them."""
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    (one,) = plans["configurations"].values()
    made = one.pop("architecture")["arch_kwargs"]
    one |= {"UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 6}
    one |= {"n_conv_per_stage_encoder": made["n_conv_per_stage"], "n_conv_per_stage_decoder": made["n_conv_per_stage_decoder"]}
    one |= {"pool_op_kernel_sizes": made["strides"], "conv_kernel_sizes": made["kernel_sizes"], "num_pool_per_axis": [1, 1, 1]}


def test_plans_of_older_versions(tmp_path: Path) -> None:
    old, _ = import_model(model_folder(tmp_path / "old", plans=older), tmp_path / "a")
    new, _ = import_model(model_folder(tmp_path / "new"), tmp_path / "b")
    assert old == new.model_copy(update={"data": old.data})


def test_older_plans_that_lack_something_say_so(tmp_path: Path) -> None:
    def damaged(plans: dict[str, Any]) -> None:
        older(plans)
        del next(iter(plans["configurations"].values()))["unet_max_num_features"]

    assert "architecture" in refusal(model_folder(tmp_path / "m", plans=damaged), tmp_path / "run")


def test_unknown_formats(tmp_path: Path) -> None:
    for arguments in (["import", "other", "x", "-o", "y"], ["export", "x", "-o", "y", "--format", "other"]):
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, UsageError)
        assert "nnunet" in str(done.exception)
