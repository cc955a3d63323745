"""A trained model that predicts: from files or arrays to label maps on the input's own grid."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import nn

from medseg.case import Case
from medseg.dataset import CaseFiles, file_digest
from medseg.device import autocast_dtype, choose_device, out_of_memory
from medseg.errors import ModelError, Problem
from medseg.geometry import Grid
from medseg.inference.checks import case_problems, check_fit, check_partners, check_voxels, empty_field
from medseg.inference.estimate import ready, retreated
from medseg.inference.inputs import find_cases, left_aside, resampled
from medseg.inference.ledger import FailedCase, Ledger, PredictedCase
from medseg.inference.member import GIB, Member, stages_first
from medseg.inference.output import LABEL_MAPS, Output
from medseg.io.dicom.rules import effective, settings_of, with_series
from medseg.io.dicom.settings import NOTHING_CHOSEN, DicomSettings
from medseg.io.digests import image_digest
from medseg.io.exports import Maker, Result
from medseg.io.images import image_stem, read_case, read_header
from medseg.models.base import find_network
from medseg.models.weights import load_weights
from medseg.plans import Plan
from medseg.prediction import Prediction
from medseg.progress import Progress, Silent
from medseg.record import Record, check_writable
from medseg.scratch import Scratch
from medseg.tasks.base import find_task, unlearned
from medseg.workspace import RunFolder

SHARE_OF_ARRAY = 0.08  # of the memory for each other array of a case; up to five exist at once, the rest is for the network
LOG = logging.getLogger(__name__)


class Predicted(Record):
    """What `Predictor.predict` did. `skipped` counts cases that were finished by an earlier call; they are among `cases`."""

    cases: tuple[PredictedCase, ...]
    failures: tuple[FailedCase, ...]
    skipped: int


@final
class Predictor(Member):
    """A trained model, ready to predict. Make one with `Predictor.load`.

    With partners, models of other configurations, it is an ensemble: each member predicts a case on a grid of its own, and the task
    combines what they say of it on the native one.
    """

    previous: Predictor | None

    def __init__(
        self,
        plan: Plan,
        networks: Sequence[nn.Module],
        device: torch.device,
        memory: float | None = None,
        key: str = "",
        previous: Predictor | None = None,
        partners: Sequence[Predictor] = (),
        dicom: DicomSettings = NOTHING_CHOSEN,
    ) -> None:
        """From parts.

        Args:
            plan: the plan of all networks.
            networks: of all folds; their outputs are averaged.
            device: where the networks run.
            memory: GiB of main memory for one case, see `load`.
            key: digest of the weights; outputs of other weights are not taken for finished.
            previous: of a cascade, the model whose prediction is a further input.
            partners: further members; what was learned of held-out predictions (`Task.finish`) is this plan's only.
            dicom: what somebody chose about the model and DICOM.

        Raises:
            ModelError: a partner is a model for other classes, channels or tasks.
        """
        super().__init__(plan, networks, device, memory, key, previous)
        self.dicom = dicom
        check_partners(plan, [partner.plan for partner in partners])
        self.partners = tuple(partners)
        # The arrays of all members' predictions exist at once.
        self.scratch = Scratch(self.memory * GIB * SHARE_OF_ARRAY / (1 + len(self.partners)))
        learned = "" if plan.target.to_json() == plan.target.training_key() else plan.target.to_json()
        self.key = _digest(learned, *sorted([key, *(partner.weights for partner in self.partners)]))

    @classmethod
    def load(
        cls,
        run: Path,
        device: str = "auto",
        memory: float | None = None,
        folds: Sequence[int | None] | None = None,
        learned: bool = True,
    ) -> Predictor:
        """Read a model folder, with its partners.

        Args:
            run: the folder that `medseg train` or `medseg run` wrote.
            device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
            memory: GiB of main memory that the prediction of one case may take; maps beyond it live in temporary files. None is half of
                the machine's.
            folds: of every member; None is all, None within it the model of all cases (or all folds of an earlier stage without one).
            learned: finish predictions by what was learned of held-out ones; False leaves them as the networks give them.

        Raises:
            ModelError: not a model, a fold that is missing, damaged weights, or weights of another plan.
        """
        folder = RunFolder(run)
        files = folder.weights()
        plan = Plan.load(folder.plan_file) if learned else unlearned(Plan.load(folder.plan_file))
        if folds is not None:
            wanted = [folder.fold(fold) for fold in folds]
            trained = list(dict.fromkeys(file.parent for file in files))
            missing = [fold for fold in wanted if fold not in trained]
            if missing or not wanted:
                raise ModelError(
                    [
                        Problem(
                            "this fold has not been trained",
                            where=str(fold),
                            expected=f"one of {', '.join(f.name for f in trained)}",
                        )
                        for fold in missing
                    ]
                    or Problem("no fold was chosen", where=str(run), fix="Pass folds=None for all folds.")
                )
            files = tuple(file for file in files if file.parent in wanted)
        chosen = choose_device(device)
        digest = plan.trained_digest()
        task = find_task(plan.task)(plan)
        networks = [load_weights(task.network(), file, digest) for file in files]
        for network in networks:
            find_network(plan.network.kind).freeze(network, chosen, autocast_dtype(chosen))
        dicom = settings_of(folder.dicom_file, plan.data.channels, plan.data.labels.names)
        previous = cls.load(folder.previous.root, device, memory, folder.folds_before(folds)) if plan.previous else None
        key = _digest(digest, *(file_digest(file) for file in files), previous.key if previous is not None else "")
        partners = [cls.load(part.root, device, memory, folds) for part in folder.partners()]
        return cls(plan, networks, chosen, memory, key, previous, partners, dicom)

    def joined(self, partners: Sequence[Predictor]) -> Predictor:
        """This model with further members; networks are shared with it."""
        return self._like(self.plan, partners)

    def with_series(self, texts: Sequence[str]) -> Predictor:
        """This model with other rules for the series of channels (see `with_series`); networks are shared with it. Raises UsageError."""
        return self._like(self.plan, self.partners, with_series(self.dicom, texts, self.plan.data.channels))

    def raw(self) -> Predictor:
        """This model before it learned of held-out predictions; networks are shared with it."""
        return self._like(unlearned(self.plan), self.partners)

    def within(self, memory: float) -> Predictor:
        """This model with other GiB of main memory for a case; networks are shared with it, and predictions are the same."""
        previous = self.previous.within(memory) if self.previous is not None else None
        return self._like(self.plan, [partner.within(memory) for partner in self.partners], memory=memory, previous=previous)

    def _like(
        self,
        plan: Plan,
        partners: Sequence[Predictor],
        dicom: DicomSettings | None = None,
        memory: float | None = None,
        previous: Predictor | None = None,
    ) -> Predictor:
        ensemble, before = self.ensemble, previous or self.previous
        like = Predictor(
            plan, ensemble.networks, ensemble.device, memory or self.memory, self.weights, before, partners, dicom or self.dicom
        )
        like.ensemble.batch_size = min(like.ensemble.batch_size, ensemble.batch_size)  # as many as the device has been found to hold
        return like

    def predict(
        self,
        inputs: Path | CaseFiles | Sequence[Path | CaseFiles],
        out: Path,
        *,
        formats: Sequence[str] = LABEL_MAPS,
        probabilities: bool = False,
        uncertainty: bool = False,
        mirror: bool = True,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Predicted:
        """Predict files or folders into the folder `out`, each case on the grid of its input.

        A case that fails, for whatever reason, does not stop the others. Cases that an earlier call finished from the same files with the
        same model and version of medseg are kept, so an interrupted call is continued by repeating it. Nothing is overwritten but earlier predictions.

        Args:
            inputs: image files, folders of images, case folders, folders of case folders, datasets, or cases as a dataset lists them (see
                `find_cases`). Channels on another grid than the first are resampled onto it, with a warning to `progress`.
            out: receives the files of each format, and `predictions.json`.
            formats: names of exports (`medseg.exports`); empty: what suits the first image of each case, DICOM for DICOM; of objects also a table.
            probabilities: also write one map per class, in the formats that can hold them.
            uncertainty: also record one number per case in `predictions.json`.
            mirror: average mirrored views, where the plan allows it.
            overwrite: predict again what is finished, and replace files that earlier calls did not write (inputs never).
            progress: told about each case.

        Raises:
            UsageError: inputs that do not exist or cannot be told apart, a format that cannot serve a case, or outputs that would replace
                inputs or other people's files.
            ResourceError: `out` cannot be written.
        """
        progress = progress or Silent()
        given = [inputs] if isinstance(inputs, (Path, CaseFiles)) else list(inputs)
        cases = find_cases(given, self.plan.data.channels, self.dicom, self.plan.data.ndim, progress, damaged=True)
        new = [case for case in cases if case not in given]  # of a dataset's cases `verify` has told
        for warning in (left_aside(new, self.plan.data.channels), resampled(new, self.plan.data.channels)):
            if warning is not None:
                progress.say(f"warning: {warning}")
        ledger, output = Ledger(out), Output(out, formats, probabilities, bool(self.plan.data.labels.things))
        targets = output.check(cases, None if overwrite else ledger.files())
        maker = self.maker
        for told in output.warnings(cases, self.plan.data.labels, maker):
            progress.say(f"warning: {told}")
        check_writable(out)
        ledger.claim(targets)
        done: list[PredictedCase] = []
        failures: list[FailedCase] = []
        skipped = 0
        model: Predictor | None = None
        try:
            for files in progress.track(cases, len(cases), "predict"):
                try:
                    source = self.source(files, probabilities, uncertainty, mirror, output.key(files, maker.digest))
                    entry = None if overwrite else ledger.finished(files.id, source)
                    if entry is None:
                        model = model or ready(self, cases, progress)
                        start = time.monotonic()
                        prediction, grid = model._predict_read(files, probabilities, uncertainty, mirror, progress)
                        entry = model.write(prediction, files, grid, output, source, start, uncertainty)
                    else:
                        skipped += 1
                    ledger.add(entry)
                    done.append(entry)
                except Exception as error:  # a bug or a full device in one case must not cost the others
                    LOG.debug("a case could not be predicted", exc_info=True)
                    failures.append(FailedCase(id=files.id, problems=tuple(str(problem) for problem in case_problems(files, error))))
                    ledger.fail(failures[-1])
            output.collect(cases, done)
        finally:
            ledger.close()
        return Predicted(cases=tuple(done), failures=tuple(failures), skipped=skipped)

    def predict_array(
        self, image: NDArray[Any], grid: Grid | None = None, *, probabilities: bool = False, mirror: bool = True, case_id: str = "array"
    ) -> Prediction:
        """Predict one image in memory.

        Args:
            image: `(C, Z, Y, X)` or `(C, Y, X)`, intensities as in the files the model was trained on.
            grid: where the voxels lie; None is spacing 1 at the origin.
            probabilities: also return the class probabilities.
            mirror: average mirrored views, where the plan allows it.
            case_id: name in errors.

        Returns:
            Labels `(*shape)` and probabilities `(K, *shape)` on the grid of `image`.

        Raises:
            ImageError: the image does not fit the model.
        """
        check_fit(self.plan.data, case_id, image.shape[0] if image.ndim else 0, tuple(image.shape[1:]))
        return self.predict_case(
            Case(case_id, image, None, grid or Grid.plain(tuple(image.shape[1:]))), probabilities=probabilities, mirror=mirror
        )

    def predict_file(self, images: Path | Sequence[Path], *, probabilities: bool = False, mirror: bool = True) -> Prediction:
        """Predict one case from its file, or from one file per channel in order, without writing anything.

        Raises:
            ImageError: a file cannot be read, or does not fit the model.
        """
        paths = (images,) if isinstance(images, Path) else tuple(images)
        stem = image_stem(paths[0])
        files = CaseFiles(id=stem, images=paths, group=stem)
        warning = resampled([files], self.plan.data.channels)
        if warning is not None:
            LOG.warning("%s", warning)
        return self._predict_read(files, probabilities, False, mirror)[0]

    def predict_case(
        self,
        case: Case,
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
        mirror: bool = True,
        progress: Progress | None = None,
    ) -> Prediction:
        """See `Member.predict_case`; an ensemble's members are asked one after the other."""
        if not check_voxels(case, self.plan.data.labels):
            return empty_field(case, self.plan.data.labels, probabilities, self.scratch, progress or Silent())
        members = (self, *self.partners)
        several = len(members) > 1
        known: dict[str, NDArray[Any]] = {}
        said = {
            place: members[place].alone(
                case, probabilities or several, mirror, self.scratch, progress, uncertainty and not several, known if several else None
            )
            for place in stages_first(members)
        }
        return self.together([said[place] for place in range(len(members))], case, probabilities, uncertainty)

    def together(self, predictions: Sequence[Prediction], case: Case, probabilities: bool = False, uncertainty: bool = False) -> Prediction:
        """The prediction of the ensemble from those of its members, this one's first."""
        (first, *others) = predictions
        whole = self.task.combine(predictions, case.id, probabilities, self.scratch, uncertainty) if others else first
        labels = self.task.finish(whole.labels, case.grid.spacing)
        return dataclasses.replace(whole, labels=labels, probabilities=whole.probabilities if probabilities else None)

    def write(
        self,
        prediction: Prediction,
        files: CaseFiles,
        grid: Grid,
        output: Output,
        source: str,
        start: float,
        uncertainty: bool = False,
    ) -> PredictedCase:
        """Write a prediction on the grid of its case; `start` is when the work on it began (`time.monotonic`)."""
        labels = self.plan.data.labels
        return output.write(Result(files, prediction, grid, labels, self.maker, self.scratch), source, start, uncertainty)

    @property
    def maker(self) -> Maker:
        """What the objects that hold predictions say about their origin."""
        names = "+".join([self.plan.name, *(partner.plan.name for partner in self.partners)])
        data = self.plan.data
        settings = effective(self.dicom, data.channels, data.labels, data.name)  # the same whether defaults are written out or not
        terms = DicomSettings(classes=settings.classes).to_json()
        return Maker(f"{data.name} {names}", version("medseg"), _digest(self.key, terms), settings)

    def _predict_read(
        self, files: CaseFiles, probabilities: bool, uncertainty: bool, mirror: bool, progress: Progress | None = None
    ) -> tuple[Prediction, Grid]:
        """Read and predict, also the grid of the case; where memory runs out, again with less of it."""
        model = self
        while True:
            try:
                return model._attempted(files, probabilities, uncertainty, mirror, progress)
            except (MemoryError, RuntimeError, OSError) as error:
                if not out_of_memory(error):
                    raise
                # what the exception's traceback holds is freed by leaving the handler
            model = retreated(model, self.memory, files)

    def _attempted(
        self, files: CaseFiles, probabilities: bool, uncertainty: bool, mirror: bool, progress: Progress | None
    ) -> tuple[Prediction, Grid]:
        case = self.read(files)
        found = self.predict_case(case, probabilities=probabilities, uncertainty=uncertainty, mirror=mirror, progress=progress)
        return found, case.grid

    def read(self, files: CaseFiles) -> Case:
        """Read a case, without its label, after refusing what does not fit from the header alone."""
        headers = [read_header(path) for path in files.images]
        check_fit(self.plan.data, files.id, sum(header.channels for header in headers), headers[0].shape, files.images[0])
        return read_case(files, with_label=False, scratch=self.scratch)

    def source(self, files: CaseFiles, probabilities: bool, uncertainty: bool, mirror: bool, written: str = "") -> str:
        """Changes with whatever changes the outcome of a case; `written` is the key of the output (`Output.key`).

        The version of medseg is a part of it: another one may round otherwise, or say more, with the same plan and weights. The device
        is not: what was begun on one may be continued on another.
        """
        mirrored = sorted(axes for axes in self._mirrored() if axes) if mirror else []
        images = [image_digest(file) for file in files.images]
        return _digest(version("medseg"), self.key, *images, repr((probabilities, uncertainty, mirrored)) + written)

    def _mirrored(self) -> list[tuple[int, ...]]:
        """The axes that each model flips that takes part in a prediction: members, and the stages before them."""
        return [self.plan.inference.mirror, *(axes for other in (*self.partners, self.previous) if other for axes in other._mirrored())]


def _digest(*parts: str) -> str:
    return hashlib.blake2b("/".join(parts).encode(), digest_size=8).hexdigest()
