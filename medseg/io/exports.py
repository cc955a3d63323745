"""What a prediction can be written as. Formats are registered in `medseg.exports`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

from medseg import registry
from medseg.dataset import CaseFiles, Labels
from medseg.errors import Problem
from medseg.geometry import Array, Grid
from medseg.io.dicom.settings import DicomSettings
from medseg.io.dicom.volume import SUFFIX
from medseg.prediction import Prediction
from medseg.scratch import IN_MEMORY, Scratch

LABELS = "labels"
"""The export that writes label maps in the input's own format: what further steps of medseg read."""
TABLE = "table"
"""The export that lists objects."""
DETECTIONS = "detections"
"""The export that holds all that was found, for scores of detections."""


@dataclass(frozen=True)
class Maker:
    """What made a prediction; it goes into the objects as device, software and algorithm.

    Attributes:
        model: name of the model.
        version: of medseg.
        digest: of the model's weights and plan, and of the terms that were chosen for its classes: other ones make other objects.
        settings: what the model says about DICOM.
        automatic: False where somebody else drew it, by hand or not.
    """

    model: str
    version: str
    digest: str
    settings: DicomSettings = field(default_factory=DicomSettings)
    automatic: bool = True


@dataclass(frozen=True)
class Result:
    """A prediction on its way to files.

    Attributes:
        files: the case; the first image is the one that the prediction lies on.
        prediction: labels `(*grid.shape)`, and probabilities `(K, *grid.shape)` where these were asked for.
        grid: of the case.
        labels: what the voxel values mean.
        maker: what predicted.
        scratch: where large arrays lie that writing needs.
    """

    files: CaseFiles
    prediction: Prediction
    grid: Grid
    labels: Labels
    maker: Maker
    scratch: Scratch = IN_MEMORY

    @property
    def semantic(self) -> Array:
        """The class values of the prediction, for formats that do not tell objects apart."""
        values: Array = self.labels.semantic(self.prediction.labels)
        return values


class Export(ABC):
    """One format of predictions. Stateless."""

    name: ClassVar[str]
    """As in `--format`."""
    summary: ClassVar[str]
    """One line for the help."""

    @abstractmethod
    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """The files that `write` writes for a case, relative to the folder of predictions; needs no pixel and no file.

        At least one, the format's own first. A format without probabilities writes the same files whether they are there or not. A
        file that two formats write holds the same, whichever writes it.
        """

    @abstractmethod
    def problems(self, files: CaseFiles) -> tuple[Problem, ...]:
        """Why this case cannot be written in this format; from headers alone. Raises ImageError where these cannot be read."""

    def warnings(self, files: CaseFiles, labels: Labels, maker: Maker) -> tuple[Problem, ...]:
        """What will be written less well than one may expect, such as classes without a code; from headers alone."""
        return ()

    @abstractmethod
    def write(self, result: Result, out: Path) -> None:
        """Write every target into `out`, each atomically, and nothing else. Targets of probabilities are due where `result` has these.

        Raises:
            ImageError: the prediction cannot be expressed in the format.
            ResourceError: the folder cannot be written.
        """

    @property
    def collected(self) -> tuple[Path, ...]:
        """Files about all cases of a call together, relative to the folder of predictions; most formats have none."""
        return ()

    def collect(self, written: Sequence[tuple[Path, ...]], out: Path) -> None:
        """Write every file of `collected`, atomically, from the targets that `write` wrote for each case; also for no case.

        Raises:
            ResourceError: the folder cannot be written.
        """
        assert not self.collected, f"'{self.name}' does not write what it announces"


def find_export(name: str) -> Export:
    """The export registered as `name`. Raises PlanError where there is none."""
    return cast(type[Export], registry.exports.get(name))()


def own_exports(files: CaseFiles, objects: bool = False) -> tuple[str, ...]:
    """The formats that people expect who ask for none: DICOM for DICOM, else that of the image; and where there are `objects`, a table of them."""
    own = "seg" if files.images[0].name.endswith(SUFFIX) else LABELS
    return (own, TABLE) if objects else (own,)
