"""Planning as nnU-Net does: its presets for medseg's own fingerprints, and for nnU-Net's fingerprints without any image."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg.dataset import Channel, Dataset, Modality
from medseg.device import Machine
from medseg.domains.grid.settings import Orientation
from medseg.errors import Problem, ResourceError, UsageError
from medseg.fingerprint import Fingerprint
from medseg.interop.nnunet.checks import read_folder
from medseg.interop.nnunet.convert import plan_of
from medseg.interop.nnunet.planner import make_plans
from medseg.interop.nnunet.presets import PRESETS
from medseg.interop.nnunet.records import Intensities, NnUNetDataset, NnUNetFingerprint, NnUNetPlans
from medseg.planning.editing import edit_plans
from medseg.planning.rules import cross_validation
from medseg.plans import DataPlan, MemoryPlan, Plan

FILE = "nnUNetPlans.json"
FLAT = 999  # how many times as thick as its pixels are large nnU-Net takes the one slice of a 2D image to be
FULL, FLAT_NAME = "3d_fullres", "2d"
GPUS = (1, 2, 3, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 141)  # GiB
CHANNELS = {Modality.ct: "CT", Modality.rgb: "rgb_to_0_1"}  # names that make nnU-Net normalise them so; all others are z-scored


@dataclass(frozen=True)
class Presets:
    """One of nnU-Net's planners, as rules of `medseg.plan`.

    Attributes:
        preset: one of `PRESETS`.
        memory: GB of GPU memory that nnU-Net's rules aim at; None is the preset's.
        out: folder that also gets `nnUNetPlans.json`, as nnU-Net reads it; None writes none.
    """

    preset: str
    memory: float | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError.of("no such preset", where="--preset", found=f"'{self.preset}'", expected=", ".join(PRESETS))

    def __call__(self, dataset: Dataset, fingerprint: Fingerprint, offered: Machine) -> tuple[Plan, ...]:
        """What nnU-Net's planner would plan for a dataset of medseg, as plans that are trained here; without those that do not fit.

        Raises:
            PlanError: nnU-Net's rules give no network.
            ResourceError: no configuration fits the machine; says with which --memory one does.
        """
        described, measured = _described(dataset), _measured(fingerprint)
        theirs = self._planned(described, measured, dataset.name)
        planned = plans_of(theirs, described)
        fitting = _fitting(planned, offered.memory)
        if not fitting:
            raise ResourceError(
                _misfits(
                    [plan for plan in planned if plan.memory.training > offered.memory],
                    offered,
                    self._fitting_memory(described, measured, dataset.name, offered),
                )
            )
        self._write(theirs)
        fitting = _recommended(fitting, [plan for plan in planned if plan not in fitting], offered)
        return tuple(_for_dataset(plan, dataset, fingerprint, offered) for plan in fitting)

    def _fitting_memory(self, described: NnUNetDataset, measured: NnUNetFingerprint, name: str, offered: Machine) -> float | None:
        """What the machine offers, if nnU-Net's rules fit it when they aim at it; else the smallest usual size of a GPU which they fit."""

        def fits(memory: float) -> bool:
            theirs = replace(self, memory=memory)._planned(described, measured, name)
            return bool(_fitting(plans_of(theirs, described), memory))

        whole = math.floor(offered.memory * 10) / 10
        if self.memory is None and whole > 0 and fits(whole):
            return whole
        sizes = [size for size in GPUS if size > offered.memory]
        first = bisect_left(sizes, True, key=fits)
        return sizes[first] if first < len(sizes) else None

    def for_folder(self, folder: Path, out: Path, edits: Mapping[str, str]) -> tuple[Plan, ...]:
        """The same for a folder with nnU-Net's `dataset.json` and `dataset_fingerprint.json`, without any image; written into `out`.

        Raises:
            DatasetError: the files are missing, damaged or contradictory.
            PlanError: see `__call__`; or edits that do not fit.
        """
        described, measured = read_folder(folder)
        theirs = self._planned(described, measured, folder.resolve().name)
        plans = edit_plans(plans_of(theirs, described), edits)
        for plan in plans:
            plan.save(out / f"{plan.name}.json")
        self._write(theirs)
        return plans

    def _planned(self, described: NnUNetDataset, measured: NnUNetFingerprint, name: str) -> NnUNetPlans:
        chosen = PRESETS[self.preset]
        return make_plans(described, measured, name=name, preset=chosen if self.memory is None else replace(chosen, memory=self.memory))

    def _write(self, theirs: NnUNetPlans) -> None:
        if self.out is not None:
            theirs.write(self.out / FILE)


def plans_of(theirs: NnUNetPlans, described: NnUNetDataset) -> tuple[Plan, ...]:
    """Every configuration; 3D at full resolution is recommended where it is."""
    best = FULL if FULL in theirs.configurations else FLAT_NAME
    found = []
    for name in theirs.configurations:
        plan = plan_of(theirs, described, name)
        why = "nnU-Net's first choice." if name == best else f"nnU-Net's first choice is {best}."
        found.append(plan.model_copy(update={"recommended": name == best, "reasons": {**plan.reasons, "recommended": why}}))
    return tuple(found)


def _fitting(planned: Sequence[Plan], memory: float) -> list[Plan]:
    """The plans that a machine with so many GiB can train: they fit, and so does the stage before them."""
    fitting = [plan for plan in planned if plan.memory.training <= memory]
    names = {plan.name for plan in fitting}
    return [plan for plan in fitting if plan.previous in ("", *names)]


