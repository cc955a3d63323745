"""Pre-training: a plan's network learns from images alone, and trainings begin with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.dataset import Split
from medseg.device import choose_device
from medseg.plans import Plan
from medseg.preconditions import check_length, check_memory
from medseg.progress import Progress, Silent
from medseg.steps import Training, prepared, train_prepared
from medseg.workspace import RunFolder, Workspace

# torch, lightning and mlflow take seconds to import, so what needs them is imported by the verb that does.
if TYPE_CHECKING:
    from medseg.training.train import TrainingResult

SILENT = Silent()


def pretrain(
    plan_file: Path,
    out: Path,
    images: Sequence[Path] = (),
    *,
    objective: str = "masked",
    seconds: float | None = None,
    epochs: int | None = None,
    resume: bool = False,
    edits: Mapping[str, str] | None = None,
    device: str = "auto",
    devices: int = 1,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train the plan's network, without annotations, on the images of its dataset and on further files and folders of `images`.

    The folder `out` is one for `init`: it predicts nothing itself.
    """
    from medseg.inference.inputs import find_cases
    from medseg.planning.pretext import pretext_plan
    from medseg.training.preflight import adopt

    check_length(seconds, epochs)
    choose_device(device)
    workspace, folder = Workspace.of_plan(plan_file), RunFolder(out)
    chosen = pretext_plan(Plan.load(plan_file), objective).edited(dict(edits or {}))
    predicted = check_memory(chosen)
    dataset = workspace.dataset()
    cases = find_cases([*dataset.cases, *dataset.unlabelled, *images], chosen.data.channels)
    adopt(folder, chosen)
    progress.say(f"pre-trains on the images of {len(cases)} cases; annotations play no part")
    store = prepared(chosen, workspace, workers, progress, dataset.model_copy(update={"cases": cases}))
    split = Split(train=tuple(case.id for case in cases), val=())
    how = Training(seconds, epochs, None, resume, device, devices, workers, progress)
    return train_prepared(chosen, workspace, store, (split,), None, folder, how, None, predicted)
