"""A training that takes a second: synthetic prepared cases in a real store, the real domain, task and network, all of them tiny.

Also a program, for tests that kill it: `python tiny_training.py FOLDER '{"epochs": 6}'`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # when run as a program

from synthetic import make_dataset, make_fingerprint_of, make_plan

from medseg.case import Case
from medseg.domains.base import find_domain
from medseg.geometry import Grid
from medseg.io.store import Store
from medseg.plans import Plan
from medseg.training.budget import Budget
from medseg.training.splits import choose_split, make_splits
from medseg.training.start import Source
from medseg.training.train import train
from medseg.workspace import RunFolder, Workspace

SHAPE = (10, 12, 9)
EDITS = {
    "window": "[8, 8, 8]",
    "network.features": "[16, 16]",
    "network.strides": "[[1, 1, 1], [2, 2, 2]]",
    "network.kernels": "[[3, 3, 3], [3, 3, 3]]",
    "network.encoder": "[0, 0]",
    "network.decoder": "[1]",
    "training.steps": "3",
    "training.batch_size": "2",
    "training.folds": "3",
    "training.network_steps": "1000",
}


@lru_cache
def planned():
    return make_plan()


class Talk:
    """Remembers what it was told."""

    def __init__(self):
        self.updates, self.lines = [], []

    def track(self, items, total, what):
        yield from items

    def update(self, what, done, total, note="", seconds=False):
        self.updates.append((what, done, total, note))

    def say(self, message):
        self.lines.append(message)


@dataclass
class Tiny:
    """A workspace in `root` with six prepared cases."""

    root: Path
    edits: tuple[tuple[str, str], ...] = ()

    @cached_property
    def dataset(self):
        return make_dataset(cases=6)

    @cached_property
    def fingerprint(self):
        return make_fingerprint_of(self.dataset, SHAPE)

    @cached_property
    def plan(self):
        file = self.root / "base.json"
        if not file.is_file():  # kept for the program: planning takes longer than the training
            planned().save(file)
        return Plan.load(file).edited({**EDITS, **dict(self.edits)})

    @property
    def workspace(self):
        return Workspace(self.root)

    @cached_property
    def splits(self):
        return make_splits(self.dataset, self.fingerprint, self.plan.training.folds, 0)

    @cached_property
    def store(self):
        store = Store(self.root / "prepared")
        if store.ids():
            return store
        domain = find_domain(self.plan.domain)(self.plan)
        for i, case in enumerate(self.dataset.cases):
            rng = np.random.default_rng(i)
            label = np.zeros(SHAPE, np.uint8)
            label[2:5, 3:9, 2:7] = 1
            label[5:8, 3:9, 2:7] = 2
            image = (label + rng.normal(0, 0.3, SHAPE)).astype(np.float32)[None]
            grid = Grid.plain(SHAPE)
            store.write(Case(case.id, image, label, grid), grid, domain.locations(label), "digest")
        return store

    def run(self, name="run", fold=0, seconds=None, epochs=None, progress=None, save_every=0.0, **more):
        torch.set_num_threads(1)
        return train(
            self.plan,
            self.store,
            self.splits,
            fold,
            RunFolder(self.root / name),
            Budget(seconds, epochs),
            device="cpu",
            progress=progress,
            save_every=save_every,
            **more,
        )

    def source(self, name, fold=0):
        """A model in the same root as the start of a fold."""
        return Source.open(self.root / name, self.plan, fold, choose_split(self.splits, fold))

    def weights(self, name="run", fold=0, number=0):
        return (self.root / name / f"fold_{'none' if fold is None else fold}" / f"network_{number}.safetensors").read_bytes()


def digest_of(weights):
    """Changes with any bit of any tensor."""
    state = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        state.update(name.encode())
        state.update(weights[name].detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def fit_and_record(job, rank, port, progress, stop):
    """A rank's training that also writes digests of its own weights into `rank_<n>.txt`."""
    from medseg.training import train as module

    kept = []

    class Kept(module.Learner):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(self)

    module.Learner = Kept
    result = module._fit_rank(job, rank, port, progress, stop)
    (learner,) = kept
    digests = [digest_of(network.state_dict()) for network in (learner.network, learner.average)]
    (job.folder / f"rank_{rank}.txt").write_text(" ".join(digests))
    return result


def die_after(name, count):
    """End the process, as `kill -9` would, when a method `module.Class.method` has run so many times."""
    module, owner, method = name.rsplit(".", 2)
    cls = getattr(importlib.import_module(module), owner)
    real, calls = getattr(cls, method), iter(range(1, count + 1))

    def deadly(*arguments, **named):
        result = real(*arguments, **named)
        if next(calls) == count:
            os._exit(9)
        return result

    setattr(cls, method, deadly)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[2])
    if "die" in arguments:
        die_after(*arguments.pop("die"))
    tiny = Tiny(Path(sys.argv[1]), tuple(arguments.pop("edits", {}).items()))
    if arguments.pop("track", False):
        from medseg.training.tracking import Tracker

        arguments["tracker"] = Tracker.open(tiny.workspace, tiny.plan, tiny.fingerprint)
    if "source" in arguments:
        arguments["source"] = tiny.source(arguments["source"])
    print(tiny.run(**arguments).to_json())
