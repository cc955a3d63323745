"""How fast a model predicts on a device."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from medseg.case import Batch
from medseg.dataset import CaseFiles
from medseg.inference.estimate import Estimate, estimated
from medseg.inference.predictor import Predictor
from medseg.io.images import read_header
from medseg.pages import given_back
from medseg.peak import PeakMemory
from medseg.progress import Progress


@dataclass(frozen=True)
class PredictionPace:
    """What a prediction takes.

    Attributes:
        windows_per_second: of the model's own network, each window in all its views.
        views: mirrored ones included.
        networks: whose outputs are averaged.
        windows: of the case, over all models that take part in its prediction.
        seconds: of the case.
        whole: whether that was measured, with reading, resampling and blending; otherwise it is what the networks alone will take.
        estimate: memory, as it is said before a prediction begins; None where the case cannot be read.
        memory: GiB on a GPU at the peak; None elsewhere.
    """

    windows_per_second: float
    views: int
    networks: int
    windows: int
    seconds: float
    whole: bool
    estimate: Estimate | None
    memory: float | None


def prediction_pace(predictor: Predictor, files: CaseFiles, seconds: float, progress: Progress) -> PredictionPace:
    """Measure windows on the device; then, where it fits into so many seconds, the whole case.

    Raises:
        ImageError: the case cannot be read, or does not fit the model.
        ResourceError: memory does not suffice.
    """
    device = predictor.ensemble.device
    grid = read_header(files.images[0]).grid
    members = _members(predictor)
    progress.update("prediction", 0, 2)
    peak = PeakMemory(device) if device.type == "cuda" else None
    try:
        rates = [_rate(member, seconds / 3 / len(members), member.domain.windows(member.domain.extent(grid))) for member in members]
    finally:
        given_back()
    windows = [member.domain.windows(member.domain.extent(grid)) for member in members]
    spent = sum(count / rate for count, rate in zip(windows, rates, strict=True))
    progress.update("prediction", 1, 2)
    whole = spent <= seconds / 2
    if whole:
        start = time.perf_counter()
        predictor.predict_case(predictor.read(files))
        spent = time.perf_counter() - start
    progress.update("prediction", 2, 2)
    views = 2 ** len(predictor.plan.inference.mirror)
    memory = peak.stop() if peak is not None else None
    networks = len(predictor.ensemble.networks)
    return PredictionPace(rates[0], views, networks, sum(windows), spent, whole, estimated(predictor, files), memory)


def _members(predictor: Predictor) -> list[Predictor]:
    """All models that take part in a prediction, this one first: partners, and the stages before any of them."""
    others = (*predictor.partners, *((predictor.previous,) if predictor.previous is not None else ()))
    return [predictor, *(member for other in others for member in _members(other))]


def _rate(member: Predictor, seconds: float, most: int) -> float:
    """Windows per second, in batches as for a case of `most` windows."""
    plan, run = member.plan, member.ensemble.runner(member.plan.inference.mirror)

    def timed(count: int) -> float:
        prior = torch.zeros(count, *plan.window, dtype=torch.int16) if plan.previous else None
        batch = Batch(torch.randn(count, len(plan.data.channels), *plan.window), None, prior)
        start = time.perf_counter()
        run(batch)
        return time.perf_counter() - start

    first = timed(1)  # kernels are chosen
    count = min(member.ensemble.batch_size, most)
    if first * count > seconds:
        return 1 / first
    timed(count)
    done, spent = 0, 0.0
    while done == 0 or spent < seconds / 2:
        spent += timed(count)
        done += count
    return done / spent
