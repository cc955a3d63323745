"""A trained model that predicts: from files or arrays to label maps on the input's own grid."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.case import Batch, Case, PreparedCase
from medseg.dataset import CaseFiles, file_digest
from medseg.device import CPU_SHARE, choose_device, machine, physical_memory
from medseg.domains.base import Run, find_domain
from medseg.errors import ImageError, MedsegError, ModelError, Problem, ResourceError
from medseg.geometry import Grid, Step
from medseg.inference.ensemble import Ensemble, out_of_memory
from medseg.inference.inputs import find_cases, left_aside, resampled
from medseg.inference.ledger import FailedCase, Ledger, PredictedCase, content_digest
from medseg.inference.targets import check_targets, targets_of
from medseg.io.images import image_stem, read_case, read_header, write_label, write_maps
from medseg.models.weights import load_weights
from medseg.plans import Plan
from medseg.prediction import DenseMap, Prediction
from medseg.progress import Progress, Silent
from medseg.record import Record, check_writable
from medseg.scratch import Scratch, copy, release, row_slabs
from medseg.tasks.base import find_task
from medseg.workspace import RunFolder

GIB = 2**30
SHARE_OF_MAPS = 0.25  # of the memory for blended maps of all heads; beyond it they lie in temporary files
SHARE_OF_ARRAY = 0.08  # of the memory for each other array of a case; up to five exist at once, the rest is for the network
LOG = logging.getLogger(__name__)
LARGEST_BATCH = {"cpu": 4, "mps": 8, "cuda": 16}  # beyond it a device gains nothing


MANY_WINDOWS = 64  # cases of fewer are quick, and a progress bar for each would only flicker


class Predicted(Record):
    """What `Predictor.predict` did. `skipped` counts cases that were finished by an earlier call; they are among `cases`."""

    cases: tuple[PredictedCase, ...]
    failures: tuple[FailedCase, ...]
    skipped: int


class Predictor:
    """A trained model, ready to predict. Make one with `Predictor.load`."""

    def __init__(
        self,
        plan: Plan,
        networks: Sequence[nn.Module],
        device: torch.device,
        memory: float | None = None,
        key: str = "",
        previous: Predictor | None = None,
    ) -> None:
        """From parts.

        Args:
            plan: the plan of all networks.
            networks: of all folds; their outputs are averaged.
            device: where the networks run.
            memory: GiB of main memory for one case, see `load`.
            key: digest of the weights; outputs of other weights are not taken for finished.
            previous: of a cascade, the model whose prediction is a further input.
        """
        if (previous is not None) != bool(plan.previous):
            raise ValueError(f"plan '{plan.name}' and the previous predictor do not belong together")
        self.previous = previous
        self.plan = plan
        self.memory = memory if memory is not None else max(1.0, physical_memory() * CPU_SHARE / GIB)
        self.scratch = Scratch(self.memory * GIB * SHARE_OF_ARRAY)
        self.key = key
        self.task = find_task(plan.task)(plan)
        self.domain = find_domain(plan.domain)(plan)
        self.ensemble = Ensemble(self.task, networks, device, _batch_size(plan, device, self.memory))

    @classmethod
    def load(cls, run: Path, device: str = "auto", memory: float | None = None, folds: Sequence[int | None] | None = None) -> Predictor:
        """Read a model folder.

        Args:
            run: the folder that `medseg train` or `medseg run` wrote.
            device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
            memory: GiB of main memory that the prediction of one case may take; maps beyond it live in temporary files. None is half of
                the machine's.
            folds: which folds to average (None within it: the model of all cases); None is every trained fold.

        Raises:
            ModelError: not a model, a fold that is missing, damaged weights, or weights of another plan.
        """
        folder = RunFolder(run)
        files = folder.weights()
        plan = Plan.load(folder.plan_file)
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
        previous = cls.load(folder.previous.root, device, memory, folds) if plan.previous else None
        key = _digest(plan.content_digest(), *(file_digest(file) for file in files), previous.key if previous is not None else "")
        return cls(plan, networks, chosen, memory, key, previous)

    def predict(
        self,
        inputs: Path | CaseFiles | Sequence[Path | CaseFiles],
        out: Path,
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
        mirror: bool = True,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Predicted:
        """Predict files or folders into the folder `out`, one label map per case on the grid of its input.

        A case that fails, for whatever reason, does not stop the others. Cases that an earlier call finished from the same files with the
        same model are kept, so an interrupted call is continued by repeating it. Nothing is overwritten but earlier predictions.

        Args:
            inputs: image files, folders of images, case folders, folders of case folders, datasets, or cases as a dataset lists them (see
                `find_cases`). Channels on another grid than the first are resampled onto it, with a warning to `progress`.
            out: receives `<case><suffix of the input>` (`.png` for lossy formats) and `predictions.json`.
            probabilities: also write one map per class to `out/probabilities`.
            uncertainty: also record one number per case in `predictions.json`.
            mirror: average mirrored views, where the plan allows it.
            overwrite: predict again what is finished, and replace files that earlier calls did not write (inputs never).
            progress: told about each case.

        Raises:
            UsageError: inputs that do not exist or cannot be told apart, or outputs that would replace inputs or other people's files.
            ResourceError: `out` cannot be written.
        """
        progress = progress or Silent()
        given = [inputs] if isinstance(inputs, (Path, CaseFiles)) else list(inputs)
        cases = find_cases(given, self.plan.data.channels)
        new = [case for case in cases if case not in given]  # of a dataset's cases `verify` has told
        for warning in (left_aside(new, self.plan.data.channels), resampled(new, self.plan.data.channels)):
            if warning is not None:
                progress.say(f"warning: {warning}")
        ledger = Ledger(out)
        targets = check_targets(cases, out, probabilities, None if overwrite else ledger.files())
        check_writable(out)
        ledger.claim(targets)
        done: list[PredictedCase] = []
        failures: list[FailedCase] = []
        skipped = 0
        try:
            for files in progress.track(cases, len(cases), "predict"):
                try:
                    source = self._source(files, probabilities, uncertainty, mirror)
                    entry = None if overwrite else ledger.finished(files.id, source)
                    if entry is None:
                        entry = self._predict_files(files, out, source, probabilities, uncertainty, mirror, progress)
                    else:
                        skipped += 1
                    ledger.add(entry)
                    done.append(entry)
                except Exception as error:  # a bug or a full device in one case must not cost the others
                    LOG.debug("a case could not be predicted", exc_info=True)
                    failures.append(FailedCase(id=files.id, problems=tuple(str(problem) for problem in _problems(files, error))))
                    ledger.fail(failures[-1])
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
        self._check_fit(case_id, image.shape[0] if image.ndim else 0, tuple(image.shape[1:]))
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
        return self._predict_read(files, probabilities, mirror)

    def predict_case(self, case: Case, *, probabilities: bool = False, mirror: bool = True, progress: Progress | None = None) -> Prediction:
        """Predict a case on its native grid; the result lies on the same grid. The label of the case, if any, is not looked at.

        `progress` is told about windows where there are many.
        """
        _check_voxels(case)
        native = case.grid
        earlier = self.previous.predict_case(case, mirror=mirror, progress=progress).labels if self.previous is not None else None
        prepared = self.domain.prepare(dataclasses.replace(case, label=None, prior=earlier), self.scratch)
        case_id = case.id
        del case, earlier  # the image as read is needed no more, and may be large
        trail = prepared.trail
        maps = self._stitched(PreparedCase(case_id, prepared.image, None, (), native, trail, prepared.prior), mirror, progress)
        del prepared
        decoded = self.task.decode(self.domain.native(maps, trail), case_id, probabilities, self.scratch)
        del maps
        labels = self.task.finish(self.domain.restore(decoded.labels, trail, scratch=self.scratch), native.spacing)
        chances = None if decoded.probabilities is None else self._restored_maps(decoded.probabilities, trail, native.shape)
        return Prediction(case_id, labels, chances, decoded.uncertainty)

    def _stitched(self, case: PreparedCase, mirror: bool, progress: Progress | None) -> dict[str, DenseMap]:
        """The blended maps of all networks together, by head."""
        axes = self.plan.inference.mirror if mirror else ()
        runs = self.ensemble.runners(axes) if self.domain.blends_each_network else (self.ensemble.runner(axes),)
        memory = self.memory * GIB * SHARE_OF_MAPS / len(runs)
        counted = self._counted(runs, case.shape, progress)
        parts = [self.domain.stitch(case, run, self.task.heads, self.ensemble.batch_size, memory) for run in counted]
        return self.domain.mean(parts) if len(parts) > 1 else parts[0]

    def _counted(self, runs: Sequence[Run], shape: tuple[int, ...], progress: Progress | None) -> Sequence[Run]:
        total = self.domain.windows(shape) * len(runs)
        if progress is None or total < MANY_WINDOWS:
            return runs
        done = 0

        def counted(run: Run, windows: Batch) -> Mapping[str, Tensor]:
            nonlocal done
            outputs = run(windows)
            done += len(windows)
            progress.update("windows of this case", done, total)
            return outputs

        return [partial(counted, run) for run in runs]

    def _restored_maps(self, maps: NDArray[np.float16], trail: tuple[Step, ...], shape: tuple[int, ...]) -> NDArray[np.float16]:
        """Probabilities on the native grid: outside of what the network saw all is background."""
        background = len(maps) == len(self.plan.data.labels.classes) + 1
        restored: NDArray[np.float16] = self.scratch.zeros((len(maps), *shape), np.float16)
        for k, values in enumerate(maps):
            copy(self.domain.restore(values, trail, fill=1 if background and k == 0 else 0, scratch=self.scratch), restored[k])
        return restored

    def _predict_files(
        self, files: CaseFiles, out: Path, source: str, probabilities: bool, uncertainty: bool, mirror: bool, progress: Progress
    ) -> PredictedCase:
        start = time.monotonic()
        prediction = self._predict_read(files, probabilities, mirror, progress)
        image = files.images[0]
        written = [out / target for target in targets_of(files, prediction.probabilities is not None)]
        write_label(written[0], prediction.labels, like=image)
        if prediction.probabilities is not None:
            write_maps(written[1], self._as_float32(prediction.probabilities), like=image)
        return PredictedCase(
            id=files.id,
            file=written[0].relative_to(out),
            probabilities=written[1].relative_to(out) if len(written) > 1 else None,
            uncertainty=prediction.uncertainty if uncertainty else None,
            seconds=round(time.monotonic() - start, 3),
            source=source,
            content=content_digest(written),
        )

    def _predict_read(self, files: CaseFiles, probabilities: bool, mirror: bool, progress: Progress | None = None) -> Prediction:
        """Refuse what does not fit from the header alone, then read and predict."""
        headers = [read_header(path) for path in files.images]
        self._check_fit(files.id, sum(header.channels for header in headers), headers[0].shape, files.images[0])
        try:
            case = read_case(files, with_label=False, scratch=self.scratch)
            return self.predict_case(case, probabilities=probabilities, mirror=mirror, progress=progress)
        except MemoryError:
            raise ResourceError.of(
                "does not fit into memory",
                where=str(files.images[0]),
                found=f"shape {headers[0].shape}",
                fix="Pass a smaller --memory, or use a larger machine.",
            ) from None

    def _source(self, files: CaseFiles, probabilities: bool, uncertainty: bool, mirror: bool) -> str:
        """Changes with whatever changes the outcome of a case."""
        mirrored = self.plan.inference.mirror if mirror else ()
        return _digest(self.key, *(file_digest(file) for file in files.images), repr((probabilities, uncertainty, mirrored)))

    def _as_float32(self, maps: NDArray[np.float16]) -> NDArray[np.float32]:
        """What files hold: few programs read float16."""
        result: NDArray[np.float32] = self.scratch.zeros(maps.shape, np.float32)
        for source, target in zip(maps, result, strict=True):
            copy(source, target)
        return result

    def _check_fit(self, case_id: str, channels: int, shape: tuple[int, ...], path: Path | None = None) -> None:
        """Whether the model can be asked about such an image at all."""
        data = self.plan.data
        where = str(path) if path is not None else f"case '{case_id}'"
        problems = []
        if len(shape) != data.ndim:
            problems.append(
                Problem(
                    "has the wrong number of dimensions",
                    where,
                    f"{len(shape)}D, shape {shape}",
                    f"{data.ndim}D, as model '{data.name}' was trained on",
                    "Use a model for such images.",
                )
            )
        if channels != len(data.channels):
            names = ", ".join(channel.name for channel in data.channels)
            problems.append(
                Problem(
                    "has the wrong number of channels",
                    where,
                    f"{channels}",
                    f"{len(data.channels)} ({names}), as model '{data.name}' was trained on",
                    "Give one file with all channels, or one file per channel named CASE_0000, CASE_0001, ... in this order.",
                )
            )
        if problems:
            raise ImageError(problems)


def _check_voxels(case: Case) -> None:
    """NaN, infinite or constant images would come out as nonsense without a word."""
    for index, channel in enumerate(case.image):
        where = f"case '{case.id}', channel {index}"
        if channel.size == 0:
            raise ImageError.of("holds no voxel", where=where, found=f"shape {channel.shape}")
        low, high, bad = math.inf, -math.inf, 0
        for rows in row_slabs(channel.shape):
            part = channel[rows]
            lowest, highest = float(part.min()), float(part.max())
            if not math.isfinite(lowest) or not math.isfinite(highest):
                bad += int(np.count_nonzero(~np.isfinite(part)))
            low, high = min(low, lowest), max(high, highest)
            release(channel)
        if bad:
            raise ImageError.of(
                "holds NaN or infinite voxels",
                where=where,
                found=f"{bad} of {channel.size}",
                expected="finite intensities",
                fix="Repair the image, for example by replacing them with the background's value.",
            )
        if low == high:
            raise ImageError.of(
                "is constant: there is nothing to see", where=where, found=f"{low:g} everywhere", fix="Check how the image was exported."
            )


def _problems(files: CaseFiles, error: Exception) -> tuple[Problem, ...]:
    """What failed in a case; of an error that nobody foresaw its kind and the first line of its message, not its traceback."""
    if isinstance(error, MedsegError):
        return error.problems
    kind, first = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
    fix = (
        "Pass a smaller --memory, or predict on another device (--device)."
        if out_of_memory(error)
        else "Check this case's files; if they are sound, please report this as a bug of medseg."
    )
    return (Problem("could not be predicted", f"case '{files.id}', {files.images[0]}", kind + (f": {first}" if first else ""), "", fix),)


def _batch_size(plan: Plan, device: torch.device, memory: float) -> int:
    """Windows at once: a window without gradients takes less than a third of what it takes in training; half of the memory is for it."""
    offered = memory if device.type == "cpu" else machine(str(device)).memory
    per_window = max(plan.memory.training / plan.training.batch_size / 3, 1e-6)
    return max(1, min(LARGEST_BATCH.get(device.type, 1), int(offered / 2 / per_window)))


def _digest(*parts: str) -> str:
    return hashlib.blake2b("/".join(parts).encode(), digest_size=8).hexdigest()
