"""Where files lie. Two folders exist for a user:

    PLANS/  a workspace            RUN/  a model (and how it came to be)
      dataset.json                   plan.json
      fingerprint.json               provenance.json
      splits.json, if given          splits.json
      2d.json, 3d.json
      cache/                         fold_0/ network_0.safetensors ... metrics.csv state/
      prepared/<digest>/             held_out/ predictions of the cases that folds left out
      mlflow.db, mlartifacts/        report/ index.html cases.csv summary.json
                                     partners/<configuration>/ further members of an ensemble, each a model
                                     selection.json, why these
                                     configurations/<name>/ the runs that the model was selected of
                                     init.json where its networks began, if not anew
                                     fold_0/past.json which cases they were trained on, here and before
                                     images.json of a pre-training
                                     dicom.json what somebody chose about DICOM: series of channels, terms of classes

`RUN/plan.json`, `RUN/provenance.json` and `RUN/fold_*/network_*.safetensors` are all that prediction needs; of a cascade also
`RUN/previous/`, the model folder of the configuration before it, and of an ensemble its partners. A fold that trained on every case is
`fold_none`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field

from medseg.dataset import Dataset, Splits, file_digest
from medseg.errors import ModelError, Problem
from medseg.fingerprint import Fingerprint
from medseg.plans import Plan
from medseg.record import Record


class Workspace:
    """The folder of plans, prepared cases and tracking of one dataset."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of_plan(cls, plan_file: Path) -> Workspace:
        """The workspace in which a plan file lies."""
        return cls(plan_file.resolve().parent)

    @property
    def dataset_file(self) -> Path:
        """The dataset as it was read."""
        return self.root / "dataset.json"

    @property
    def fingerprint_file(self) -> Path:
        """The fingerprint the plans were made from."""
        return self.root / "fingerprint.json"

    @property
    def splits_file(self) -> Path:
        """Exists when the user has decided the folds."""
        return self.root / "splits.json"

    @property
    def cache(self) -> Path:
        """Per-case statistics by content digest, and digests of files."""
        return self.root / "cache"

    @property
    def tracking(self) -> Path:
        """MLflow's sqlite database."""
        return self.root / "mlflow.db"

    def plan_file(self, name: str) -> Path:
        """Where the plan of a configuration lies."""
        return self.root / f"{name}.json"

    def prepared(self, plan: Plan, previous: str = "") -> Path:
        """The folder of prepared cases of a plan; shared by plans that prepare alike.

        Args:
            previous: digest of the model whose predictions are part of the cases (`RunFolder.digest`), where the plan has one.
        """
        return self.root / "prepared" / (plan.prepared_digest() + previous)

    def images(self, plan: Plan) -> Path:
        """The folder of cases that were prepared without their labels, for a plan that needs none."""
        return self.root / "prepared" / f"{plan.prepared_digest()}_images"

    def dataset(self) -> Dataset:
        """Read the dataset record."""
        return Dataset.load(self.dataset_file)

    def fingerprint(self) -> Fingerprint:
        """Read the fingerprint."""
        return Fingerprint.load(self.fingerprint_file)

    def splits(self) -> Splits | None:
        """Read the folds that the user has decided; None where medseg shall decide."""
        return Splits.load(self.splits_file) if self.splits_file.is_file() else None


Members = tuple[str, ...]
"""Names of the models of an ensemble, that of the model folder itself first; one name is a model alone."""


class Provenance(Record):
    """Where a model comes from. No path and no patient identifier."""

    medseg: str
    python: str
    torch: str
    device: str
    dataset: str
    dataset_digest: str
    plan_digest: str
    seed: int
    created: str
    licence: str = ""
    mlflow_run: str = ""
    partners: dict[str, str] = Field(default_factory=dict, description="Name of each further member of an ensemble to its plan's digest.")


def network_file(fold: Path, number: int) -> Path:
    """Where a fold's network lies; those of a long training are counted from 0."""
    return fold / f"network_{number}.safetensors"


def past_file(fold: Path) -> Path:
    """What a fold's networks were trained on, here and before (`medseg.training.past.Past`)."""
    return fold / "past.json"


