"""What is checked and written before a training begins, so that nothing fails an hour later."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from medseg.errors import DatasetError, ModelError, ResourceError, UsageError
from medseg.io.store import Store
from medseg.plans import Plan
from medseg.training.splits import Split
from medseg.workspace import Provenance, RunFolder


def check_devices(device: torch.device, devices: int, batch: int) -> None:
    """Whether the devices exist and can share a batch. Raises UsageError or ResourceError."""
    if devices < 1:
        raise UsageError.of("at least one device is needed", where="--devices", found=str(devices))
    if batch % devices:
        raise UsageError.of(
            "the batch cannot be shared equally",
            where="--devices",
            found=f"{devices} devices for {batch} windows per step",
            fix=f"Use a number of devices that divides {batch}, or --set training.batch_size={-(-batch // devices) * devices}.",
        )
    if devices > 1 and device.type == "mps":
        raise UsageError.of("an Apple GPU cannot share the training with others", where="--devices", found=str(devices), expected="1")
    if devices > 1 and device.type == "cuda" and devices > torch.cuda.device_count():
        raise ResourceError.of(
            "there are not so many GPUs", where="--devices", found=str(devices), expected=f"at most {torch.cuda.device_count()}"
        )


def check_patience(patience: int | None, split: Split) -> None:
    """Whether there is something to be patient about. Raises UsageError."""
    if patience is None:
        return
    if patience < 1:
        raise UsageError.of("patience counts validations", where="--patience", found=str(patience), expected="at least 1")
    if not split.val:
        raise UsageError.of(
            "patience needs cases to validate on, and training on every case leaves none",
            where="--patience",
            fix="Drop --patience, or train a fold.",
        )


def check_kind(plan: Plan, device: torch.device) -> str:
    """What to say where a plan was made for another kind of device; empty when it was made for this one."""
    if plan.memory.device == device.type:
        return ""
    return (
        f"warning: this plan was made for {plan.memory.device} with {plan.memory.budget:g} GiB and trains on {device.type}, where another "
        f"window, batch and network would suit better (`medseg plan --device {device.type}`)"
    )


def adopt(run: RunFolder, plan: Plan) -> None:
    """Write the plan into a new model folder. Raises ModelError where the folder belongs to another plan or is a selection's."""
    if run.selection_file.is_file():
        raise ModelError.of(
            "holds a model that was selected of trained ones", where=str(run.root), fix="Choose another output folder for a training."
        )
    if not run.plan_file.is_file():
        plan.save(run.plan_file)
        return
    present = Plan.load(run.plan_file)
    if present.trained_digest() != plan.trained_digest():
        raise ModelError.of(
            "this model folder belongs to another plan",
            where=str(run.root),
            found=f"plan '{present.name}', digest {present.trained_digest()}",
            expected=f"plan '{plan.name}', digest {plan.trained_digest()}",
            fix="Choose another output folder.",
        )


def check_prepared(store: Store, split: Split) -> None:
    """Whether every case of a split is prepared. Raises DatasetError."""
    missing = sorted({*split.train, *split.val} - set(store.ids()))
    if missing:
        raise DatasetError.of(
            f"{len(missing)} cases are not prepared",
            where=str(store.folder),
            found=f"not {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}",
            fix="Run `medseg preprocess` with this plan first.",
        )


def write_provenance(run: RunFolder, plan: Plan, device: torch.device, licence: str, mlflow_run: str) -> None:
    """Write where the model comes from. A fold that is not tracked leaves the run of the folds before it in place."""
    if not mlflow_run and run.provenance_file.is_file():
        mlflow_run = Provenance.load(run.provenance_file).mlflow_run
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    Provenance(
        medseg=version("medseg"),
        python=platform.python_version(),
        torch=torch.__version__,
        device=f"{device.type} ({name})",
        dataset=plan.data.name,
        dataset_digest=plan.data.digest,
        plan_digest=plan.trained_digest(),
        seed=plan.training.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        licence=licence,
        mlflow_run=mlflow_run,
    ).save(run.provenance_file)
