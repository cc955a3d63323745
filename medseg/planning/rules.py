"""The engine's rules: pure functions from numbers to decisions, each with its reason.

Rules about space are the domain's, rules about depth and width the network's, rules about the loss the task's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from medseg.dataset import Dataset
from medseg.device import Machine
from medseg.domains.base import Draft
from medseg.geometry import Shape
from medseg.planning.memory import UNSEEN, Cost
from medseg.plans import MemoryPlan, Optimizer, TrainingPlan

SMALLEST_BATCH = 2  # one window gives gradients that depend too much on it
LARGEST_BATCH = 32  # beyond it, more steps teach more than larger ones
SHARE_OF_DATA = 0.05  # of the dataset's voxels in one batch at most (nnU-Net): larger batches overfit
WINDOW_FLOPS = 2.5e11
"""Arithmetic of a step with the smallest batch at most, on a CPU: about half a second on two cores with bfloat16. Larger windows give way
to smaller ones, because a few hundred steps in the time people give teach less than thousands."""
BATCH_FLOPS = {"cpu": 1.0e11, "mps": 1.0e12, "cuda": 2.0e13}
"""Arithmetic of a step above which the batch grows no further: the device is busy, and more steps teach more than larger ones."""
TOTAL_STEPS = {"cpu": 4_000, "mps": 12_500, "cuda": 25_000}
"""Steps when neither --epochs nor --time is given."""
PASSES, FEWEST_STEPS, NETWORKS = 20, 1000, 4
"""How often one network sees each case before more passes teach it no more (measured on one dataset, see benchmarks/README.md), for how many
steps at least, and how many networks share a longer training."""
EPOCH_STEPS = (50, 250)  # fewer would validate all the time, more too seldom; nnU-Net's epochs have 250
FOLDS = (2, 5)  # a fold must leave something to train on; more than nnU-Net's 5 cost more than they tell
FOREGROUND = 0.33


def most_windows(window: Shape, samples: int, smallest: Cost, machine: Machine) -> tuple[int, str]:
    """The largest batch that dataset and arithmetic allow, at least the smallest, and which of them binds.

    Args:
        window: samples per axis.
        samples: samples of the whole dataset (`Draft.samples`).
        smallest: the cost of `SMALLEST_BATCH` windows.
        machine: what the plan is made for.
    """
    work, arithmetic = BATCH_FLOPS[machine.kind], max(1, smallest.flops // SMALLEST_BATCH)
    data = int(SHARE_OF_DATA * samples)
    busy = f"{work / 1e12:g} Tflop per step"
    share = SMALLEST_BATCH * math.prod(window) / max(1, samples)
    limits = (
        (
            data // math.prod(window),
            f"more than {SHARE_OF_DATA:.0%} of the dataset's {samples:,} voxels in one batch would overfit",
            f"it holds {share:.1%} of the dataset's {samples:,} voxels, and beyond {SHARE_OF_DATA:.0%} a larger one would overfit",
        ),
        (
            int(work) // arithmetic,
            f"with {busy} this kind of device is busy, and more steps teach more than larger ones",
            f"it takes {smallest.flops / 1e12:.3g} Tflop per step; from {busy} on this kind of device is busy, and more steps teach more "
            "than larger ones",
        ),
        (LARGEST_BATCH, "more steps teach more than larger ones", ""),
    )
    most, within, beyond = min(limits)
    if most >= SMALLEST_BATCH:
        return most, within
    return SMALLEST_BATCH, f"the smallest batch, because one window gives gradients that depend too much on it; {beyond}"


def window_reason(window: Shape, candidates: tuple[Shape, ...], draft: Draft, machine: Machine, cost: Cost) -> str:
    """Why this window."""
    size = "x".join(map(str, window))
    shape = "x".join(map(str, draft.shape))
    if window == candidates[0]:
        start = f"{size} is the largest candidate for prepared cases of median shape {shape}"
    else:
        larger = "x".join(map(str, candidates[candidates.index(window) - 1]))
        start = f"{size}, because {larger} and larger needed more than {machine.memory:g} GiB" + (
            f" or {WINDOW_FLOPS / 1e12:g} Tflop per step" if machine.kind == "cpu" else ""
        )
    return f"{start}; {SMALLEST_BATCH} windows take {cost.memory:.2g} GiB and {cost.flops / 1e12:.3g} Tflop per training step."


def training(
    batch: int, batch_why: str, window: Shape, samples: int, cases: int, folds: Folds, machine: Machine
) -> tuple[TrainingPlan, dict[str, str]]:
    """The training section, with reasons by field name."""
    windows = max(cases, math.ceil(samples / math.prod(window)))
    low, high = EPOCH_STEPS
    steps = min(high, max(low, math.ceil(windows / batch)))
    total = TOTAL_STEPS[machine.kind]
    turn = math.ceil(windows * folds.share / batch)
    plan = TrainingPlan(
        batch_size=batch,
        steps=steps,
        epochs=math.ceil(total / steps),
        network_steps=max(FEWEST_STEPS, PASSES * turn),
        networks=NETWORKS,
        optimizer=Optimizer.muon,
        learning_rate=0.05,
        weight_decay=0.0,
        warmup=0.01,
        clip=12.0,
        ema=0.03,
        foreground=FOREGROUND,
        folds=folds.count,
        seed=0,
    )
    reasons = {
        "batch_size": f"{batch}: {batch_why}.",
        "steps": f"One pass over the dataset is {windows} windows, {math.ceil(windows / batch)} steps; an epoch has {low} to {high} "
        "so that validation is neither constant nor rare.",
        "epochs": f"{total:,} steps in all on this kind of device, when neither --epochs nor --time is given.",
        "network_steps": f"{PASSES} passes over the cases of a fold, {turn} steps each, and at least {FEWEST_STEPS}: with many more a network begins to "
        "learn its cases by heart, and several that began differently, averaged, are better than one.",
        "networks": "Each costs prediction its time, and every further one gains less.",
        "optimizer": "Orthogonalised momentum learns more per step than AdamW or SGD and costs little (Jordan et al. 2024).",
        "learning_rate": "Orthogonalised updates have a fixed size, so one rate serves all widths and batches.",
        "weight_decay": "None: normalisation makes the scale of most weights irrelevant, and augmentation and averaging regularise.",
        "warmup": "A moment for momentum to settle; normalised updates need no more.",
        "clip": "nnU-Net's bound: only outliers are clipped.",
        "ema": "Averaged over the last 3 % of the steps, weights are better than the last ones, however long training is.",
        "foreground": "nnU-Net's share: rare classes are seen in every epoch, and the rest keeps the background's true frequency.",
        "folds": folds.why,
        "seed": "Fixed, so that the same call gives the same model.",
    }
    return plan, reasons


@dataclass(frozen=True)
class Folds:
    """The number of folds, the share of the cases that one trains on, and why."""

    count: int
    share: float
    why: str


def cross_validation(dataset: Dataset) -> Folds:
    """The folds that the user has decided. Else patients are never divided between training and validation, so there cannot be more folds
    than these.
    """
    if dataset.splits is not None:
        count = len(dataset.splits.folds)
        share = sum(len(split.train) for split in dataset.splits.folds) / count / len(dataset.cases)
        return Folds(count, share, f"As {dataset.splits.source} says: each model trains on {share:.0%} of the cases.")
    fewest, usual = FOLDS
    patients = len({case.group for case in dataset.cases})
    count = max(fewest, min(usual, patients))
    if patients >= usual:
        why = f"As in nnU-Net: each of {usual} models trains on about {1 - 1 / usual:.0%} of the cases."
    elif patients >= fewest:
        why = f"As many as there are patients ({patients}): each model leaves one out; nnU-Net takes {usual}."
    else:
        why = "The fewest there can be, but the cases are of one patient: only training on every case (--fold none) is possible."
    return Folds(count, 1 - 1 / count, why)


def memory(training_gib: float, machine: Machine, cost: Cost | None) -> tuple[MemoryPlan, dict[str, str]]:
    """The memory section, with reasons by field name."""
    work = f"; {cost.parameters / 1e6:.3g} million weights, {cost.flops / 1e12:.3g} Tflop per step" if cost else ""
    factor, share = UNSEEN[machine.kind]
    libraries = f", and {share:g} GiB for libraries" if share else ""
    reasons = {
        "budget": f"What training may use: --memory, or what this machine's {machine.kind.upper()} offers.",
        "training": f"Measured on the network and loss under fake tensors, plus {factor - 1:.0%} for kernels' workspaces{libraries}{work}.",
        "device": "The kind of device that training will run on (--device).",
    }
    return MemoryPlan(budget=machine.memory, training=training_gib, device=machine.kind), reasons
