"""Prepare every case of a dataset once, so that training only reads windows: parallel, resumable, atomic, for several plans at a time."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.case import Case
from medseg.dataset import CaseFiles, Dataset
from medseg.device import memory_per_array
from medseg.domains.base import Domain, find_domain
from medseg.errors import DatasetError, MedsegError, PlanError, Problem, ResourceError
from medseg.io.digests import Digests
from medseg.io.images import read_case, read_header
from medseg.io.store import Store
from medseg.parallel import default_workers, map_cases
from medseg.plans import Plan
from medseg.progress import Progress, Silent
from medseg.record import Section
from medseg.scratch import Scratch

FORMAT = 2  # of prepared cases; raise it when the same plan prepares them otherwise
SPARE = 2**28  # bytes left free on the disk: filling it to the last byte harms every other program
COMPRESSED = 20  # times that a byte of one file may hold more than a byte of another
ARRAYS = 4  # large arrays that exist at once while a case is prepared


@dataclass(frozen=True)
class _Target:
    """How cases are prepared, and where they lie then.

    Attributes:
        plan: without sections of which only the kind matters here, because their classes would import torch in every process.
        asked: all that the plan does to a case, as text.
    """

    plan: Plan
    asked: str
    folder: Path

    @classmethod
    def of(cls, plan: Plan, folder: Path) -> _Target:
        kinds = {part: Section(kind=getattr(plan, part).kind) for part in ("network", "target")}
        return cls(plan.model_copy(update=kinds), f"{plan.space.preparation_key()} {plan.data.labels.to_json()}", folder)

    def digest(self, content: str) -> str:
        """Changes with any byte of a case's files, whose digest is `content`, and with whatever the plan does to them."""
        return hashlib.blake2b(f"{FORMAT} {content} {self.asked}".encode(), digest_size=8).hexdigest()


