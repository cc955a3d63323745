"""Pre-training: a plan's network learns from images alone, and trainings begin with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from medseg.dataset import CaseFiles, Dataset, Split, Splits
from medseg.device import choose_device
from medseg.errors import ModelError
from medseg.io.digests import Digests
from medseg.preconditions import check_length, check_memory, read_plan
from medseg.progress import Progress, Silent
from medseg.record import Record
from medseg.steps import Training, train_prepared
from medseg.workspace import RunFolder, Workspace

# torch, lightning and mlflow take seconds to import, so what needs them is imported by the verb that does.
if TYPE_CHECKING:
    from medseg.training.train import TrainingResult

SILENT = Silent()


class Images(Record):
    """What a pre-training learns from (`images.json`). No path and no patient identifier.

    Attributes:
        cases: how many.
        digest: of their ids and of the content of their files.
    """

    cases: int
    digest: str

    @classmethod
    def of(cls, cases: Sequence[CaseFiles], digests: Digests) -> Self:
        """The images of these cases. Raises ImageError where a file cannot be read."""
        parts = sorted(f"{case.id} {digests.case(case)}" for case in cases)
        return cls(cases=len(cases), digest=hashlib.blake2b("/".join(parts).encode(), digest_size=8).hexdigest())


def kept_apart(dataset: Dataset, splits: Splits | None) -> frozenset[str]:
    """The labelled cases that are in none of the folds that a user decided: most likely they are kept for testing."""
    if splits is None:
        return frozenset()
    used = {case for split in splits.folds for case in (*split.train, *split.val)}
    return frozenset(case.id for case in dataset.cases if case.id not in used)


def check_same_images(folder: RunFolder, used: Images) -> None:
    """Refuse to go on with a pre-training, or to call it done, where it learned from other images. Raises ModelError."""
    before = Images.load(folder.images_file) if folder.images_file.is_file() else None
    if before != used:
        raise ModelError.of(
            "was pre-trained on other images",
            where=str(folder.root),
            found=f"now {used.cases} cases, digest {used.digest}",
            expected=f"{before.cases} cases, digest {before.digest}" if before is not None else f"no {folder.images_file.name}",
            fix="Pass the same images as at its beginning, or choose another folder for -o.",
        )


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

    The folder `out` is one for `init`: it predicts nothing itself. No label is read, and cases in none of the folds that a user decided
    are left alone.

    Raises:
        ModelError: `out` holds a pre-training on other images, or of another plan.
    """
    from medseg.inference.inputs import find_cases
    from medseg.planning.pretext import pretext_plan
    from medseg.preprocessing.prepare import prepare
    from medseg.training.preflight import adopt
    from medseg.training.start import begun

    check_length(seconds, epochs)
    choose_device(device)
    workspace, folder = Workspace.of_plan(plan_file), RunFolder(out)
    chosen = pretext_plan(read_plan(plan_file), objective).edited(dict(edits or {}))
    predicted = check_memory(chosen)
    dataset = workspace.dataset()
    found = find_cases([*dataset.cases, *dataset.unlabelled, *images], chosen.data.channels)
    kept = kept_apart(dataset, workspace.splits())
    cases = tuple(case.model_copy(update={"label": None}) for case in found if case.id not in kept)
    used = Images.of(cases, Digests.of_cache(workspace.cache))
    if begun(folder):
        check_same_images(folder, used)
    adopt(folder, chosen)
    used.save(folder.images_file)
    progress.say(f"pre-trains on the images of {len(cases)} cases; annotations play no part")
    if kept:
        progress.say(f"leaves alone {len(kept)} case{'s' if len(kept) > 1 else ''} in none of the folds, kept for testing")
    store = prepare(
        dataset.model_copy(update={"cases": cases}),
        chosen,
        workspace.images(chosen),
        workers=workers,
        progress=progress,
        cache=workspace.cache,
    )
    split = Split(train=tuple(case.id for case in cases), val=())
    how = Training(seconds, epochs, None, resume, device, devices, workers, progress)
    return train_prepared(chosen, workspace, store, (split,), None, folder, how, None, predicted)
