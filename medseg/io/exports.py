"""What a prediction can be written as, beside a label map in its input's own format. Registered in `medseg.exports`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

from medseg import registry
from medseg.dataset import CaseFiles, Labels
from medseg.errors import Problem
from medseg.geometry import Grid
from medseg.io.dicom.settings import DicomSettings
from medseg.prediction import Prediction


@dataclass(frozen=True)
class Maker:
    """What made a prediction; it goes into the objects as device, software and algorithm.

    Attributes:
        model: name of the model.
        version: of medseg.
        digest: of the model's weights and plan.
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
    """

    files: CaseFiles
    prediction: Prediction
    grid: Grid
    labels: Labels
    maker: Maker


class Export(ABC):
    """One format of predictions. Stateless."""

    name: ClassVar[str]
    """As in `--format`."""
    summary: ClassVar[str]
    """One line for the help."""

    @abstractmethod
    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """The files that `write` writes for a case, relative to the folder of predictions; needs no pixel and no file."""

    @abstractmethod
    def problems(self, files: CaseFiles) -> tuple[Problem, ...]:
        """Why this case cannot be written in this format; from headers alone."""

    def warnings(self, files: CaseFiles, labels: Labels, maker: Maker) -> tuple[Problem, ...]:
        """What will be written less well than one may expect, such as classes without a code; from headers alone."""
        return ()

    @abstractmethod
    def write(self, result: Result, out: Path) -> None:
        """Write every target into `out`, each atomically.

        Raises:
            ImageError: the prediction cannot be expressed in the format.
            ResourceError: the folder cannot be written.
        """


def find_export(name: str) -> Export:
    """The export registered as `name`. Raises PlanError where there is none."""
    return cast(type[Export], registry.exports.get(name))()
