"""Training windows: which window comes at which step depends on the seed and the step alone, so any step can be repeated.

There is no shuffled state to save: item `i` of training is a function of `(seed, fold, i)`. Focused windows (`TrainingPlan.foreground`) are
spread evenly over the items; they take the classes in turn, so that a class that few cases hold comes as often as any other, and for each
class the cases that hold it. All other windows take all cases in turn. Turns pass through all cases before they repeat one, each time in
another order. Where annotations are sparse, windows that are not focused are centred on annotated voxels: others would teach nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medseg.case import PreparedCase, Window
from medseg.device import Kind
from medseg.domains.base import Domain, find_domain
from medseg.errors import DatasetError, MedsegError
from medseg.io.store import Store
from medseg.parallel import default_workers
from medseg.plans import Plan
from medseg.tasks.base import Pretext, find_objective

OPEN_CASES = 512  # memory-mapped cases kept open per process, at most
DESCRIPTORS = 2  # that one of them takes: image and label
GPU_WORKERS = 8


def stream(*key: int) -> np.random.Generator:
    """The random generator that belongs to a key (seed, fold, item, ...)."""
    return np.random.default_rng([k & 0xFFFFFFFF for k in key])


def fold_key(fold: int | None) -> int:
    """The fold as part of a random key."""
    return 0 if fold is None else fold + 1


def open_cases() -> int:
    """How many cases a process keeps open: their files take at most a quarter of those that the system lets it open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return OPEN_CASES
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return OPEN_CASES
    return max(1, min(OPEN_CASES, limit // 4 // DESCRIPTORS))


@dataclass(frozen=True)
class _Holders:
    """Which training cases windows come from.

    Attributes:
        classes: index of each class that occurs in some case, with the cases that hold it.
        everywhere: cases of windows that are not focused.
        entry: of `Domain.locations` that these are centred on; None: anywhere.
    """

    classes: tuple[tuple[int, tuple[str, ...]], ...]
    everywhere: tuple[str, ...]
    entry: int | None


class Windows(Dataset[Window]):
    """Training windows by item number. Opened lazily, so it travels to worker processes as a few strings."""

    def __init__(self, plan: Plan, folder: Path, ids: Sequence[str], fold: int | None) -> None:
        self.plan, self.folder, self.ids, self.fold = plan, folder, tuple(ids), fold
        self._domain: Domain | None = None
        self._open: dict[str, PreparedCase] = {}
        self._most = 0
        self._known: _Holders | None = None
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_domain": None, "_open": {}, "_most": 0, "_known": None, "_orders": {}}

    def __getitem__(self, item: int) -> Window:
        rng = stream(self.plan.training.seed, fold_key(self.fold), 1, item)
        case_id, focus = self.place(item)
        if self._domain is None:
            self._domain = find_domain(self.plan.domain)(self.plan)
        return self._domain.sample(self._case(case_id), rng, focus)

    def __getitems__(self, items: Sequence[int]) -> list[Window] | MedsegError:
        """A batch, or the error that a user can mend: torch would re-raise that of a worker process as a text without its problems."""
        try:
            return [self[item] for item in items]
        except MedsegError as error:
            return error

    def place(self, item: int) -> tuple[str, int | None]:
        """The case of an item, and which of its locations (`Domain.locations`) the window is centred on; None where it lies anywhere.

        Raises:
            DatasetError: a case is not prepared, or none has annotated voxels.
        """
        fraction = self.plan.training.foreground
        before, focused = int(item * fraction + 1e-9), int((item + 1) * fraction + 1e-9)
        holders = self._holders
        if not holders.classes:
            return self._next(holders.everywhere, item, 0), holders.entry
        if focused == before:
            return self._next(holders.everywhere, item - before, 0), holders.entry
        turn, place = divmod(before, len(holders.classes))
        index, ids = holders.classes[place]
        return self._next(ids, turn, index + 1), index

    @property
    def _holders(self) -> _Holders:
        if self._known is None:
            if issubclass(find_objective(self.plan.task), Pretext):  # annotations play no part, nor do their limits
                self._known = _Holders((), self.ids, None)
                return self._known
            store, labels = Store(self.folder), self.plan.data.labels
            counts = {case_id: store.counts(case_id) for case_id in self.ids}
            entries = [
                tuple(i for i in self.ids if counts[i] and counts[i][k]) for k in range(len(labels.classes) + (labels.ignore is not None))
            ]
            classes = tuple((k, ids) for k, ids in enumerate(entries[: len(labels.classes)]) if ids)
            self._known = _Holders(classes, self.ids, None)
            if labels.ignore is not None and any(counts.values()):
                if not entries[-1]:
                    raise DatasetError.of(
                        "no training case has annotated voxels",
                        where=f"{len(self.ids)} cases in {self.folder}",
                        found=f"only the value {labels.ignore}, which is ignored",
                    )
                self._known = _Holders(classes, entries[-1], len(labels.classes))
        return self._known

    def _next(self, ids: tuple[str, ...], number: int, key: int) -> str:
        """The case of the turn `number` through `ids`; `key` is 0 for all cases, else 1 + the class."""
        turn, place = divmod(number, len(ids))
        known = self._orders.get(key)
        if known is None or known[0] != turn:
            known = self._orders[key] = (turn, stream(self.plan.training.seed, fold_key(self.fold), 0, turn, key).permutation(len(ids)))
        return ids[int(known[1][place])]

    def _case(self, case_id: str) -> PreparedCase:
        found = self._open.get(case_id)
        if found is None:
            self._most = self._most or open_cases()
            while len(self._open) >= self._most:
                self._open.pop(next(iter(self._open)))
            found = self._open[case_id] = Store(self.folder).read(case_id)
        return found


class Steps(Sampler[list[int]]):
    """The item numbers of every batch from the present step to the end of its epoch; ranks share each batch equally."""

    def __init__(self, steps: int, batch: int, rank: int, ranks: int, position: Callable[[], int]) -> None:
        self.steps, self.batch, self.share, self.rank, self.position = steps, batch, batch // ranks, rank, position

    def __iter__(self) -> Iterator[list[int]]:
        start = self.position()
        for step in range(start, (start // self.steps + 1) * self.steps):
            first = step * self.batch + self.rank * self.share
            yield list(range(first, first + self.share))

    def __len__(self) -> int:
        return self.steps


def collate(windows: list[Window] | MedsegError) -> tuple[Tensor, ...] | MedsegError:
    """Images `(N, C, *window)` float32, labels `(N, *window)`, and priors like them where there are any; an error as it is."""
    if isinstance(windows, MedsegError):
        return windows
    images = torch.from_numpy(np.stack([np.asarray(window.image, dtype=np.float32) for window in windows]))
    labels = torch.from_numpy(np.stack([window.label for window in windows]))
    priors = [np.asarray(window.prior, dtype=np.int16) for window in windows if window.prior is not None]
    return (images, labels, torch.from_numpy(np.stack(priors))) if priors else (images, labels)


class TrainingData(LightningDataModule):
    """Feeds one rank of one fold. On a CPU windows are cut in the training process itself: workers would compete with it for the cores."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        ids: Sequence[str],
        fold: int | None,
        device: Kind,
        rank: int = 0,
        ranks: int = 1,
        workers: int | None = None,
    ) -> None:
        """`workers`: processes that cut windows for a GPU, of all ranks together; None: one per core but the ranks' own, at most `GPU_WORKERS` each."""
        super().__init__()
        self.windows = Windows(plan, folder, ids, fold)
        share = min(GPU_WORKERS, default_workers() // ranks - 1) if workers is None else workers // ranks
        self.workers = 0 if device == "cpu" else max(1, share)
        self.pin = device == "cuda"
        training = plan.training
        self.batches = Steps(training.steps, training.batch_size, rank, ranks, self._position)

    def _position(self) -> int:
        return int(self.trainer.global_step) if self.trainer is not None else 0

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise what went wrong with a batch."""
        if isinstance(batch, MedsegError):
            raise batch
        return batch

    def train_dataloader(self) -> DataLoader[Window]:
        """Batches from the present step on."""
        return DataLoader(
            self.windows,
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=self.pin,
            persistent_workers=self.workers > 0,
            multiprocessing_context="spawn" if self.workers else None,
        )
