"""What the node's worker process does with a study: predict it with a model of medseg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import ImageError
from medseg.serving.ledger import digest
from medseg.serving.store import SUFFIX
from medseg.serving.worker import Handle, Results

if TYPE_CHECKING:
    from medseg.inference.predictor import Predicted


@dataclass(frozen=True)
class Model:
    """A recipe for the worker.

    Attributes:
        run: the model's folder.
        formats: of the results, names of exports.
        device: where the networks run.
        memory: GiB for one case.
    """

    run: Path
    formats: tuple[str, ...]
    device: str = "auto"
    memory: float | None = None

    def load(self) -> Handle:
        """Read the model. Raises MedsegError where that is not possible."""
        from medseg.io.exports import find_export

        for name in self.formats:
            find_export(name)
        from medseg.inference.inputs import chosen
        from medseg.inference.predictor import Predictor

        predictor = Predictor.load(self.run, device=self.device, memory=self.memory)
        data = predictor.plan.data

        def handle(images: Path, out: Path) -> Results:
            found = chosen([images], data.channels, predictor.dicom, data.ndim)
            predicted = predictor.predict(found.cases(damaged=True), out, formats=self.formats)
            files = dicom_files(predicted, out)
            problems = [problem for failure in predicted.failures for problem in failure.problems]
            if not files:
                raise ImageError.of(" ".join(problems) or "holds nothing that the model can predict")
            failed = f"{len(predicted.failures)} of {len(predicted.failures) + len(predicted.cases)} cases failed: {' '.join(problems)}"
            odd = found.studies.oddities() if found.studies is not None else ()
            return Results(files, tuple(map(instance_of, files)), " ".join([*([failed] if problems else []), *odd]))

        return handle


def dicom_files(predicted: Predicted, out: Path) -> tuple[Path, ...]:
    """The DICOM files among the results of a prediction into the folder `out`."""
    written = (out / file for case in predicted.cases for several in case.files.values() for file in several)
    return tuple(file for file in written if file.suffix == SUFFIX)


def instance_of(file: Path) -> str:
    """Digest of the SOP Instance UID of a DICOM file. Raises MedsegError where there is none."""
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    try:
        return digest(str(read_file_meta_info(file).MediaStorageSOPInstanceUID))
    except (OSError, InvalidDicomError, AttributeError):
        raise ImageError.of("is no DICOM file", where=file.name) from None