def _networks(fold: Path) -> int:
    """How many networks a finished fold has."""
    try:
        return int(json.loads((fold / "state" / "finished.json").read_text(encoding="utf-8"))["networks"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError.of("cannot be read", where=str(fold / "state" / "finished.json"), fix="Restore the file, or remove it.") from None


class RunFolder:
    """A model folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def plan_file(self) -> Path:
        """The plan the model was trained with."""
        return self.root / "plan.json"

    @property
    def provenance_file(self) -> Path:
        """Versions, digests, seed."""
        return self.root / "provenance.json"

    @property
    def splits_file(self) -> Path:
        """Which cases each fold trains on and leaves out."""
        return self.root / "splits.json"

    @property
    def dicom_file(self) -> Path:
        """Which series serve as channels, and what classes are called in DICOM; exists where somebody chose it."""
        return self.root / "dicom.json"

    @property
    def learned_file(self) -> Path:
        """Exists when the plan holds what was learned of held-out predictions."""
        return self.root / "learned.json"

    @property
    def held_out(self) -> Path:
        """Predictions of the cases that folds left out, each by the fold that did not see it."""
        return self.root / "held_out"

    @property
    def selection_file(self) -> Path:
        """Why the model is what it is, where it was selected of several."""
        return self.root / "selection.json"

    @property
    def configurations(self) -> Path:
        """Of a run of several configurations: a folder with one model folder for each."""
        return self.root / "configurations"

    def partner(self, name: str) -> RunFolder:
        """The model folder of a further member of an ensemble."""
        return RunFolder(self.root / "partners" / name)

    def partners(self) -> tuple[RunFolder, ...]:
        """The further members of an ensemble, by name."""
        return tuple(RunFolder(plan.parent) for plan in sorted(self.root.glob("partners/*/plan.json")))

    @property
    def init_file(self) -> Path:
        """What its networks began from (`medseg.training.start.Origin`); there is none where they began anew."""
        return self.root / "init.json"

    @property
    def images_file(self) -> Path:
        """What a pre-training learned from (`medseg.pretraining.Images`)."""
        return self.root / "images.json"

    def curves(self) -> tuple[Path, ...]:
        """`metrics.csv` of every fold."""
        return tuple(sorted(self.root.glob("fold_*/metrics.csv")))

    @property
    def report(self) -> Path:
        """The evaluation of out-of-fold predictions."""
        return self.root / "report"

    def fold(self, fold: int | None) -> Path:
        """The folder of one fold; None is the model trained on every case."""
        return self.root / f"fold_{'none' if fold is None else fold}"

    def finished_file(self, fold: int | None) -> Path:
        """Exists when the training of a fold is over."""
        return self.fold(fold) / "state" / "finished.json"

    @property
    def previous(self) -> RunFolder:
        """The model whose predictions this one takes as a further input; exists where the plan has a `previous`."""
        return RunFolder(self.root / "previous")

    def folds_before(self, folds: Sequence[int | None] | None) -> Sequence[int | None] | None:
        """Which folds of `previous` go with folds of this model (None: all): where that has no model of every case, all of its folds."""
        if folds is None or None not in folds or any(file.parent == self.previous.fold(None) for file in self.previous.weights()):
            return folds
        return None

    def files(self) -> tuple[Path, ...]:
        """All that prediction needs, and where it comes from. Raises ModelError, see `weights`."""
        chosen = (self.dicom_file,) if self.dicom_file.is_file() else ()
        return (*chosen, *(file for part in self.parts() for file in (part.plan_file, part.provenance_file, *part.weights())))

    def parts(self) -> tuple[RunFolder, ...]:
        """This model folder and all within it: those of the stage before a cascade, and of partners."""
        within = (*((self.previous,) if Plan.load(self.plan_file).previous else ()), *self.partners())
        return (self, *(part for one in within for part in one.parts()))

    def origins(self) -> tuple[Path, ...]:
        """Where its networks began and which cases they were trained on; a copy that leaves the user's hands goes without, for it holds ids."""
        found = (file for part in self.parts() for file in (part.init_file, *sorted(part.root.glob("fold_*/past.json"))))
        return tuple(file for file in found if file.is_file())

    def copy(self, target: Path, further: Iterable[Path] = ()) -> None:
        """Copy all that prediction needs, and further files of this folder, into another one. Raises ModelError, see `weights`."""
        for file in (*self.files(), *further):
            place = target / file.relative_to(self.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)

    def digest(self) -> str:
        """Changes with whatever a prediction depends on: plans and weights, and what was chosen about DICOM. Raises ModelError, see `weights`."""
        files = [file for file in self.files() if file.name != self.provenance_file.name]
        parts = [Plan.load(file).content_digest() if file.name == self.plan_file.name else file_digest(file) for file in files]
        return hashlib.blake2b("/".join(parts).encode(), digest_size=8).hexdigest()

    def weights(self) -> tuple[Path, ...]:
        """Every network of every finished fold, in order.

        Raises:
            ModelError: the folder is not a trained model, or networks of a finished fold are missing.
        """
        files = self.root.glob("fold_*/network_*.safetensors")
        found = tuple(sorted(files, key=lambda file: (len(file.parent.name), file.parent.name, file.name)))
        if not self.plan_file.is_file() or not found:
            raise ModelError.of(
                "is not a trained model",
                where=str(self.root),
                found=", ".join(sorted(p.name for p in self.root.iterdir())[:8]) if self.root.is_dir() else "no such folder",
                expected="plan.json and fold_*/network_*.safetensors",
                fix="Pass the folder that `medseg train` or `medseg run` wrote, or finish the training: the same command again, `medseg train` "
                "with --resume.",
            )
        ended = sorted(file.parent.parent for file in self.root.glob("fold_*/state/finished.json"))
        # A fold that was copied without its state shows a gap only where a network before the last one is missing.
        wanted = {fold: _networks(fold) for fold in ended} | {
            file.parent: sum(other.parent == file.parent for other in found) for file in found if file.parent not in ended
        }
        missing = [file for fold, count in wanted.items() for n in range(count) if (file := network_file(fold, n)) not in found]
        if missing:
            raise ModelError(
                [
                    Problem(
                        "a trained network is missing",
                        str(file),
                        fix="Restore the file, or remove its fold's folder and train the fold again.",
                    )
                    for file in missing
                ]
            )
        return found
