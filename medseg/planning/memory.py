"""What one training step of a plan costs, measured on the task's real network and loss under fake tensors: nothing is allocated.

Every tensor that the step creates is followed from its creation to its release, so the peak counts weights, gradients, optimiser state,
activations kept for the backward pass, and temporaries, for any architecture and without a formula.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from medseg.case import Batch
from medseg.plans import Optimizer, Plan
from medseg.tasks.base import find_task

GIB = 2**30
STATES = {Optimizer.adamw: 2, Optimizer.muon: 2, Optimizer.sgd: 1}  # float32 copies of the weights that the optimiser keeps (at most)
AVERAGED = 1  # one more copy for the averaged weights
WORKSPACE = 1.15  # kernels' workspaces and the allocator's gaps, which no tensor shows


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
    """
    task = find_task(plan.task)(plan)
    live = LiveStorage()
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(), live:
        network = task.network().train()
        weights = list(network.parameters())
        kept = [torch.zeros_like(w) for w in weights for _ in range(STATES[plan.training.optimizer] + AVERAGED)]
        size = (plan.training.batch_size,)
        batch = Batch(image=torch.zeros(*size, task.channels, *plan.window), label=torch.zeros(*size, *plan.window, dtype=torch.int16))
        with counter:
            targets = task.targets(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.memory.device == "cuda"):
                outputs = network(task.inputs(batch))
            terms = task.loss(outputs, targets)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        del kept
    return Cost(live.peak * WORKSPACE / GIB, int(counter.get_total_flops()), sum(w.numel() for w in weights))


def extrapolated(small: Cost, small_batch: int, large: Cost, large_batch: int, batch: int) -> Cost:
    """The cost of a batch from those of two smaller ones: activations, and so the peak, grow linearly with the batch."""
    share = (batch - small_batch) / (large_batch - small_batch)
    memory = small.memory + share * (large.memory - small.memory)
    return Cost(memory, round(small.flops + share * (large.flops - small.flops)), small.parameters)


class LiveStorage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory of all tensors created while it is active: `now` and `peak` in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count the storages it returns that were not known."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
