"""From a dataset to its fingerprint: every case measured in parallel, one at a time per process, cached by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.case import Case
from medseg.dataset import CaseFiles, Dataset, Labels
from medseg.device import memory_per_array
from medseg.domains.base import find_domain
from medseg.errors import DatasetError, PlanError, Problem
from medseg.fingerprint import QUANTILES, CaseStats, Fingerprint, Intensities
from medseg.io.digests import Digests
from medseg.io.images import read_case
from medseg.parallel import default_workers, map_cases
from medseg.progress import Progress, Silent
from medseg.scratch import IN_MEMORY, Scratch

FORMAT = 4  # of cached measurements; raise it when a measurement changes its meaning
ARRAYS = 2  # large arrays that exist at once while a case is measured: the image and the values of its foreground


def make_fingerprint(
    dataset: Dataset, domain: str, cache: Path | None, workers: int | None = None, progress: Progress | None = None
) -> Fingerprint:
    """Measure every labelled case.

    Args:
        dataset: as a layout read it.
        domain: registered name of the domain that measures.
        cache: folder of per-case measurements, found again by the content of the files, and of the files' digests, which are not
            computed again while a file's size and times are the same; None: no cache.
        workers: processes; None: one per core.
        progress: told about every case.

    Raises:
        DatasetError: some cases cannot be read or measured; names all of them.
    """
    scratch = Scratch(memory_per_array(workers or default_workers(), ARRAYS))
    measure = partial(measure_case, domain=domain, labels=dataset.labels, cache=cache, scratch=scratch)
    problems: list[Problem] = []
    gathered = Gathered()
    outcomes = (progress or Silent()).track(map_cases(measure, dataset.cases, workers), len(dataset.cases), "Measuring cases")
    for outcome in outcomes:
        if outcome.failure is not None:
            problems += outcome.failure.problems
        elif outcome.result is not None:
            gathered.add(outcome.result)
    if problems:
        raise DatasetError(problems)
    return gathered.fingerprint(dataset)


class Gathered:
    """The measurements of a dataset's cases as they come in, in any order; intensities are kept as arrays until they are pooled."""

    def __init__(self) -> None:
        self._cases: list[tuple[CaseStats, _Sample]] = []

    def add(self, case: CaseStats) -> None:
        """One case's measurements."""
        self._cases.append((case.model_copy(update={"channels": ()}), _Sample.of(case)))

    def fingerprint(self, dataset: Dataset) -> Fingerprint:
        """All of them together."""
        self._cases.sort(key=lambda pair: pair[0].id)
        cases = [case for case, _ in self._cases]
        return Fingerprint(
            dataset=dataset.name,
            digest=_digest(dataset, cases),
            ndim=dataset.ndim,
            channels=dataset.channels,
            labels=dataset.labels,
            intensities=_merged([sample for _, sample in self._cases]),
            cases=tuple(cases),
        )


def measure_case(files: CaseFiles, domain: str, labels: Labels, cache: Path | None, scratch: Scratch = IN_MEMORY) -> CaseStats:
    """One case's measurements, from the cache where these files were measured before; a large image lies in `scratch`."""
    return measure(files, lambda: read_case(files, scratch=scratch, labels=labels), domain=domain, labels=labels, cache=cache)


def measure(files: CaseFiles, case: Callable[[], Case], *, domain: str, labels: Labels, cache: Path | None) -> CaseStats:
    """As `measure_case`, of what `case` gives."""
    digest = Digests.of_cache(cache).case(files)
    key = hashlib.blake2b(f"{FORMAT} {domain} {digest} {labels.to_json()}".encode(), digest_size=16).hexdigest()
    entry = None if cache is None else cache / f"{key}.json"
    if entry is not None and entry.is_file():
        try:
            return CaseStats.load(entry).model_copy(update={"id": files.id})
        except PlanError:  # written by another version: measured again and overwritten below
            entry.unlink()
    stats = find_domain(domain).measure(case(), labels, digest)
    if entry is not None:
        stats.model_copy(update={"id": ""}).remember(entry)  # a cache that is shared or kept names nobody
    return stats


def merge_intensities(cases: Sequence[CaseStats]) -> tuple[Intensities, ...]:
    """Pool the channels of all cases, each case with the same weight.

    A case without foreground was measured as a whole, so it only counts where no case has foreground.
    """
    return _merged([_Sample.of(case) for case in cases])


@dataclass(frozen=True)
class _Sample:
    """A case's intensities as arrays, which take a fifth of the memory of the record.

    Attributes:
        foreground: whether the case has any.
        counts: voxels `(C,)`.
        moments: mean and standard deviation `(C, 2)`.
        quantiles: `(C, QUANTILES)`.
    """

    foreground: bool
    counts: tuple[int, ...]
    moments: NDArray[np.float64]
    quantiles: NDArray[np.float64]

    @classmethod
    def of(cls, case: CaseStats) -> _Sample:
        return cls(
            foreground=any(c.voxels for c in case.classes),
            counts=tuple(c.count for c in case.channels),
            moments=np.array([(c.mean, c.std) for c in case.channels]),
            quantiles=np.array([c.quantiles for c in case.channels]),
        )


def _merged(samples: Sequence[_Sample]) -> tuple[Intensities, ...]:
    counted = [sample for sample in samples if sample.foreground] or list(samples)
    return tuple(_pooled(counted, channel) for channel in range(len(counted[0].counts)))


def _pooled(parts: Sequence[_Sample], channel: int) -> Intensities:
    means = np.array([p.moments[channel, 0] for p in parts])
    mean = float(means.mean())
    variance = float(np.mean([p.moments[channel, 1] ** 2 for p in parts]) + np.mean((means - mean) ** 2))
    # Each stored quantile stands for the probability around it; the pooled distribution is the mean of the cases' distributions.
    values = np.concatenate([p.quantiles[channel] for p in parts])
    share = np.full(QUANTILES, 1 / (QUANTILES - 1))
    share[[0, -1]] /= 2
    shares = np.tile(share / len(parts), len(parts))
    order = np.argsort(values, kind="stable")
    below = np.cumsum(shares[order]) - shares[order] / 2
    quantiles = np.interp(np.linspace(0, 1, QUANTILES), below, values[order])
    return Intensities(
        count=sum(p.counts[channel] for p in parts),
        mean=_short(mean),
        std=_short(variance**0.5),
        quantiles=tuple(_short(q) for q in quantiles),
    )


def _short(value: float) -> float:
    """Eight significant digits: sums in another order, on another machine, give the same record."""
    return float(f"{value:.8g}")


def _digest(dataset: Dataset, cases: Sequence[CaseStats]) -> str:
    told = [*(c.to_json() for c in dataset.channels), dataset.labels.to_json(), *(f"{c.id} {c.digest}" for c in cases)]
    return hashlib.blake2b("\n".join(told).encode(), digest_size=8).hexdigest()
