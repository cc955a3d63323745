"""Lightning, set up for one rank: its trainer, its voice, and what it is told about the device."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import Profiler

from medseg.device import autocast_dtype, out_of_memory
from medseg.errors import ResourceError
from medseg.pages import given_back, kept_pages
from medseg.plans import Plan
from medseg.training.budget import Clock
from medseg.training.checkpoint import PlainCheckpointIO
from medseg.training.environment import LocalRanks
from medseg.training.module import first_line

COMPILE_SECONDS, COMPILE_STEPS = 600.0, 5000  # shorter trainings end before compiling has paid for itself


def make_trainer(
    plan: Plan,
    folder: Path,
    device: torch.device,
    devices: int,
    clock: Clock,
    supervisor: Callback,
    rank: int = 0,
    port: int = 0,
    full_precision: bool = False,
    profiler: Profiler | None = None,
) -> Trainer:
    """Lightning's trainer of one rank; `full_precision` keeps float32 where the device has something faster."""
    dtype = None if full_precision else autocast_dtype(device)
    precision: Any = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed", None: "32-true"}[dtype]
    several = devices > 1
    plugins: list[Any] = [PlainCheckpointIO(plan.trained_digest())]
    if several:
        plugins.append(LocalRanks(rank, devices, port))
    return Trainer(
        accelerator=device.type,
        devices=devices if several or device.type != "cuda" else [device.index or 0],
        strategy="ddp" if several else "auto",
        precision=precision,
        plugins=plugins,
        max_epochs=clock.epochs if clock.epochs is not None else -1,
        gradient_clip_val=plan.training.clip,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        benchmark=device.type == "cuda",
        default_root_dir=folder,
        callbacks=[supervisor],
        profiler=profiler,
    )


def compiles(device: torch.device, clock: Clock) -> bool:
    """Whether compiling the network pays: on GPUs with Triton, in long trainings."""
    long = clock.seconds >= COMPILE_SECONDS if clock.seconds is not None else (clock.epochs or 0) * clock.steps >= COMPILE_STEPS
    if device.type != "cuda" or not long:
        return False
    from torch.utils._triton import has_triton

    return bool(has_triton())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hints: they concern choices that are made here on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*dataloader is not resumable.*",  # it is: see data.Steps
            ".*smaller than the logging interval.*",
            ".*Checkpoint directory.*exists and is not empty.*",
            ".*Grad strides do not match bucket view strides.*",
            ".*found .* module.* in eval mode.*",  # the averaged weights
            ".*isinstance.treespec, LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def memory_kept(device: torch.device, full_precision: bool = False) -> Iterator[None]:
    """See `kept_pages`: where a CPU trains in 16 bits. The gaps take memory, and a plan's memory is that of 32 bits."""
    if full_precision or device.type != "cpu" or autocast_dtype(device) is None:
        yield
        return
    try:
        with kept_pages():
            yield
    finally:
        given_back()


@contextlib.contextmanager
def memory_told(device: torch.device, devices: int = 1) -> Iterator[None]:
    """Running out of the device's memory is the user's to mend, and becomes a ResourceError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ResourceError.of(
            "the device ran out of memory",
            where=str(device),
            found=first_line(error),
            fix="Plan again with a smaller --memory, or train with a smaller batch (--set training.batch_size=N)"
            + (", or on one device, where a step that does not fit is taken in portions." if devices > 1 else "."),
        ) from error


def synchroniser(device: torch.device) -> Callable[[], object] | None:
    """What waits until a device has done all that it was told; a CPU is never behind."""
    if device.type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return torch.mps.synchronize if device.type == "mps" else None
