"""Model folders: nnU-Net's to medseg's and back, each written whole or not at all."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from medseg.errors import ModelError, Problem, UsageError
from medseg.interop.nnunet.checkpoint import write_checkpoint
from medseg.interop.nnunet.convert import DATASET, PLANS
from medseg.interop.nnunet.export import PLANS_NAME, default_ending, nnunet_files
from medseg.interop.nnunet.reading import ALL, FINAL, Fold, Kind, TrainedModel, network_of_plan, read_model
from medseg.interop.nnunet.records import NnUNetDataset, NnUNetPlans
from medseg.interop.nnunet.support import TRAINER
from medseg.interop.nnunet.weights import weight_names
from medseg.models.nnunet import NnUNetSettings
from medseg.models.weights import load_weights, save_weights
from medseg.plans import Plan
from medseg.record import write_folder, write_text
from medseg.tasks.base import find_task
from medseg.workspace import Provenance, RunFolder, network_file


def import_model(
    folder: Path,
    out: Path,
    *,
    folds: Sequence[Fold] | None = None,
    checkpoint: Kind = FINAL,
    previous: Path | None = None,
    half: bool = False,
) -> tuple[Plan, tuple[Fold, ...]]:
    """Make a model folder of medseg out of a trained nnU-Net model; `medseg predict` on it equals `nnUNetv2_predict`.

    A cascade is imported with the stage before it, same folds and kind of checkpoint, into `out/previous`.

    Args:
        folder: what nnU-Net trained, for example `nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres`.
        out: the model folder, which must not exist or be empty.
        folds: which ones (None within it is `fold_all`); None: all numbered ones, or `fold_all` where it is the only one.
        checkpoint: `final` is the end of the training; `best` the best validation, as nnU-Net estimates it.
        previous: of a cascade, the folder of the stage before; None: beside `folder`, where nnU-Net puts it.
        half: predict in 16 bits where the device is faster with them; a few border voxels may then differ from nnU-Net's.

    Returns:
        The plan, and the folds that were imported.

    Raises:
        ModelError: files, folds or the stage before are missing or damaged, a custom trainer, a network, a preparation or a checkpoint that
            medseg does not have; all problems at once.
        UsageError: `out` holds something.
    """
    _check_free(out)
    model = read_model(folder, folds, checkpoint, previous)
    if half:
        model = _halved(model)
    write_folder(out, lambda target: _write_model(RunFolder(target), model))
    return model.plan, tuple(model.states)


def _halved(model: TrainedModel) -> TrainedModel:
    previous = None if model.previous is None else _halved(model.previous)
    return replace(model, plan=model.plan.edited({"network.precision": "half"}, "medseg import --half"), previous=previous)


def _write_model(run: RunFolder, model: TrainedModel) -> None:
    run.root.mkdir(exist_ok=True)
    model.plan.save(run.plan_file)
    _provenance(model).save(run.provenance_file)
    for fold, state in model.states.items():
        save_weights(network_file(run.fold(fold), 0), dict(state), model.plan.trained_digest())
    if model.previous is not None:
        _write_model(run.previous, model.previous)


@dataclass(frozen=True)
class Exported:
    """A model folder of nnU-Net, and the folds' names for `nnUNetv2_predict_from_modelfolder -f`."""

    folder: Path
    folds: tuple[str, ...]


