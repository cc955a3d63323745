"""Validation as in real use: whole prepared cases, sliding window, decoded and scored; and when it is worth its time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg.case import Batch, PreparedCase
from medseg.device import autocast_dtype
from medseg.domains.base import find_domain
from medseg.io.store import Store
from medseg.models.base import ObjectHead, Outputs
from medseg.models.blocks import memory_format
from medseg.plans import Plan
from medseg.prediction import Prediction, Scores
from medseg.tasks.base import Task, find_objective, find_task

CASES = 32  # more cases tell little more about the course of training, and cost time
SHARE = 0.05  # of the time that validation may take
ROUNDS = 20  # validations in a training without --patience
MAP_MEMORY = 2.0 * 2**30  # bytes of stitched maps held in memory


@dataclass(frozen=True)
class Validated:
    """Mean scores over the validated cases, by class, and their mean."""

    scores: Scores
    score: float
    cases: int
    seconds: float


class Validator:
    """Scores a network on whole cases. In a distributed training every rank scores its share."""

    def __init__(self, plan: Plan, store: Store, ids: Sequence[str], device: torch.device, rank: int = 0, ranks: int = 1) -> None:
        chosen = [ids[i] for i in sorted({round(p) for p in np.linspace(0, len(ids) - 1, min(CASES, len(ids)))})] if ids else []
        self.plan, self.store, self.device, self.ranks = plan, store, device, ranks
        self.ids = chosen[rank::ranks]
        self.total = len(chosen)
        self.domain = find_domain(plan.domain)(plan)
        self.count: int | None = None
        """Cases per rank; None until the first validation has measured how many the time allows."""

    @cached_property
    def task(self) -> Task:
        """The plan's task. Raises PlanError where its objective is none, so that there is nothing to validate."""
        return find_task(self.plan.task)(self.plan)

    @property
    def metric(self) -> str:
        """What validations measure; empty where the plan's objective is no task."""
        found = find_objective(self.plan.task)
        return found.metrics[0] if issubclass(found, Task) else ""

    def run(self, network: nn.Module, limit: float | None) -> Validated:
        """Score the network; the first run stops after `limit` seconds and fixes the number of cases for all later runs."""
        started = time.monotonic()
        was_training = network.training
        network.eval()
        table: list[Scores] = []
        try:
            for case_id in self.ids[: self.count]:
                case = self.store.read(case_id)
                prediction = self.predict(network, case)
                table.append(self._score(prediction, case))
                if self.count is None and limit is not None and time.monotonic() - started > limit:
                    break
        finally:
            network.train(was_training)
        if self.count is None:
            # Ranks hold shares that differ by one case; only a share that time cut short shortens the others.
            short = len(table) if len(table) < len(self.ids) else self.total
            self.count = max(1, int(self._reduce(float(short), "min")))
        everything = self._gather(table)
        seconds = self._reduce(time.monotonic() - started, "max")
        scores = mean_scores(everything)
        key = self.metric
        values = [row[key] for row in scores.values() if not math.isnan(row[key])]
        return Validated(scores, float(np.mean(values)) if values else math.nan, len(everything), seconds)

    @torch.no_grad()
    def predict(self, network: nn.Module, case: PreparedCase) -> Prediction:
        """One case, on the prepared grid."""
        maps = self.domain.stitch(case, self._windows(network), self.task.heads, self.plan.training.batch_size, MAP_MEMORY)
        return self.task.decode(maps, case.id)

    def _windows(self, network: nn.Module) -> Any:
        dtype = autocast_dtype(self.device)
        layout = memory_format(self.device, len(self.plan.window))

        def run(windows: Batch) -> Mapping[str, Tensor]:
            image = self.task.inputs(windows.to(self.device)).contiguous(memory_format=layout)
            with torch.autocast(self.device.type, dtype) if dtype else nullcontext():
                outputs: Outputs = network(image)
            found = {head.name: outputs[head.name][0].float().cpu() for head in self.task.heads}
            slots = {head.name for head in self.task.heads if isinstance(head, ObjectHead)}  # of one view of each window
            return {name: values[:, None] if name in slots else values for name, values in found.items()}

        return run

    def _score(self, prediction: Prediction, case: PreparedCase) -> Scores:
        grid = case.native
        for step in case.trail:
            grid = step.grid(grid)
        assert case.label is not None
        return self.task.score(np.asarray(prediction.labels), np.asarray(case.label), grid.spacing, self.task.metrics[:1])

    def _gather(self, table: list[Scores]) -> list[Scores]:
        if self.ranks == 1:
            return table
        tables: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(tables, table)
        return [scores for part in tables for scores in part]

    def _reduce(self, value: float, how: str) -> float:
        if self.ranks == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MIN if how == "min" else torch.distributed.ReduceOp.MAX)
        return float(tensor)


def mean_scores(table: Sequence[Scores]) -> Scores:
    """Mean over cases of every class and metric; undefined values (NaN) do not count."""
    means: Scores = {}
    for name in {name for scores in table for name in scores}:
        metrics = {metric for scores in table for metric in scores.get(name, {})}
        for metric in metrics:
            values = [scores[name][metric] for scores in table if name in scores and not math.isnan(scores[name].get(metric, math.nan))]
            means.setdefault(name, {})[metric] = float(np.mean(values)) if values else math.nan
    order = list(dict.fromkeys(name for scores in table for name in scores))
    return {name: means[name] for name in order}


class Agenda:
    """When to validate.

    With `--epochs` at fixed epochs, so that a training can be repeated; with `--time` such that all validations together take about
    `SHARE` of it. With `--patience` after every epoch (within the time's share).
    """

    def __init__(self, epochs: int | None, seconds: float | None, patience: int | None) -> None:
        self.seconds = seconds
        self.epochs = epochs
        self.every = 1 if patience is not None or epochs is None else -(-epochs // ROUNDS)
        self.cost = 0.0
        self.ended = 0.0

    @property
    def limit(self) -> float | None:
        """Seconds that the first validation may take; it fixes the number of cases."""
        return None if self.seconds is None else self.seconds * SHARE / 4

    @property
    def reserve(self) -> float:
        """Seconds to keep for the last validation."""
        return 0.0 if self.limit is None else 1.1 * (self.cost or self.limit)

    def due(self, epoch: int, elapsed: float) -> bool:
        """Whether to validate after this epoch (counted from 0), apart from the last validation, which always takes place."""
        if self.epochs is not None:
            return (epoch + 1) % self.every == 0
        assert self.seconds is not None
        pause = max(self.cost / SHARE, self.seconds / ROUNDS)
        return elapsed - self.ended >= pause and self.seconds - elapsed > 3 * self.reserve

    def done(self, cost: float, elapsed: float) -> None:
        """Note what a validation took."""
        self.cost, self.ended = cost, elapsed

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"cost": self.cost, "ended": self.ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.cost, self.ended = float(state["cost"]), float(state["ended"])
