"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from medseg.device import autocast_dtype
from medseg.plans import Optimizer, TrainingPlan

ADAM_SHARE = 0.1  # AdamW's learning rate, for what Muon does not orthogonalise, as a fraction of Muon's
THIN = 28  # a weight matrix with fewer inputs (3 x 3 x 3 x 1 channel = 27), or half as many outputs, has nothing to orthogonalise
BETAS = (0.9, 0.99)


def schedule(progress: float, warmup: float) -> float:
    """Factor of the peak learning rate at a progress from 0 to 1: linear warm-up, then a cosine to 0 (Loshchilov & Hutter 2017)."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def make_optimizer(network: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    """The plan's optimiser. Norms and biases are not decayed. Each group's `peak` is the learning rate that the schedule scales.

    Muon leaves to AdamW what is too thin, and modules that call themselves `last`, however many rows they have (Jordan et al. 2024).
    """
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    scalars = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    rate, decay = plan.learning_rate, plan.weight_decay
    plain = [{"params": weights, "weight_decay": decay}, {"params": scalars, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if plan.optimizer is Optimizer.sgd:
        optimizer = torch.optim.SGD([g for g in plain if g["params"]], lr=rate, momentum=0.99, nesterov=True)
    elif plan.optimizer is Optimizer.adamw:
        optimizer = torch.optim.AdamW([g for g in plain if g["params"]], lr=rate, betas=BETAS)
    else:
        last = {id(module.weight) for module in network.modules() if getattr(module, "last", False)}
        matrices = [p for p in weights if p[0].numel() >= THIN and p.shape[0] >= THIN // 2 and id(p) not in last]
        chosen = {id(p) for p in matrices}
        groups = [
            {"params": matrices, "weight_decay": decay, "orthogonal": True, "lr": rate},
            {"params": [p for p in weights if id(p) not in chosen], "weight_decay": decay, "orthogonal": False, "lr": rate * ADAM_SHARE},
            {"params": scalars, "weight_decay": 0.0, "orthogonal": False, "lr": rate * ADAM_SHARE},
        ]
        optimizer = Muon([g for g in groups if g["params"]])
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def orthogonalise(matrices: Sequence[Tensor], steps: int = 5) -> list[Tensor]:
    """For each matrix one near the closest whose singular values are all 1 (they end between about 0.7 and 1.2), by Newton-Schulz iteration.

    The iteration runs on the small Gram matrix: `X_k = P_k X_0` with `P_{k+1} = Q_k P_k` and `G_{k+1} = Q_k G_k Q_k`, so only two products
    have the size of the matrix. Gram matrices of one size go through it together: they are small, and one at a time calls would take longer than sums.

    Args:
        matrices: `(m, n)` float32 each.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (coefficients and number of steps).
    """
    wide = [x.mT if x.shape[0] > x.shape[1] else x for x in matrices]
    wide = [x / (x.norm() + 1e-7) for x in wide]
    products: dict[int, Tensor] = {}
    for size in {len(x) for x in wide}:
        members = [k for k, x in enumerate(wide) if len(x) == size]
        found = _polar(torch.stack([wide[k] @ wide[k].mT for k in members]), steps)
        products.update(zip(members, found, strict=True))
    results = []
    for k, (x, matrix) in enumerate(zip(wide, matrices, strict=True)):
        dtype = autocast_dtype(x.device) or x.dtype
        result = (products[k].to(dtype) @ x.to(dtype)).to(matrix.dtype)
        results.append(result.mT if matrix.shape[0] > matrix.shape[1] else result)
    return results


def _polar(gram: Tensor, steps: int) -> Tensor:
    """`P` of each Gram matrix `(b, m, m)`."""
    a, b, c = 3.4445, -4.7750, 2.0315
    product = gram
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor @ product if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
            gram = torch.lerp(gram, gram.mT, 0.5)  # rounding would make it drift from symmetry
    return product


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for groups with `orthogonal`; AdamW for all other groups.

    A convolution's weight `(out, in, *kernel)` is taken as the matrix `(out, in * kernel)`.
    Source: Jordan et al. 2024; AdamW: Loshchilov & Hutter 2019.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float = 0.02, momentum: float = 0.95, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": BETAS, "eps": eps, "weight_decay": 0.0, "orthogonal": False})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._orthogonal if group["orthogonal"] else self._adam)(params, group)
        return loss

    def _orthogonal(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        gradients = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        # Channels last, as convolutions keep them in memory, so that nothing is copied; the order of columns plays no part.
        momenta = [one.movedim(1, -1) for one in torch._foreach_lerp(gradients, buffers, group["momentum"])]
        updates = orthogonalise([one.flatten(1) for one in momenta])
        for p, momentum, update in zip(params, momenta, updates, strict=True):
            # Keeps the size of an update per entry alike for wide and tall matrices.
            p.add_(update.reshape(momentum.shape).movedim(-1, 1), alpha=-group["lr"] * max(1.0, p.shape[0] / p[0].numel()) ** 0.5)

    def _adam(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p].update(step=torch.zeros((), dtype=torch.int64), first=torch.zeros_like(p), second=torch.zeros_like(p))
        gradients = [p.grad for p in params if p.grad is not None]
        first = [self.state[p]["first"] for p in params]
        second = [self.state[p]["second"] for p in params]
        (b1, b2), lr = group["betas"], group["lr"]
        for p in params:
            self.state[p]["step"] += 1
        count = int(self.state[params[0]]["step"])
        torch._foreach_lerp_(first, gradients, 1 - b1)
        torch._foreach_mul_(second, b2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - b2)
        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, math.sqrt(1 - b2**count))
        torch._foreach_add_(scale, group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(params, first, scale, -lr / (1 - b1**count))
