"""The one LightningModule: any objective on any domain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Generator, Tensor, nn

from medseg.case import Batch
from medseg.device import out_of_memory, release_cache
from medseg.domains.base import find_domain
from medseg.errors import ModelError, ResourceError
from medseg.models.base import Outputs
from medseg.models.blocks import memory_format
from medseg.plans import Plan
from medseg.progress import Progress, Silent
from medseg.tasks.base import find_objective
from medseg.training.budget import Clock
from medseg.training.data import fold_key, stream
from medseg.training.optim import make_optimizer, schedule
from medseg.training.portions import Portions, independent
from medseg.training.start import Start

AUGMENTATION = "augmentation"  # what a profiler is told
SHORTEST = 10.0  # steps: below this horizon averaging would only add noise


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of a device.

    `torch.manual_seed` also seeds all other kinds of device. For those that are not used it notes the call, with its stack, until they are:
    milliseconds and memory for every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


class Learner(LightningModule):
    """Augments on the device, sums the objective's loss terms, follows the clock with the learning rate, and averages the weights.

    `average` is the model that is delivered: an exponential moving average whose horizon grows with the steps (a constant fraction of them,
    `TrainingPlan.ema`), so that it suits short and long trainings (cf. Karras et al. 2024, power-function averaging).

    A step that runs out of memory is taken again in smaller portions (`Portions`), and so are all later ones; `portion` is the number of windows
    in one, None while the whole batch fits. Several devices would have to agree on it, so there it ends the training.
    """

    def __init__(
        self,
        plan: Plan,
        fold: int | None,
        clock: Clock,
        device: torch.device,
        rank: int = 0,
        start: Start | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.fold, self.clock, self.rank, self.start = plan, fold, clock, rank, start
        self.objective = find_objective(plan.task)(plan)
        self.domain = find_domain(plan.domain)(plan)
        self.layout = memory_format(device, len(plan.window))
        self.network = self._new(0)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.average.eval()
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.portion: int | None = None
        self._portions: Portions | None = None
        self._talk = progress or Silent()

    def _new(self, number: int) -> nn.Module:
        torch.manual_seed(self._seed(2, number))
        network = self.objective.network()
        if self.start is not None:
            self.start.begin(self.plan, network, number)
        laid_out: nn.Module = network.to(memory_format=self.layout)  # type: ignore[call-overload]
        return laid_out

    def renew(self, number: int) -> None:
        """Begin the next network, in place, so that what was compiled or distributed remains so."""
        fresh = self._new(number).state_dict()
        self.network.load_state_dict(fresh)
        self.average.load_state_dict(fresh)
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    def _seed(self, *key: int) -> int:
        return int(stream(self.plan.training.seed, fold_key(self.fold), *key).integers(2**63))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The plan's optimiser, over the trained network only."""
        return make_optimizer(self.network, self.plan.training)

    @torch.no_grad()
    def augmented(self, image: Tensor, label: Tensor, prior: Tensor | None = None) -> Batch:
        """Windows to an augmented batch, on their device, in float32; a repeated step repeats it."""
        seed = self._seed(3, self.global_step, self.rank)
        seed_device(image.device, seed)  # for dropout and the like
        with self.trainer.profiler.profile(AUGMENTATION), torch.autocast(image.device.type, enabled=False):  # type: ignore[attr-defined]
            return self.domain.augment(Batch(image, label, prior), Generator().manual_seed(seed))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Augmentation, forward and loss."""
        augmented = self.augmented(*batch)
        targets = self.objective.targets(augmented)
        if self.portion is not None:
            run = partial(self._part, augmented, targets)
            self._portions = Portions(run, len(augmented), self.portion, self._seed(4, self.global_step, self.rank))
        outputs = self.objective.run(self.network, augmented, targets) if self._portions is None else self._portions.forward()
        terms = self.objective.loss(outputs, targets)
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
        self.summed += 1
        return torch.stack(list(terms.values())).sum()

    def _part(self, batch: Batch, targets: Mapping[str, Tensor], rows: slice) -> Outputs:
        """The outputs of some windows of a batch."""
        return self.objective.run(self.network, batch[rows], {name: values[rows] for name, values in targets.items()})

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the weights."""
        super().backward(loss, *args, **kwargs)
        if self._portions is not None:
            with self.trainer.precision_plugin.forward_context():
                self._portions.backward()
            self._portions = None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None) -> None:
        """Set the learning rate by progress, step, and average."""
        factor = schedule(self.progress(), self.plan.training.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        super().optimizer_step(epoch, batch_idx, optimizer, partial(self._retried, optimizer_closure))
        self._average()

    def _retried(self, closure: Callable[[], Any] | None) -> Any:
        """Forward and backward; where memory runs out, again in smaller portions. Nothing has been learned from the step by then."""
        assert closure is not None  # Lightning's own loop always has one
        sums, summed = dict(self.sums), self.summed
        while True:
            try:
                return closure()
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or not self._smaller(error):
                    raise
                # what the exception's traceback holds is freed by leaving the handler
            self.sums, self.summed, self._portions = dict(sums), summed, None
            self.network.zero_grad()
            release_cache(self.device)

    def _smaller(self, error: Exception) -> bool:
        """Halve the portion. False where a step cannot be taken in portions; raises ResourceError where it cannot be smaller."""
        whole = self.plan.training.batch_size
        size = self.portion or whole
        if self.trainer.world_size > 1 or not independent(self.network):
            return False
        if size == 1:
            raise ResourceError.of(
                "one window at a time does not fit into memory",
                where=str(self.device),
                found=first_line(error),
                fix="Close other programs that use the device, plan again with a smaller --memory, or use a smaller window (--edit window=...).",
            ) from error
        self.portion = (size + 1) // 2
        self._talk.say(
            f"warning: out of memory on {self.device} with {size} window{'s' if size > 1 else ''} at once: from now on the {whole} of a step go "
            f"through the network {self.portion} at a time. The gradient is the same; a step takes about a third longer. A plan for less memory "
            "(`medseg plan --memory`) would train faster"
        )
        return True

    def progress(self) -> float:
        """From 0 to 1, the same on every rank."""
        value = self.clock.progress(self.global_step)
        if self.clock.seconds is not None and self.trainer.world_size > 1:
            shared = torch.tensor(value, dtype=torch.float64, device=self.device)
            torch.distributed.broadcast(shared, 0)
            value = float(shared)
        return value

    @torch.no_grad()
    def _average(self) -> None:
        steps = self.global_step - self.clock.begun
        weight = 1 / max(SHORTEST, self.plan.training.ema * steps) if self.plan.training.ema > 0 and steps > SHORTEST else 1.0
        for mine, theirs in ((self.average.parameters(), self.network.parameters()), (self.average.buffers(), self.network.buffers())):
            pairs = list(zip(mine, theirs, strict=True))
            smooth = [(a, b) for a, b in pairs if a.is_floating_point()]
            if smooth:
                torch._foreach_lerp_([a for a, _ in smooth], [b.detach() for _, b in smooth], weight)
            for a, b in pairs:
                if not a.is_floating_point():
                    a.copy_(b)

    def take_losses(self) -> dict[str, float]:
        """Mean loss terms since the last call, over all ranks, and forget them.

        Raises:
            ModelError: the loss is not finite.
        """
        names = sorted(self.sums)
        means = torch.stack([self.sums[name].reshape(()) for name in names]) / max(self.summed, 1)
        if self.trainer.world_size > 1:
            means = torch.as_tensor(self.trainer.strategy.reduce(means, reduce_op="mean"))
        self.sums, self.summed = {}, 0
        if not torch.isfinite(means).all():
            raise ModelError.of(
                "training diverged: the loss is not finite",
                where=f"epoch {self.current_epoch}",
                found=", ".join(f"{name} {float(v)}" for name, v in zip(names, means, strict=True)),
                fix=f"Train with a lower learning rate (--set training.learning_rate={self.plan.training.learning_rate / 3:.2g}).",
            )
        return {name: float(v) for name, v in zip(names, means, strict=True)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of an unfinished epoch, and how many windows fit at once."""
        checkpoint["sums"], checkpoint["summed"], checkpoint["portion"] = dict(self.sums), self.summed, self.portion

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        self.sums = {name: value.to(self.device) for name, value in checkpoint["sums"].items()}
        self.summed = int(checkpoint["summed"])
        self.portion = checkpoint.get("portion")
        if self.portion is not None:
            self._talk.say(
                f"as before, {self.portion} of {self.plan.training.batch_size} windows go through the network at once, for want of memory"
            )


def first_line(error: BaseException) -> str:
    """What an error says, or, where it says nothing, what it is."""
    return str(error).partition("\n")[0] or type(error).__name__