def _recommended(fitting: Sequence[Plan], misfits: Sequence[Plan], offered: Machine) -> list[Plan]:
    """The plans that fit, one of them recommended; its reason names those that do not."""
    if not misfits:
        return list(fitting)
    best = next((plan for plan in fitting if plan.recommended), fitting[-1])
    left = ", ".join(_left(plan, offered) for plan in misfits)
    told = f"left out, because it needs more than {offered.memory:g} GiB: {left}."
    found = []
    for plan in fitting:
        why = f"nnU-Net's first choice of those that fit; {told}" if plan is best else f"Recommended is {best.name}; {told}"
        found.append(plan.model_copy(update={"recommended": plan is best, "reasons": {**plan.reasons, "recommended": why}}))
    return found


def _left(plan: Plan, offered: Machine) -> str:
    fits = plan.memory.training <= offered.memory
    return f"{plan.name} (as {plan.previous} is its first stage)" if fits else f"{plan.name} ({plan.memory.training:g} GiB)"


def _misfits(planned: Sequence[Plan], offered: Machine, fitting: float | None) -> list[Problem]:
    if fitting is None:
        how = "No usual GPU has enough; plan"
    elif fitting <= offered.memory:
        how = f"Plan with --memory {fitting:g}, for what there is, or"
    else:
        how = f"Plan with --memory {fitting:g} for a larger device, the smallest with which it fits, or"
    return [
        Problem(
            "what this preset plans does not fit",
            f"configuration '{plan.name}'",
            f"{plan.memory.training:g} GiB for a window of {' x '.join(map(str, plan.window))} and a batch of {plan.training.batch_size}",
            f"at most {offered.memory:g} GiB",
            f"{how} without --preset, where medseg plans for this one.",
        )
        for plan in planned
    ]


def _for_dataset(plan: Plan, dataset: Dataset, fingerprint: Fingerprint, offered: Machine) -> Plan:
    """A plan that is trained here, within what the machine offers, on cases whose axes lie as those of the fingerprint."""
    folds = cross_validation(dataset)
    orientation, why = (
        (Orientation.ras, "The one orientation that both programs can bring images to, so that nnU-Net can run the model.")
        if fingerprint.ndim == 3
        else (Orientation.canonical, "Images of two axes have none.")
    )
    return plan.model_copy(
        update={
            "data": DataPlan(
                name=dataset.name, digest=fingerprint.digest, ndim=fingerprint.ndim, channels=dataset.channels, labels=dataset.labels
            ),
            "space": plan.space.model_copy(update={"orientation": orientation}),
            "training": plan.training.model_copy(update={"folds": folds.count}),
            "memory": MemoryPlan(budget=offered.memory, training=plan.memory.training, device=offered.kind),
            "reasons": {
                **plan.reasons,
                "space.orientation": why,
                "training.folds": folds.why,
                "memory.budget": f"What training may use: --memory, or what this machine's {offered.kind.upper()} offers.",
                "memory.device": "The kind of device that training will run on (--device).",
            },
        }
    )


def _described(dataset: Dataset) -> NnUNetDataset:
    """What nnU-Net's `dataset.json` says. Classes are numbered from 1, because nnU-Net wants no gaps."""
    labels = dataset.labels
    values: dict[str, object] = {"background": 0}
    if labels.exclusive:
        values |= {name: k for k, name in enumerate(labels.names, 1)}
        last = len(labels.names)
    else:
        numbers = {value: k for k, value in enumerate(labels.values, 1)}
        values |= {c.name: [numbers[v] for v in c.values] for c in labels.classes}
        last = len(numbers)
    if labels.ignore is not None:
        values["ignore"] = last + 1
    content = {
        "channel_names": {str(k): _channel(channel) for k, channel in enumerate(dataset.channels)},
        "labels": values,
        **({} if labels.order is None else {"regions_class_order": [numbers[v] for v in labels.order]}),
        "numTraining": len(dataset.cases),
        "file_ending": ".nii.gz",
    }
    return NnUNetDataset.parse(content, where=dataset.name)


def _channel(channel: Channel) -> str:
    return CHANNELS.get(channel.modality, channel.name if channel.name.casefold() not in ("ct", "nonorm") else f"channel {channel.name}")


def _measured(fingerprint: Fingerprint) -> NnUNetFingerprint:
    """What nnU-Net's fingerprint says. Axes are those of the canonical orientation; 2D images are volumes of one thick slice."""
    flat = fingerprint.ndim == 2
    cases = fingerprint.cases
    kept = [math.prod(c.cropped) / math.prod(c.shape) for c in cases]
    content = {
        "foreground_intensity_properties_per_channel": {
            str(k): Intensities(
                max=seen.percentile(100),
                mean=seen.mean,
                median=seen.percentile(50),
                min=seen.percentile(0),
                percentile_00_5=seen.percentile(0.5),
                percentile_99_5=seen.percentile(99.5),
                std=seen.std,
            ).content()
            for k, seen in enumerate(fingerprint.intensities)
        },
        "median_relative_size_after_cropping": float(np.median(kept)),
        "shapes_after_crop": [(1, *c.cropped) if flat else c.cropped for c in cases],
        "spacings": [(FLAT * max(c.spacing), *c.spacing) if flat else c.spacing for c in cases],
    }
    return NnUNetFingerprint.parse(content, where=fingerprint.dataset)
