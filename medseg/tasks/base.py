"""What a network learns: the contract of an objective, and of a task, whose objective is what annotations mean. The engine sees only these.

A network can be trained on any objective. Only a task can be planned from a dataset, predicted with and scored.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg import registry
from medseg.case import Batch
from medseg.dataset import Dataset, Labels
from medseg.device import Kind
from medseg.errors import PlanError
from medseg.fingerprint import Fingerprint
from medseg.geometry import Shape
from medseg.metrics.contingency import Contingency
from medseg.models.base import Head, Outputs, find_network
from medseg.plans import Plan, TargetSection
from medseg.prediction import Prediction, Scores, Stitched
from medseg.scratch import IN_MEMORY, Scratch
from medseg.tasks.cleaning import HeldOut

DEFAULT_NETWORK = "unet"


@dataclass(frozen=True)
class Needs:
    """All that the planner may know of a task.

    Attributes:
        labels: the classes as the task sees them: most often the dataset's; a task may merge or drop some.
        channels: input channels of the network.
        heads: outputs of the network.
        target: the task's section of the plan.
        reasons: field name within the section -> reason.
        name: of one of several variants; it is added to the names of configurations. Empty: it is the only one, or the first.
        preference: among variants of a configuration, that of the highest is recommended, once they are fitted (`Task.fit`).
        because: why this variant is offered.
        overlap: of neighbouring windows in inference, at least; 0 leaves it to the domain.
        overlap_because: the reason for it.
        one_view: why predictions average no mirrored views; empty: they do where the domain allows it.
        one_network: why one network is trained, however long training is; empty: several share a long one.
        final: the section is not fitted to windows (`Task.fit`).
    """

    labels: Labels
    channels: int
    heads: tuple[Head, ...]
    target: TargetSection
    reasons: dict[str, str]
    name: str = ""
    preference: float = 0.0
    because: str = ""
    overlap: float = 0.0
    overlap_because: str = ""
    one_view: str = ""
    one_network: str = ""
    final: bool = False


@dataclass(frozen=True)
class Frame:
    """What a task may know of a configuration before it completes its section.

    Attributes:
        window: voxels of a network's input, per window axis.
        spacing: mm of a window voxel, per window axis.
        axes: the canonical axis of a case that each window axis is; sizes in fingerprints lie along these.
        levels: strides of the decoder stages at which heads may answer (`Head.levels`), finest first.
        device: kind of device that trains.
    """

    window: Shape
    spacing: tuple[float, ...]
    axes: tuple[int, ...]
    levels: tuple[Shape, ...]
    device: Kind


class Objective(ABC):
    """What a network is trained for, registered in `medseg.tasks`. Stateless apart from its plan.

    `inputs` and `targets` may draw random numbers, from torch's global generator: a training seeds it before every step. What both must
    agree on goes into `Batch.extra`, whichever is called first. The perfect law holds for every objective: `loss(oracle(targets))` is
    nearly 0.
    """

    Settings: ClassVar[type[TargetSection]]
    summary: ClassVar[str]
    """One line for `medseg tasks`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    @abstractmethod
    def heads(self) -> tuple[Head, ...]:
        """The network's outputs under this plan."""

    @property
    def channels(self) -> int:
        """The network's input channels under this plan: the image's, and one for each foreground value of a prior; a wrapper adds its own."""
        return len(self.plan.data.channels) + (len(self.plan.data.labels.values) if self.plan.previous else 0)

    def network(self) -> nn.Module:
        """A new network; also built to be measured without values, for the memory estimate."""
        return self.built(self.channels, self.heads)

    def built(self, channels: int, heads: tuple[Head, ...]) -> nn.Module:
        """The network under this plan with so many input channels and these heads; a task may put more on the planned one."""
        return find_network(self.plan.network.kind).build(self.plan.network, channels, heads)

    @property
    def inner(self) -> str:
        """What names of parameters of the planned network begin with within the built one; empty where it is all."""
        return ""

    def run(self, network: nn.Module, batch: Batch, targets: Mapping[str, Tensor]) -> Outputs:
        """The outputs of a network in training. Networks that must be told something of the targets to learn are told here."""
        outputs: Outputs = network(self.inputs(batch))
        return outputs

    def inputs(self, batch: Batch) -> Tensor:
        """The network's input `(N, C, *window)`: the image, then the prior as one 0/1 channel per foreground value. Never looks at labels."""
        if not self.plan.previous:
            return batch.image
        if batch.prior is None:
            raise ValueError(f"plan '{self.plan.name}' needs the prediction of '{self.plan.previous}'")
        values = self.plan.data.labels.values
        return torch.cat([batch.image, *((batch.prior == value)[:, None].to(batch.image) for value in values)], 1)

    @abstractmethod
    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """What the outputs should be, computed on the device after augmentation; the first axis of each is the batch's."""

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named terms; the trainer sums and logs them. Finite also for empty targets."""

    @abstractmethod
    def oracle(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a perfect network would give, by head: full-resolution outputs `(N, C, *window)`, and whatever else `loss` looks at. Used by
        contract tests."""


