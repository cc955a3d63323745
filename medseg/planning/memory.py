"""What one training step of a plan costs, measured on the task's real network and loss with tensors that have no values (`shadows`).

Every tensor that the step creates is followed from its creation to its release, so the peak counts weights, gradients, optimiser state,
activations kept for the backward pass, and temporaries, for any architecture and without a formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medseg.case import Batch
from medseg.device import Kind
from medseg.errors import PlanError
from medseg.planning.shadows import Shadows, UnknownValueError, shadowed
from medseg.plans import Optimizer, Plan
from medseg.tasks.base import find_objective

GIB = 2**30
STATES = {Optimizer.adamw: 2, Optimizer.muon: 2, Optimizer.sgd: 1}  # float32 copies of the weights that the optimiser keeps (at most)
AVERAGED = 1  # one more copy for the averaged weights
UNSEEN: dict[Kind, tuple[float, float]] = {"cpu": (1.2, 0.15), "mps": (1.15, 0.0), "cuda": (1.15, 0.0)}
"""What no tensor shows: kernels' workspaces and the allocator's gaps, as a factor, and the libraries' own share, in GiB. Measured on a CPU
(`benchmarks/memory.py`: oneDNN keeps its generated code and reordered weights); for GPUs the margin is assumed."""
FILLING = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}
MEASURED = 16  # windows in the largest batch that is measured
REMEMBERED = 512  # costs; the search for plans, budgets and edits asks for the same ones again


@dataclass(frozen=True)
class Cost:
    """One training step.

    Attributes:
        memory: GiB at the peak.
        flops: multiplications and additions of the forward and backward pass.
        parameters: numbers in the network.
    """

    memory: float
    flops: int
    parameters: int


def training_memory(plan: Plan) -> float:
    """GiB at the peak of one training step of a plan."""
    return training_cost(plan).memory


def training_cost(plan: Plan) -> Cost:
    """Measure one training step: forward, loss, backward, with optimiser state and averaged weights.

    CUDA devices are measured with 16-bit autocast, as they train (`device.autocast_dtype`); Apple's GPUs in float32, as they train; CPUs in
    float32 too, which is the most that any of them takes, so that the plan does not depend on the CPU at hand.

    Batches beyond `MEASURED` windows are on the line through two smaller ones: the measurement takes as long as it has operators, as many as windows.

    Raises:
        PlanError: the network decides by the values of tensors, which are not there.
    """
    batch = plan.training.batch_size
    if batch <= MEASURED:
        return measured_cost(plan)
    small, large = (
        measured_cost(plan.model_copy(update={"training": plan.training.model_copy(update={"batch_size": size})}))
        for size in (MEASURED // 2, MEASURED)
    )
    return extrapolated(small, MEASURED // 2, large, MEASURED, batch)


def measured_cost(plan: Plan) -> Cost:
    """As `training_cost`, with exactly the plan's batch."""
    return _measured(_Step(plan))


def same_cost(first: Plan, second: Plan) -> bool:
    """Whether nothing that the cost of a training step depends on differs."""
    return _Step(first) == _Step(second)


class _Step:
    """A plan as far as the cost of a training step depends on it; equal steps cost the same."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        data, training = plan.data, plan.training
        sections = (plan.network.to_json(), plan.target.to_json(), data.labels.to_json())
        inputs = (len(data.channels), bool(plan.previous))
        self._key = (plan.task, *sections, *inputs, plan.window, training.batch_size, training.optimizer, plan.memory.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Step) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=REMEMBERED)
def _measured(step: _Step) -> Cost:
    plan = step.plan
    task = find_objective(plan.task)(plan)
    # Built with real tensors, because some networks read numbers back from small ones while they are built (MONAI's transformers do).
    with _Unfilled():  # type: ignore[no-untyped-call]
        network = task.network().train()
    shadows = Shadows()
    weights = shadowed(network, shadows)
    with shadows:
        kept = [torch.zeros_like(w) for w in weights for _ in range(STATES[plan.training.optimizer] + AVERAGED)]
        size = (plan.training.batch_size,)
        label = torch.zeros(*size, *plan.window, dtype=torch.int32 if plan.data.labels.things else torch.int16)
        batch = Batch(
            torch.zeros(*size, len(plan.data.channels), *plan.window),
            label,
            torch.zeros_like(label, dtype=torch.int16) if plan.previous else None,
        )
        try:
            targets = task.targets(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.memory.device == "cuda"):
                outputs = task.run(network, batch, targets)
            terms = task.loss(outputs, targets)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        except UnknownValueError as error:
            raise PlanError.of(
                "a training step cannot be measured, because it decides by the values of tensors",
                where=f"network '{plan.network.kind}' of task '{plan.task}'",
                found=str(error),
                expected="shapes and operators that depend on shapes only",
                fix="Replace .item(), nonzero() and boolean indexing in the network or loss.",
            ) from None
        del kept
    factor, share = UNSEEN[plan.memory.device]
    return Cost(shadows.peak / GIB * factor + share, shadows.flops, sum(w.numel() for w in weights))


class _Unfilled(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, random numbers are not written into tensors: memory is reserved for weights, but never used."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """See `shadows.LiveStorage`."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator unless it fills its first argument."""
        return args[0] if func in FILLING else func(*args, **(kwargs or {}))


def extrapolated(small: Cost, small_batch: int, large: Cost, large_batch: int, batch: int) -> Cost:
    """The cost of a batch from those of two smaller ones: activations, and so the peak, grow linearly with the batch."""
    share = (batch - small_batch) / (large_batch - small_batch)
    memory = small.memory + share * (large.memory - small.memory)
    return Cost(memory, round(small.flops + share * (large.flops - small.flops)), small.parameters)