def export_model(run: Path, out: Path, *, ending: str | None = None) -> tuple[Exported, ...]:
    """Make a folder that `nnUNetv2_predict_from_modelfolder` runs, with the result of `medseg predict`.

    Of a cascade there are several, in `out` under the names that nnU-Net gives them: each stage is run with `-prev_stage_predictions` and
    what the one before it predicted.

    Args:
        run: a model folder of medseg, imported from nnU-Net or trained here with its network and preparation.
        out: nnU-Net's model folder, or the folder of a cascade's; must not exist or be empty.
        ending: suffix of the images that nnU-Net will predict on; None is `.nii.gz` for volumes and `.png` for images.

    Returns:
        The stages in the order in which they are run; most models have one. A fold with several networks gives several: nnU-Net averages
        folds.

    Raises:
        ModelError: not a model, or one that nnU-Net cannot run with the same result; all reasons at once.
        UsageError: `out` holds something.
    """
    _check_free(out)
    stages: list[_Stage] = []
    problems: list[Problem] = []
    folder: RunFolder | None = RunFolder(run)
    while folder is not None:
        files = folder.weights()
        if partners := folder.partners():
            raise ModelError.of(
                "is an ensemble of configurations, and nnU-Net runs one configuration at a time",
                where=str(folder.root),
                found=f"partners {', '.join(part.root.name for part in partners)}",
                fix="Export the models that it was selected of one by one, and average with nnUNetv2_ensemble.",
            )
        plan = Plan.load(folder.plan_file)
        try:
            stages.insert(0, _Stage(plan, files, *nnunet_files(plan, ending or default_ending(plan))))
        except ModelError as error:
            problems += error.problems
        folder = folder.previous if plan.previous else None
    if problems:
        raise ModelError(problems)
    places = [f"{TRAINER}__{PLANS_NAME}__{stage.name}" if len(stages) > 1 else "." for stage in stages]

    def write(target: Path) -> None:
        for stage, place in zip(stages, places, strict=True):
            stage.write(target / place)

    write_folder(out, write)
    return tuple(Exported(out / place, stage.folds) for stage, place in zip(stages, places, strict=True))


@dataclass(frozen=True)
class _Stage:
    """A model of medseg that nnU-Net can run, and what nnU-Net's files say about it."""

    plan: Plan
    files: tuple[Path, ...]
    name: str
    plans: NnUNetPlans
    dataset: NnUNetDataset

    @property
    def folds(self) -> tuple[str, ...]:
        """A fold of nnU-Net for each network: the fold's own number where each has one network, else all counted from 0."""
        names = [file.parent.name.removeprefix("fold_").replace("none", ALL) for file in self.files]
        return tuple(names) if len(set(names)) == len(names) else tuple(str(i) for i in range(len(names)))

    def write(self, target: Path) -> None:
        """Write nnU-Net's model folder."""
        settings, head = network_of_plan(self.plan)
        task, names = find_task(self.plan.task)(self.plan), weight_names(settings, head)
        target.mkdir(exist_ok=True)
        self.plans.write(target / PLANS)
        write_text(target / DATASET, json.dumps(self.dataset.content(), indent=4))
        for fold, file in zip(self.folds, self.files, strict=True):
            state = load_weights(task.network(), file, self.plan.trained_digest()).state_dict()
            theirs = {names[ours]: weight for ours, weight in state.items()}
            write_checkpoint(
                target / f"fold_{fold}" / f"checkpoint_{FINAL}.pth",
                theirs | _untrained_heads(settings, task.heads[0].channels),
                self.plan.inference.mirror,
                plans=self.plans.content(),
                dataset=self.dataset.content(),
                configuration=self.name,
                fold=fold if fold == ALL else int(fold),
            )


def _untrained_heads(settings: NnUNetSettings, channels: int) -> dict[str, torch.Tensor]:
    """nnU-Net loads heads at all decoder stages, and predicts with the finest; those that were not trained here are zeros."""
    heads = {}
    for s in range(settings.deep_supervision + 1, len(settings.features) - 1):
        name = f"decoder.seg_layers.{len(settings.features) - 2 - s}"
        heads[f"{name}.weight"] = torch.zeros(channels, settings.features[s], *(1,) * len(settings.strides[0]))
        heads[f"{name}.bias"] = torch.zeros(channels)
    return heads


def _provenance(model: TrainedModel) -> Provenance:
    plan = model.plan
    return Provenance(
        medseg=version("medseg"),
        python=platform.python_version(),
        torch=torch.__version__,
        device=f"imported from nnU-Net: {model.trainer}, {plan.name}",
        dataset=plan.data.name,
        dataset_digest=plan.data.digest,
        plan_digest=plan.trained_digest(),
        seed=plan.training.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError.of("is not empty", where=str(out), expected="a new or empty folder", fix="Choose another folder with -o.")
