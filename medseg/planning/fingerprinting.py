"""From a dataset to its fingerprint: every case measured in parallel, one at a time per process, cached by content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

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

FORMAT = 1  # of cached measurements; raise it when a measurement changes its meaning
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
    cases: list[CaseStats] = []
    outcomes = (progress or Silent()).track(map_cases(measure, dataset.cases, workers), len(dataset.cases), "Measuring cases")
    for outcome in outcomes:
        if outcome.failure is not None:
            problems += outcome.failure.problems
        elif outcome.result is not None:
            cases.append(outcome.result)
    if problems:
        raise DatasetError(problems)
    cases.sort(key=lambda c: c.id)
    return Fingerprint(
        dataset=dataset.name,
        digest=_digest(dataset, cases),
        ndim=dataset.ndim,
        channels=dataset.channels,
        labels=dataset.labels,
        intensities=merge_intensities(cases),
        cases=tuple(cases),
    )


def measure_case(files: CaseFiles, domain: str, labels: Labels, cache: Path | None, scratch: Scratch = IN_MEMORY) -> CaseStats:
    """One case's measurements, from the cache where these files were measured before; a large image lies in `scratch`."""
    digest = Digests.of_cache(cache).case(files)
    key = hashlib.blake2b(f"{FORMAT} {domain} {digest} {labels.to_json()}".encode(), digest_size=16).hexdigest()
    entry = None if cache is None else cache / f"{key}.json"
    if entry is not None and entry.is_file():
        try:
            return CaseStats.load(entry).model_copy(update={"id": files.id})
        except PlanError:  # written by another version: measured again and overwritten below
            entry.unlink()
    stats = find_domain(domain).measure(read_case(files, scratch=scratch), labels, digest)
    if entry is not None:
        stats.model_copy(update={"id": ""}).save(entry)  # a cache that is shared or kept names nobody
    return stats


def merge_intensities(cases: Sequence[CaseStats]) -> tuple[Intensities, ...]:
    """Pool the channels of all cases, each case with the same weight.

    A case without foreground was measured as a whole, so it only counts where no case has foreground.
    """
    counted = [case for case in cases if any(c.voxels for c in case.classes)] or list(cases)
    return tuple(_pooled([case.channels[k] for case in counted]) for k in range(len(counted[0].channels)))


def _pooled(parts: list[Intensities]) -> Intensities:
    means = np.array([p.mean for p in parts])
    mean = float(means.mean())
    variance = float(np.mean([p.std**2 for p in parts]) + np.mean((means - mean) ** 2))
    # Each stored quantile stands for the probability around it; the pooled distribution is the mean of the cases' distributions.
    values = np.concatenate([p.quantiles for p in parts])
    share = np.full(QUANTILES, 1 / (QUANTILES - 1))
    share[[0, -1]] /= 2
    shares = np.tile(share / len(parts), len(parts))
    order = np.argsort(values, kind="stable")
    below = np.cumsum(shares[order]) - shares[order] / 2
    quantiles = np.interp(np.linspace(0, 1, QUANTILES), below, values[order])
    return Intensities(
        count=sum(p.count for p in parts),
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