class Pretext(Objective):
    """An objective that needs no annotation: its networks predict nothing of use, but are where trainings of tasks begin (`--init`)."""

    @staticmethod
    @abstractmethod
    def target(plan: Plan) -> tuple[TargetSection, dict[str, str]]:
        """Its section for the window and network of a task's plan, and the reason for each field."""


class Task(Objective):
    """An objective that comes of annotations, and what its outputs mean.

    The oracle law holds for every task: `score(decode(oracle(targets)), truth)` is 1 in every similarity metric.
    """

    metrics: ClassVar[tuple[str, ...]]
    """Names of what `score` can compute; the first one selects models and is what validation during training shows."""
    objects: ClassVar[bool] = False
    """Whether it tells objects of one class apart, so that label values which nobody has declared are objects."""
    networks: ClassVar[Mapping[str, str]] = {}
    """What may be asked for as a network (`--network`) beside the registered families: a name -> what it puts on the planned network."""
    combines: ClassVar[bool] = True
    """Whether models of several configurations, whose outputs lie on grids and along axes of their own, may say together what a case shows
    (`combine`)."""

    @staticmethod
    @abstractmethod
    def needs(dataset: Dataset, fingerprint: Fingerprint) -> Needs:
        """What the task asks of the planner for this dataset; its heads are those of the plan."""

    @classmethod
    def variants(cls, dataset: Dataset, fingerprint: Fingerprint, network: str | None) -> tuple[Needs, ...]:
        """What it may ask of the planner instead, the plain one first; each makes configurations of its own.

        Args:
            dataset, fingerprint: as for `needs`.
            network: what was asked for, one of `networks` or a registered family; None: nothing.
        """
        return (cls.needs(dataset, fingerprint),)

    @classmethod
    def like(cls, dataset: Dataset, fingerprint: Fingerprint, model: Plan, because: str) -> Needs:
        """What it asks of the planner so that the weights of a trained model fit, where they can; `because` is the reason for what is the model's."""
        return cls.needs(dataset, fingerprint)

    @staticmethod
    def fit(needs: Needs, fingerprint: Fingerprint, frame: Frame) -> Needs:
        """What it needs once window and network are known, and how much it prefers that there (`preference`, `because`).

        Raises:
            PlanError: it cannot be had there.
        """
        return needs

    @abstractmethod
    def decode(
        self,
        outputs: Mapping[str, Stitched],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """Stitched outputs of one case to a prediction on the same grid, slab by slab; large arrays come from `scratch`.

        Where neither probabilities nor uncertainty are asked for, labels alone may be found in less time (`DenseMap.strongest`).
        """

    def combine(
        self,
        predictions: Sequence[Prediction],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """One prediction out of those of several models for one case, on one grid and all with probabilities, slab by slab.

        The order of the predictions plays no part, and several equal ones come to the same as one of them. Only where the task `combines`.
        """
        raise ValueError(f"predictions of task '{self.plan.task}' are not combined")

    def learn(self, cases: Iterable[HeldOut]) -> tuple[TargetSection, dict[str, str]]:
        """What predictions of held-out cases teach about `finish`: the task's section of the plan, and the reason for each field it sets.

        No case teaches nothing: the section is then that of a plan which has learned nothing yet.
        """
        section: TargetSection = self.plan.target
        return section, {}

    def finish(self, labels: NDArray[Any], spacing: tuple[float, ...]) -> NDArray[Any]:
        """A predicted label map on its native grid (mm per axis) with what was learned applied; may work in place."""
        return labels

    @abstractmethod
    def score(
        self,
        prediction: NDArray[Any],
        truth: NDArray[Any],
        spacing: tuple[float, ...],
        metrics: tuple[str, ...] | None = None,
        counted: Contingency | None = None,
    ) -> Scores:
        """Scores of a label map against the truth, both voxel values on one grid with `spacing` in mm; `metrics` None means all.

        `counted`: the objects of both (`count_objects`), where the caller has counted them, which takes longer than all else.
        """


def learned(plan: Plan, cases: Iterable[HeldOut]) -> tuple[Plan, dict[str, str]]:
    """The plan with what its task learns of held-out predictions, and why each field that can be learned is as it is.

    What a person has set stays; where that is all there is to learn, no case is looked at.
    """
    task = find_task(plan.task)(plan)
    _, fields = task.learn(())
    kept = {field: "set by hand, so nothing is learned" for field in fields if plan.by_hand(f"target.{field}")}
    if kept.keys() == fields.keys():
        return plan, kept
    section, reasons = task.learn(cases)
    new = {field: reason for field, reason in reasons.items() if field not in kept}
    target = plan.target.model_copy(update={field: getattr(section, field) for field in new})
    said = {**plan.reasons, **{f"target.{field}": reason for field, reason in new.items()}}
    return plan.model_copy(update={"target": target, "reasons": said}), kept | new


def unlearned(plan: Plan) -> Plan:
    """The plan before its task learned of held-out predictions; what a person has set was not learned."""
    before, _ = learned(plan, ())
    return plan if before.target == plan.target else before


def find_objective(name: str) -> type[Objective]:
    """The objective registered as `name`, be it a task or not."""
    return cast(type[Objective], registry.tasks.get(name))


def find_task(name: str) -> type[Task]:
    """The task registered as `name`.

    Raises:
        PlanError: there is none, or it is an objective without annotations.
    """
    found = find_objective(name)
    if not issubclass(found, Task):
        raise PlanError.of(
            f"'{name}' is no task: it learns from images alone, and its networks predict no labels",
            fix="Pre-train with `medseg pretrain`, then begin a training with the result: `medseg train PLAN --init PRETRAINED -o RUN`.",
        )
    return found


def chosen_network(task: str, network: str | None) -> str:
    """The family registered under a name; the default one for none, and for what the task puts on it.

    Raises:
        PlanError: there is no such network.
    """
    if network is None or network in find_task(task).networks:
        return DEFAULT_NETWORK
    families = registry.networks.names()
    if network not in families:
        others = [name for name, one in registry.tasks.items() if issubclass(one, Task) and network in one.networks]
        if others:
            raise PlanError.of(
                f"network '{network}' is for other tasks", where="--network", found=f"task '{task}'", expected=f"task {' or '.join(others)}"
            )
        known = (*find_task(task).networks, *families)
        near = difflib.get_close_matches(network, known, n=1)
        raise PlanError.of(
            "unknown network",
            where="--network",
            found=f"'{network}'",
            expected=f"one of {', '.join(known)}",
            fix=f"Did you mean '{near[0]}'?" if near else "`medseg tasks` lists them; those of a plug-in are there once it is installed.",
        )
    return network


def find_pretext(name: str) -> type[Pretext]:
    """The objective without annotations that is registered as `name`.

    Raises:
        PlanError: there is none, or it is a task.
    """
    found = find_objective(name)
    if not issubclass(found, Pretext):
        choices = ", ".join(key for key, value in registry.tasks.items() if issubclass(value, Pretext))
        raise PlanError.of(
            f"'{name}' is a task, which needs annotations", expected=f"one of {choices}", fix="Train it with `medseg train`."
        )
    return found
