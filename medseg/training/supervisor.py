"""What happens around the steps of a training: the end of the time, requests to stop, validation, metrics, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from medseg.errors import UsageError
from medseg.peak import PeakMemory
from medseg.progress import Progress
from medseg.training.budget import Clock, length
from medseg.training.history import History, Row
from medseg.training.module import Learner
from medseg.training.signals import StopRequest
from medseg.training.validation import Agenda, Validated, Validator

TELL_EVERY = 0.5  # seconds between progress updates


class Journal(Protocol):
    """Where the rows of a training go besides its own file. It never waits for anything."""

    def restore(self, rows: Sequence[Row]) -> None:
        """The rows of the training that goes on; those that did not arrive are sent again."""

    def log(self, row: Row) -> str:
        """One epoch's numbers. Returns what went wrong since the last call, or empty."""


class Supervisor(Callback):
    """Watches over one rank's training; its state is in the checkpoint, so that a resumed training goes on as if nothing had happened.

    Attributes:
        interrupted: name of the signal that ended the training early, or empty.
        stopped: whether `patience` ended it early.
        networks: delivered so far.
        validated: the last validation of each of them.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        peak: PeakMemory,
        agenda: Agenda,
        validator: Validator,
        deliver: Callable[[int, dict[str, Tensor]], None],
        history: History,
        stop: StopRequest,
        journal: Journal | None,
        progress: Progress,
        checkpoint: Path,
        save_every: float,
        patience: int | None,
    ) -> None:
        self.clock, self.agenda, self.validator, self.history, self.stop = clock, agenda, validator, history, stop
        self.deliver = deliver
        self.peak = peak
        self.journal, self.talk, self.checkpoint, self.save_every, self.patience = journal, progress, checkpoint, save_every, patience
        self.interrupted = ""
        self.stopped = False
        self.networks = 0
        self.validated: list[Validated] = []
        self.latest: Validated | None = None
        self.best: Validated | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.stale = 0
        self._saved = self._told = 0.0
        self._last = False
        self._note = ""

    # State.

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "clock": self.clock.state_dict(),
            "agenda": self.agenda.state_dict(),
            "count": self.validator.count,
            "rows": list(self.history.rows),
            "networks": self.networks,
            "validated": [asdict(one) for one in self.validated],
            "latest": asdict(self.latest) if self.latest else None,
            "best": asdict(self.best) if self.best else None,
            "best_weights": dict(self.best_weights),
            "stale": self.stale,
            "patience": self.patience,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.clock.load_state_dict(state_dict["clock"])
        self.agenda.load_state_dict(state_dict["agenda"])
        self.validator.count = state_dict["count"]
        self.history.rows = list(state_dict["rows"])
        if state_dict["patience"] != self.patience:
            raise UsageError.of(
                "this training was begun with another patience",
                where="--patience",
                found="none" if self.patience is None else str(self.patience),
                expected="none" if state_dict["patience"] is None else str(state_dict["patience"]),
                fix="Resume it as it was begun, or choose another output folder.",
            )
        self.networks = state_dict["networks"]
        self.validated = [Validated(**one) for one in state_dict["validated"]]
        self.latest, self.best = (Validated(**state_dict[key]) if state_dict[key] else None for key in ("latest", "best"))
        self.best_weights, self.stale = state_dict["best_weights"], state_dict["stale"]
        if self.clock.epochs is not None and len(self.history.rows) >= self.clock.epochs:
            raise UsageError.of(
                "this training is longer already",
                where="--epochs",
                found=length(None, self.clock.epochs),
                expected=f"more than the {len(self.history.rows)} that it has behind it",
            )
        changed = self.clock.before != (self.clock.seconds, self.clock.epochs)
        if self.clock.seconds is not None and self.clock.elapsed >= self.clock.seconds and changed:
            raise UsageError.of(
                "this training is longer already",
                where="--time",
                found=length(self.clock.seconds, None),
                expected=f"more than the {self.clock.elapsed:.0f} seconds that it has behind it",
            )

    # Hooks, in the order in which they are called.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from Lightning, which would end the process without saving, and start the clock."""
        self.stop.install()
        self._saved = time.monotonic()
        self.clock.reserve = self.agenda.reserve if self.validator.total else 0.0
        if self.clock.before != (self.clock.seconds, self.clock.epochs) and (self.clock.epochs is not None or trainer.global_step):
            self._allot(trainer, anew=True)
        if trainer.is_global_zero:
            self._tell_length()
            if self.journal is not None and self.history.rows:
                self.journal.restore(self.history.rows)
        self.clock.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After every step: is it time to stop, or to save?"""
        self.clock.tick(trainer.global_step)
        self._tell(trainer)
        request, over, save = self._agreed(
            trainer, bool(self.stop.name), self.clock.time_is_up(), time.monotonic() - self._saved > max(self.save_every, 1) * 15
        )
        if trainer.global_step % self.clock.steps == 0:
            self._last = over
            return  # the end of the epoch does the rest
        if request:
            self.interrupted = self.stop.name or "a signal on another rank"
            trainer.should_stop = True
        elif over:
            self._last = trainer.should_stop = True
        if request or (save and not over):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After every epoch: losses, validation, metrics, checkpoint."""
        if self.interrupted:
            return
        assert isinstance(pl_module, Learner)
        epoch = trainer.current_epoch
        losses = pl_module.take_losses()
        (over,) = self._agreed(trainer, self._last or self.clock.time_is_up())
        last = over or (self.clock.epochs is not None and epoch + 1 >= self.clock.epochs)
        ended = last or self.clock.end == trainer.global_step
        (due,) = self._agreed(trainer, self.agenda.due(epoch, self.clock.elapsed))
        validated = self._validate(pl_module) if self.validator.total and (due or ended) else None
        if self.patience is not None and validated is not None and self.stale >= self.patience:
            self.stopped = last = ended = True
        row = self._row(trainer, epoch, losses, validated)
        self.history.rows.append(row)
        if trainer.is_global_zero:
            self.history.save()
            problem = self.journal.log(row) if self.journal is not None else ""
            if problem:
                self.talk.say(f"warning: {problem}")
        if ended:
            self._deliver(trainer, pl_module)
        if ended and not last:
            self.clock.renew(trainer.global_step)
            pl_module.renew(self.clock.network)
        if not last:
            self._allot(trainer, anew=ended or (epoch == 0 and self.clock.seconds is not None))
        (request,) = self._agreed(trainer, bool(self.stop.name))
        if request and not last:
            self.interrupted = self.stop.name or "a signal on another rank"
        trainer.should_stop = trainer.should_stop or last or bool(self.interrupted)
        (save,) = self._agreed(trainer, ended or time.monotonic() - self._saved >= self.save_every)
        if not last and (save or self.interrupted):
            self._save(trainer)
        self.clock.skip()

    # Parts.

    def _deliver(self, trainer: Trainer, module: Learner) -> None:
        """A network is trained: its averaged weights are the model, with `patience` those of the best validation."""
        if not self.clock.worth(trainer.global_step):
            return
        if trainer.is_global_zero:
            self.deliver(self.clock.network, self.best_weights or dict(module.average.state_dict()))
        self.networks = self.clock.network + 1
        if (delivered := self.best or self.latest) is not None:
            self.validated.append(delivered)

    def _allot(self, trainer: Trainer, anew: bool) -> None:
        """Where the present network ends, the same on every rank."""
        if anew:
            self.clock.allot(trainer.global_step)
        else:
            self.clock.reconsider(trainer.global_step)
        if trainer.world_size > 1:
            end = torch.tensor(-1 if self.clock.end is None else self.clock.end, device=trainer.strategy.root_device)
            torch.distributed.broadcast(end, 0)
            self.clock.end = int(end) if int(end) >= 0 else None

    def _validate(self, module: Learner) -> Validated:
        self.peak.stop()  # what validation takes is no part of a training step
        validated = self.validator.run(module.average, self.agenda.limit)
        self.agenda.done(validated.seconds, self.clock.elapsed)
        self.clock.reserve = self.agenda.reserve
        self.latest = validated
        self._note = f"network {self.clock.network + 1}, validation {validated.score:.4f}"
        if self.patience is not None:
            if self.best is None or _worth(validated) > _worth(self.best):
                self.best, self.stale = validated, 0
                self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in module.average.state_dict().items()}
            else:
                self.stale += 1
        return validated

    def _row(self, trainer: Trainer, epoch: int, losses: dict[str, float], validated: Validated | None) -> Row:
        row: Row = {
            "epoch": epoch + 1,
            "network": self.clock.network + 1,
            "step": trainer.global_step,
            "progress": self.clock.progress(trainer.global_step),
            "seconds": self.clock.elapsed,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "loss": sum(losses.values()),
            **{f"loss/{name}": value for name, value in losses.items()},
        }
        if validated is not None:
            metric = self.validator.metric
            row[f"val/{metric}"] = validated.score
            row["val/cases"] = validated.cases
            row["val/seconds"] = validated.seconds
            row.update({f"val/{metric}/{name}": values[metric] for name, values in validated.scores.items()})
        return row

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.checkpoint)
        self._saved = time.monotonic()
        self.clock.skip()

    def _agreed(self, trainer: Trainer, *flags: bool) -> tuple[bool, ...]:
        """Each flag is true if it is so on any rank: all ranks must stop, validate and save at the same step."""
        if trainer.world_size == 1:
            return flags
        tensor = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tuple(bool(v) for v in tensor.tolist())

    def _tell_length(self) -> None:
        now = (self.clock.seconds, self.clock.epochs)
        if self.clock.before not in (None, now):
            assert self.clock.before is not None
            self.talk.say(f"this training was begun for {length(*self.clock.before)}; from here on its length is {length(*now)} in all")

    def _tell(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if trainer.is_global_zero and now - self._told >= TELL_EVERY:
            self._told = now
            if self.clock.seconds is not None:
                self.talk.update("training", min(self.clock.elapsed, self.clock.seconds), self.clock.seconds, self._note, seconds=True)
            else:
                assert self.clock.epochs is not None
                self.talk.update("training", round(trainer.global_step / self.clock.steps, 2), self.clock.epochs, self._note)


def _worth(validated: Validated) -> float:
    """An undefined score is worth less than any number."""
    return -math.inf if math.isnan(validated.score) else validated.score
