"""The plan: every decision between a dataset and a trained model, with its reason, in one file that people can read and edit.

Three sections are open: `space` (the domain's), `network` and `target` (the task's) name their type by `kind`, resolved through the
registries, so a plug-in brings its own typed fields. All other sections belong to the engine and are the same for every task.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from medseg import registry
from medseg.dataset import Channel, Labels
from medseg.errors import PlanError, Problem
from medseg.record import Record, Section, problems_of, section

BY_HAND = "set by hand"  # begins the reason for a value that a person has set
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)  # by Windows, with any suffix

OTHERS = {  # what is taken for a plan, by some of its keys
    "a fingerprint": {"digest", "intensities", "cases"},
    "the dataset as `medseg plan` read it": {"root", "layout", "cases"},
    "splits": {"folds", "source"},
    "where a model comes from (provenance.json)": {"dataset_digest", "plan_digest", "created"},
    "nnU-Net's plans": {"plans_name", "configurations"},
    "the description of a dataset": {"labels", "numTraining"},
}


class SpaceSection(Section):
    """Base of a domain's settings."""

    def preparation_key(self) -> str:
        """Text that changes with every setting that changes prepared cases. Narrow it where settings only matter later."""
        return self.to_json()

    def unlike(self, source: Self, channels: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
        """What looks otherwise here to a network that was trained under `source`, with both values; one phrase each.

        Args:
            channels: name -> place here and place there, of the image channels that both have.
        """
        return ()


class TargetSection(Section):
    """Base of a task's settings."""

    def training_key(self) -> str:
        """Text that changes with every setting that changes the trained weights. Narrow it where settings are learned later (`Task.learn`)."""
        return self.to_json()


class DataPlan(Record):
    """What a model must know of the data it was made for."""

    name: str = Field(description="Name of the dataset.")
    digest: str = Field(description="Digest of the fingerprint that the plan was made from.")
    ndim: int = Field(ge=2, le=3, description="Dimensions of a case as it is stored.")
    channels: tuple[Channel, ...] = Field(min_length=1, description="Input channels in order.")
    labels: Labels = Field(description="Classes, ignore value, and the value written for each class.")


class Optimizer(StrEnum):
    """Optimisers a plan can ask for."""

    adamw = "adamw"
    muon = "muon"
    sgd = "sgd"


class TrainingPlan(Record):
    """How the network is trained. Schedules are functions of progress (0 to 1), so they end exactly at `--time` or `--epochs`."""

    batch_size: int = Field(ge=1, description="Windows per optimiser step, over all devices.")
    steps: int = Field(ge=1, description="Optimiser steps per epoch.")
    epochs: int = Field(ge=1, description="Epochs when neither --epochs nor --time is given.")
    network_steps: int = Field(
        ge=1, description="Steps in which one network learns what it can. A longer training trains several, one after another."
    )
    networks: int = Field(ge=1, le=9, description="At most so many networks per fold; predictions average them.")
    optimizer: Optimizer = Field(description="muon: orthogonalised momentum for convolution weights, AdamW for all others.")
    learning_rate: float = Field(gt=0, lt=10, description="Peak learning rate (of the main parameter group).")
    weight_decay: float = Field(
        ge=0, lt=1, description="Share of a weight that a step at learning rate 1 takes away; not for norms and biases."
    )
    warmup: float = Field(ge=0, le=0.5, description="Fraction of training with linearly rising learning rate; cosine to 0 after it.")
    clip: float = Field(gt=0, description="Largest allowed norm of the gradient.")
    ema: float = Field(
        ge=0, le=0.5, description="Averaging horizon of the delivered weights, as a fraction of the steps so far; 0 averages nothing."
    )
    foreground: float = Field(ge=0, le=1, description="Fraction of windows that are centred on a foreground voxel, classes taking turns.")
    folds: int = Field(ge=1, description="Folds of cross-validation. A single one is possible where a file of splits says so.")
    seed: int = Field(ge=0, description="Of splits, first weights, windows and augmentation.")


class InferencePlan(Record):
    """How windows are put together."""

    overlap: float = Field(ge=0, lt=1, description="Overlap of neighbouring windows as a fraction of the window.")
    mirror: tuple[int, ...] = Field(description="Window axes flipped for test-time augmentation; all combinations are averaged.")


class MemoryPlan(Record):
    """What training needs, measured on the network with tensors that have no values."""

    budget: float = Field(gt=0, description="GiB allowed (--memory, or what the machine has).")
    training: float = Field(ge=0, description="GiB at the peak of one training step: weights, gradients, optimiser, activations.")
    device: Literal["cpu", "cuda", "mps"] = Field(description="Kind of device that the plan was made for.")


class Plan(Record):
    """One configuration of a dataset: everything that preprocessing, training and prediction need to know.

    `reasons` maps dotted field names to the reason for the value, and `evidence` is quoted in it; every decision has one
    (`medseg explain` prints them).
    """

    seldom: ClassVar[tuple[str, ...]] = ("previous",)

    format: Literal[1] = Field(default=1, description="Version of this file format.")
    name: str = Field(description="Name of the configuration, for example 3d.")
    task: str = Field(description="Registered name of the task.")
    domain: str = Field(description="Registered name of the domain.")
    data: DataPlan = Field(description="The dataset that the plan was made for.")
    window: tuple[int, ...] = Field(min_length=1, description="Size of one network input, in prepared samples per axis.")
    space: section(registry.domains) = Field(description="How cases are prepared, and varied in training.")  # type: ignore[valid-type]
    network: section(registry.networks) = Field(description="The network.")  # type: ignore[valid-type]
    target: section(registry.tasks) = Field(description="What the network learns, and from which loss.")  # type: ignore[valid-type]
    training: TrainingPlan = Field(description="How the network is trained.")
    inference: InferencePlan = Field(description="How windows are put together.")
    memory: MemoryPlan = Field(description="What training needs.")
    previous: str = Field(
        default="",
        description="Configuration whose prediction is a further input of the network (a cascade); empty where there is none. Written where "
        "there is one.",
    )
    recommended: bool = Field(default=False, description="Whether `medseg run` takes this configuration where it trains only one.")
    reasons: dict[str, str] = Field(description="Why: dotted field name to one sentence with the evidence from the fingerprint.")

    @field_validator("name", "previous")
    @classmethod
    def _check_name(cls, name: str, info: ValidationInfo) -> str:
        """Names of configurations become names of files and folders, on every system."""
        if info.field_name == "previous" and not name:
            return name
        if not NAME.fullmatch(name) or ".." in name or name.endswith(".") or RESERVED.fullmatch(name.split(".")[0]):
            raise ValueError(
                "the name of a configuration is also that of files and folders; expected letters, digits, '.', '_' and '-', beginning with a "
                "letter or digit, without '..' or a '.' at the end, and none that Windows reserves, such as CON"
            )
        return name

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(n < 1 for n in self.window):
            raise ValueError(f"window must be positive, got {list(self.window)}")
        for name, expected in (("space", self.domain), ("target", self.task)):
            kind = getattr(self, name).kind
            if kind != expected:
                raise ValueError(f"'{name}.kind' is '{kind}' but the plan says '{expected}'")
        for path in self.reasons:
            lookup(self, path)
        problem = registry.domains.get(self.domain).check(self) or registry.networks.get(self.network.kind).check(self.network, self.window)
        if problem:
            raise ValueError(problem)
        return self

    @classmethod
    def parse(cls, data: object, where: str) -> Self:
        """See `Record.parse`; a file of another kind is told as such, not field by field."""
        fields = {name for name, field in cls.model_fields.items() if field.is_required()}
        if isinstance(data, dict) and 2 * len(fields & data.keys()) < len(fields):
            raise PlanError.of(
                "is not a plan",
                where=where,
                found=next((name for name, keys in OTHERS.items() if keys <= data.keys()), _keys(data)),
                fix="Pass a plan from the folder that `medseg plan` wrote, e.g. 3d.json.",
            )
        return super().parse(data, where)

    def prepared_digest(self) -> str:
        """Changes with whatever changes the prepared cases: the data, and what the domain does to them."""
        return hashlib.blake2b(
            f"{self.data.digest} {self.data.labels.to_json()} {self.space.preparation_key()}{self.previous}".encode(), digest_size=8
        ).hexdigest()

    def trained_digest(self) -> str:
        """Changes with whatever a model was trained and is used by, but not with what was learned of its predictions afterwards."""
        rest = self.model_dump(mode="json", exclude={"target", "reasons", "recommended"})
        return hashlib.blake2b(f"{json.dumps(rest, sort_keys=True)} {self.target.training_key()}".encode(), digest_size=8).hexdigest()

    def by_hand(self, path: str) -> bool:
        """Whether a person has set the value at a dotted path, or one within it."""
        return any(reason.startswith(BY_HAND) for field, reason in self.reasons.items() if f"{field}.".startswith(f"{path}."))

    def edited(self, edits: dict[str, str], where: str = "--set") -> Plan:
        """A copy with values replaced, validated; each edit becomes its own reason.

        Args:
            edits: dotted field name to a JSON value (text that is not JSON is taken as a string).
        """
        data = self.model_dump(mode="json")
        for path, text in edits.items():
            try:
                lookup(self, path)
            except ValueError as error:
                raise PlanError.of(str(error), where=where, found=f"'{path}={text}'") from None
            *parents, leaf = path.split(".")
            node: Any = data
            for part in parents:
                node = node[int(part)] if isinstance(node, list) else node[part]
            node[int(leaf) if isinstance(node, list) else leaf] = _value(text)
            data["reasons"][path] = f"{BY_HAND} ({where} {path}={text})"
        return Plan.parse(data, where=where)


def _keys(data: Mapping[str, object]) -> str:
    return f"an object with {', '.join(repr(str(key)) for key in list(data)[:5])}" if data else "an empty object"


def edit_problems(edits: Mapping[str, str], kinds: Mapping[str, str], where: str) -> list[Problem]:
    """What is wrong with edits whatever the plan: unknown fields and impossible values. Entries of lists are not looked at.

    Args:
        edits: as in `Plan.edited`.
        kinds: name of each open section to its `kind`.
        where: the option that they were given with.
    """
    content: dict[str, Any] = {}
    for path, text in edits.items():
        parents = path.split(".")
        leaf = parents.pop()
        if any(part.isdigit() for part in (*parents, leaf)):
            continue
        node = content
        for depth, part in enumerate(parents):
            node = node.setdefault(part, {"kind": kinds[part]} if depth == 0 and part in kinds else {})
            if not isinstance(node, dict):
                break  # another edit has replaced the whole
        else:
            node[leaf] = _value(text)
    try:
        Plan.model_validate(content)
    except ValidationError as error:
        problems = problems_of(Plan, error, where, tuple(edits))
        return [replace(one, what="no such field in a plan") if one.what.startswith("Extra inputs") else one for one in problems]
    return []


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def is_field(name: str) -> bool:
    """Whether a name is that of a field or section of a plan, or a slip of one."""
    return bool(difflib.get_close_matches(name, Plan.model_fields, n=1))


def lookup(record: Any, path: str) -> Any:
    """The value at a dotted path of a plan.

    Raises:
        ValueError: there is no such field; names the nearest one.
    """
    node = record
    for part in path.split("."):
        if isinstance(node, Record):
            if part not in type(node).model_fields:
                near = difflib.get_close_matches(part, type(node).model_fields, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise ValueError(f"no field '{path}' in a plan{hint}")
            node = getattr(node, part)
        elif isinstance(node, (tuple, list)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            raise ValueError(f"no field '{path}' in a plan")
    return node


__all__ = [
    "DataPlan",
    "InferencePlan",
    "MemoryPlan",
    "Optimizer",
    "Plan",
    "Section",
    "SpaceSection",
    "TargetSection",
    "TrainingPlan",
    "lookup",
]