def prepare(
    dataset: Dataset,
    plan: Plan,
    folder: Path,
    workers: int | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Store:
    """As `prepare_all`, for one plan."""
    (store,) = prepare_all(dataset, {folder: plan}, workers, progress, cache)
    return store


def prepare_all(
    dataset: Dataset,
    plans: Mapping[Path, Plan],
    workers: int | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> tuple[Store, ...]:
    """Prepare all labelled cases of `dataset` as each plan says and keep them in its folder; every case is read once for all of them.

    A case whose files and settings are those of an earlier call is skipped, so an interrupted call is continued by repeating it. A case
    that fails does not stop the others; all failures are raised together at the end.

    Args:
        dataset: what to prepare.
        plans: plans made for this dataset, by the folder where their prepared cases lie, `Workspace.prepared(plan)`.
        workers: processes; None is one per core.
        progress: told about each case.
        cache: folder in which digests of files are remembered (`Workspace.cache`), so that a repeated call reads no file again; None: no
            cache.

    Raises:
        PlanError: a plan was made for other channels, labels or dimensions.
        ResourceError: the disk is too small (found out from one case before all others are begun) or cannot be written.
        DatasetError: cases that cannot be prepared, all of them.
    """
    progress = progress or Silent()
    for plan in plans.values():
        _check_fit(dataset, plan)
    stores = tuple(map(Store, plans))
    for store in stores:
        store.sweep()
    targets = tuple(_Target.of(plan, folder) for folder, plan in plans.items())
    work = partial(_prepare_case, targets=targets, scratch=_scratch(workers), digests=Digests.of_cache(cache))
    begun = set.intersection(*(set(store.ids()) for store in stores))
    fresh = [case for case in dataset.cases if case.id not in begun]
    problems: list[Problem] = []
    trials = _trials(fresh)
    known: set[str] = set()
    for trial in trials:  # as many as fail, until one tells how much room a case takes
        known.add(trial.id)
        (outcome,) = map_cases(work, [trial], workers)
        if outcome.result is not None:
            _check_disk(stores[0].folder, outcome.result, trial, [case for case in fresh if case.id not in known])
            break
        problems.extend(_named(trial, outcome.failure))
    rest = [case for case in dataset.cases if case.id not in known]
    progress.update("prepare", len(known), len(dataset.cases))
    for done, outcome in enumerate(map_cases(work, rest, workers), len(known) + 1):
        if outcome.failure is not None:
            problems.extend(_named(outcome.item, outcome.failure))
        progress.update("prepare", done, len(dataset.cases))
    if problems:
        raise DatasetError(problems)
    return stores


def _trials(fresh: Sequence[CaseFiles]) -> list[CaseFiles]:
    """Up to three cases spread over the dataset, to measure the room a case takes."""
    if not fresh:
        return []
    return [fresh[i] for i in sorted({0, len(fresh) // 2, len(fresh) - 1}, key=lambda i: abs(2 * i - len(fresh)))]


def _prepare_case(files: CaseFiles, targets: Sequence[_Target], scratch: Scratch, digests: Digests) -> int:
    """The bytes on disk that one case came to, 0 where it had been prepared before. Runs in a worker process."""
    content = digests.case(files)
    wanted = [(one, digest) for one in targets if not Store(one.folder).has(files.id, digest := one.digest(content))]
    if not wanted:
        return 0
    native = read_case(files, scratch=scratch, labels=wanted[0][0].plan.data.labels)
    size, last = 0, None
    for one, digest in wanted:
        domain = find_domain(one.plan.domain)(one.plan)
        if last is None or not (type(domain) is type(last.domain) and domain.prepares_like(last.domain, native.grid)):
            last = None  # or there would be two of it
            last = _Prepared.by(domain, native, scratch)
        Store(one.folder).write(last.case, native.grid, last.locations, digest)
        size += last.size
    return size


@dataclass(frozen=True)
class _Prepared:
    """A prepared case, and the domain that has prepared it."""

    domain: Domain
    case: Case
    locations: tuple[NDArray[np.int32], ...]

    @classmethod
    def by(cls, domain: Domain, native: Case, scratch: Scratch) -> _Prepared:
        case = domain.prepare(native, scratch)
        return cls(domain, case, domain.locations(case.label) if case.label is not None else ())

    @property
    def size(self) -> int:
        """Bytes in memory, about as many as on the disk."""
        arrays = (self.case.image, *(() if self.case.label is None else (self.case.label,)), *self.locations)
        return sum(array.nbytes for array in arrays)


def _scratch(workers: int | None) -> Scratch:
    return Scratch(memory_per_array(default_workers() if workers is None else max(1, workers), ARRAYS))


def _check_fit(dataset: Dataset, plan: Plan) -> None:
    """Whether the plan was made for such a dataset."""
    found = {
        "data.ndim": (dataset.ndim, plan.data.ndim),
        "data.channels": ([c.name for c in dataset.channels], [c.name for c in plan.data.channels]),
        "data.labels": (list(dataset.labels.values), list(plan.data.labels.values)),
    }
    if plan.previous and any(case.prior is None for case in dataset.cases):
        raise PlanError.of(
            f"takes predictions of '{plan.previous}' as a further input, and there are none yet",
            where=f"plan '{plan.name}'",
            fix=f"`medseg train` and `medseg run` train '{plan.previous}' first, predict every case, and prepare the cases then.",
        )
    problems = [
        Problem(
            "does not fit the dataset", f"plan '{plan.name}', field '{name}'", f"{ours}", f"{theirs} as in dataset '{dataset.name}'", fix
        )
        for name, (theirs, ours) in found.items()
        if theirs != ours
        for fix in ["Plan this dataset with `medseg plan`."]
    ]
    if problems:
        raise PlanError(problems)


def _check_disk(folder: Path, size: int, trial: CaseFiles, remaining: Sequence[CaseFiles]) -> None:
    """Refuse before the work begins when the remaining cases will not fit; `size` is what `trial` took.

    Prepared cases share one spacing, so their size goes with the volume in the world.
    """
    if size == 0 or not remaining:
        return
    free = shutil.disk_usage(folder).free
    files = size / max(1, _bytes(trial)) * sum(_bytes(case) for case in remaining)
    if files * COMPRESSED + SPARE <= free:
        return  # by far enough: reading a header of every case would cost more than it tells
    need = int(size / _volume(trial) * sum(_volume(case) for case in remaining))
    if need + SPARE > free:
        raise ResourceError.of(
            "the disk is too small for the prepared cases",
            where=str(folder),
            found=f"{free / 2**30:.2f} GiB free",
            expected=f"about {(need + SPARE) / 2**30:.2f} GiB for {len(remaining)} more cases",
            fix="Free disk space, or put the workspace on another disk (-o).",
        )


def _bytes(case: CaseFiles) -> int:
    """Of a case's images on disk; 0 where one cannot be found, which is reported when its turn comes."""
    try:
        return sum(image.stat().st_size for image in case.images)
    except OSError:
        return 0


def _volume(case: CaseFiles) -> float:
    """Volume of a case in the world; 0 where the header cannot be read, which is reported when its turn comes."""
    try:
        grid = read_header(case.images[0]).grid
    except MedsegError:
        return 0.0
    return float(math.prod(grid.shape) * math.prod(grid.spacing))


def _named(files: CaseFiles, failure: MedsegError | None) -> list[Problem]:
    """The problems of a case, each with the case's id."""
    problems = failure.problems if failure is not None else ()
    return [
        problem
        if files.id in problem.where
        else Problem(problem.what, f"case '{files.id}', {problem.where}".removesuffix(", "), problem.found, problem.expected, problem.fix)
        for problem in problems
    ]
