"""Where the networks of a model begin: anew, or with the weights of another model (`--init`)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from medseg.dataset import Labels, Split, file_digest
from medseg.errors import ModelError
from medseg.models.transfer import FAIR_SHARE, Meaning, Transferred, ports, transfer
from medseg.models.weights import load_weights, read_tensors
from medseg.plans import Plan
from medseg.progress import Progress
from medseg.record import Record, write_atomic
from medseg.tasks.base import Pretext, find_objective
from medseg.training.past import Past
from medseg.workspace import RunFolder, past_file

LIKE = "Plan the dataset for the model's network: `medseg plan DATASET -o PLANS --like MODEL`."
KEPT = "source.safetensors"  # in a fold's state: the source's networks, until the fold is finished


class Origin(Record):
    """What the networks of a model began from (`init.json`). No path.

    Attributes:
        source: dataset and configuration of the source.
        plan_digest: of the source's plan.
        weights_digest: of the weights of all its folds.
        meaning: what the channels of its networks stand for.
        transferred: what became of the tensors of the new network.
    """

    source: str
    plan_digest: str
    weights_digest: str
    meaning: Meaning
    transferred: Transferred


@dataclass(frozen=True)
class Start:
    """Where the networks of one fold begin; plain data, the same for every rank.

    Attributes:
        file: the source's networks, kept with the fold.
        meaning: of the channels of these.
    """

    file: Path
    meaning: Meaning

    def begin(self, plan: Plan, network: nn.Module, number: int) -> None:
        """Give a new network the weights with which network `number` of the fold begins.

        Those after the source's last begin with the source's first again, and differ by their windows and by what is fresh in them.
        """
        _, tensors = read_tensors(self.file, plan.trained_digest(), "start of a training")
        networks = len({name.partition("/")[0] for name in tensors})
        prefix = f"{number % networks}/"
        source = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        network.load_state_dict(_transferred(plan, network, source, self.meaning)[0])


@dataclass(frozen=True)
class Source:
    """A model whose weights can begin the training of one fold. Make one with `Source.open`.

    Attributes:
        origin: what is remembered of it.
        files: its networks for this fold.
        plan: its plan.
        fold: name of its fold.
        past: which cases the networks of this fold were trained on.
        warnings: what was trained on of the cases left out, and what images look like otherwise.
    """

    origin: Origin
    files: tuple[Path, ...]
    plan: Plan
    fold: str
    past: Past
    warnings: tuple[str, ...]

    @classmethod
    def open(cls, model: Path, plan: Plan, fold: int | None, split: Split) -> Source:
        """The networks of a model folder from which fold `fold` of a plan begins.

        They are those of the same fold where the model has it: on the same dataset that fold has not seen the cases left out either. Else
        they are those trained on every case, else those of its first fold.

        Raises:
            ModelError: not a model, damaged weights, or a network that is too different.
        """
        folder = RunFolder(model)
        files = folder.weights()
        theirs = Plan.load(folder.plan_file)
        folds = {file.parent: [other for other in files if other.parent == file.parent] for file in files}
        chosen = next((f for f in (folder.fold(fold), folder.fold(None)) if f in folds), next(iter(folds)))
        _check_alike(plan, theirs)
        digest = hashlib.blake2b("/".join(map(file_digest, files)).encode(), digest_size=8).hexdigest()
        objective = find_objective(theirs.task)(theirs)
        source = load_weights(objective.network(), folds[chosen][0], theirs.trained_digest()).state_dict()
        meaning = _meaning(theirs)
        _, moved = _transferred(plan, find_objective(plan.task)(plan).network(), source, meaning)
        if moved.share < FAIR_SHARE:
            raise _too_different(plan, theirs, moved)
        origin = Origin(
            source=f"{theirs.data.name} {theirs.name}" + (f" ({theirs.task})" if theirs.task != plan.task else ""),
            plan_digest=theirs.trained_digest(),
            weights_digest=digest,
            meaning=meaning,
            transferred=moved,
        )
        past = Past.of(chosen, theirs, needs_annotations(theirs))
        return cls(origin, tuple(folds[chosen]), theirs, chosen.name, past, (*_warnings(past, plan, split), *_unlike(plan, theirs)))

    def tell(self, progress: Progress) -> None:
        """Say what was transferred, and what a report would not show."""
        moved = self.origin.transferred
        count = len(self.files)
        networks = "one network" if count == 1 else f"{count} networks, one after another"
        lines = [
            f"begins with {self.origin.source}, {self.fold} ({networks}): {math.floor(1000 * moved.share) / 10:g} % of the parameters are transferred"
        ]
        rows = [("copied", f"{moved.copied} tensor{'' if moved.copied == 1 else 's'}", "name and shape are the same")]
        for word, named in (("adapted", moved.adapted), ("fresh", moved.fresh)):
            for why, names in _grouped(named).items():
                rows.append((word, names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", why))
        if moved.left:
            rows.append(("left", f"{moved.left} tensor{'' if moved.left == 1 else 's'}", "only the source has them"))
        width = max(len(what) for _, what, _ in rows)
        lines += [f"  {word:<8} {what:<{width}}  {why}" for word, what, why in rows]
        progress.say("\n".join(lines))
        for warning in self.warnings:
            progress.say(warning)

    def keep(self, state: Path, plan: Plan) -> None:
        """Copy the networks into a fold's state, so that the training goes on without the source."""
        tensors: dict[str, Tensor] = {}
        for number, file in enumerate(self.files):
            _, one = read_tensors(file, self.plan.trained_digest(), "weights file")
            tensors |= {f"{number}/{name}": tensor for name, tensor in one.items()}
        write_atomic(state / KEPT, lambda temporary: save_file(tensors, temporary, metadata={"plan": plan.trained_digest()}))


def check_start(run: RunFolder, source: Source | None) -> Origin | None:
    """What the networks of a model folder begin from, as far as it is known; None: anew, or nothing has begun.

    Raises:
        ModelError: they began otherwise than `source` says.
    """
    origin = Origin.load(run.init_file) if run.init_file.is_file() else None
    if source is None:
        return origin
    if origin is None and begun(run):
        raise ModelError.of(
            "this model began anew, without --init", where=str(run.root), fix="Drop --init, or choose another folder for -o."
        )
    if origin is not None and origin.weights_digest != source.origin.weights_digest:
        raise ModelError.of(
            "this model began with other weights",
            where=str(run.root),
            found=f"--init with weights {source.origin.weights_digest} of {source.origin.source}",
            expected=f"weights {origin.weights_digest} of {origin.source}",
            fix="Pass the model it began with, drop --init to go on, or choose another folder for -o.",
        )
    return origin


def adopt_start(run: RunFolder, plan: Plan, fold: int | None, split: Split, source: Source | None, progress: Progress) -> Start | None:
    """How the networks of a fold begin; a source is kept with the fold and remembered in the model folder, and so is what the networks are
    trained on. None: anew.

    Raises:
        ModelError: see `check_start`; or the source is needed for a further fold and was not given.
    """
    origin = check_start(run, source)
    kept = run.fold(fold) / "state" / KEPT
    if source is not None:
        if origin is None:
            source.origin.save(run.init_file)
        if not kept.is_file():
            source.tell(progress)
            Past.begin(plan, split, needs_annotations(plan), source.past).save(past_file(run.fold(fold)))
            source.keep(kept.parent, plan)
        return Start(kept, source.origin.meaning)
    if origin is None:
        Past.begin(plan, split, needs_annotations(plan), None).save(past_file(run.fold(fold)))
        return None
    if not kept.is_file():
        raise ModelError.of(
            "this model began with the weights of another, which a further fold needs again",
            where=str(run.root),
            expected=f"weights {origin.weights_digest} of {origin.source}",
            fix="Pass that model once more: --init MODEL.",
        )
    return Start(kept, origin.meaning)


def needs_annotations(plan: Plan) -> bool:
    """Whether networks of this plan learn from annotations, not from images alone."""
    return not issubclass(find_objective(plan.task), Pretext)


def begun(run: RunFolder) -> bool:
    """Whether a training in a model folder has got so far that it goes on from there."""
    return any(any(run.root.glob(f"fold_*/{file}")) for file in ("network_*.safetensors", "state/checkpoint.safetensors"))


def _meaning(plan: Plan) -> Meaning:
    objective = find_objective(plan.task)(plan)
    names = [channel.name for channel in plan.data.channels]
    more = _prior_names(plan.data.labels) if plan.previous else []
    more += [f"input {n + 1} after the image" for n in range(len(more), objective.channels - len(names))]
    return Meaning.of(plan.network.kind, names, more, objective.heads, objective.inner)


def _prior_names(labels: Labels) -> list[str]:
    """Names of the channels of a prior, one for each foreground value: those of the value's classes, by place where several values have the
    same."""
    named = [" + ".join(one.name for one in labels.classes if value in one.values) for value in labels.values]
    return [
        f"prior: {name}" + (f", value {named[:n].count(name) + 1} of {named.count(name)}" if named.count(name) > 1 else "")
        for n, name in enumerate(named)
    ]


def _transferred(plan: Plan, network: nn.Module, source: Mapping[str, Tensor], meaning: Meaning) -> tuple[dict[str, Tensor], Transferred]:
    objective = find_objective(plan.task)(plan)
    of = ports(objective.built, objective.channels, objective.heads)
    return transfer(network.state_dict(), _meaning(plan), source, meaning, of)


def _check_alike(plan: Plan, theirs: Plan) -> None:
    """What no transfer can bridge. Raises ModelError."""
    choose = "Choose a model of the same kind, or train another configuration."
    for name, mine, other, fix in (
        ("domain", plan.domain, theirs.domain, choose),
        ("axes of a window", len(plan.window), len(theirs.window), choose),
        ("network.kind", plan.network.kind, theirs.network.kind, LIKE),
    ):
        if mine != other:
            raise ModelError.of(
                "the networks are different", where=f"--init, {name}", found=f"{other} in '{theirs.name}' of {theirs.data.name}",
                expected=f"{mine} as in plan '{plan.name}'", fix=fix,
            )  # fmt: skip


def _too_different(plan: Plan, theirs: Plan, moved: Transferred) -> Any:
    reasons = _grouped(moved.fresh)
    most = max(reasons, key=lambda why: len(reasons[why]), default="")
    name = reasons[most][0] if most else ""
    return ModelError.of(
        "the networks are different",
        where="--init",
        found=f"{moved.share:.0%} of the parameters of plan '{plan.name}' in '{theirs.name}' of {theirs.data.name}"
        + (f"; tensor '{name}': {most}" if most else ""),
        expected=f"at least {FAIR_SHARE:.0%}",
        fix=LIKE,
    )


def _warnings(past: Past, plan: Plan, split: Split) -> tuple[str, ...]:
    """What the past of the source says of the cases left out."""
    if not split.val:
        return ()
    told: list[str] = []
    direct, all_seen = (Past(trainings=trainings).seen(plan.data, split.val) for trainings in (past.trainings[:1], past.trainings))
    if all_seen:
        who = "the source was trained" if direct == all_seen else "the source, or a model that it began with, was trained"
        told.append(
            f"warning: {who} on the same dataset, with {len(all_seen)} of the {len(split.val)} cases left out here, so that their scores say "
            "little about unseen ones"
        )
    told += [
        f"warning: '{model}' does not say which cases it was trained on; if cases left out here were among them, their scores are optimistic"
        for model in past.unknown
    ]
    if past.seen(plan.data, split.val, annotated=False):
        told.append("the source was trained on this dataset's images, also of the cases left out here, but not on their annotations")
    return tuple(told)


def _unlike(plan: Plan, theirs: Plan) -> tuple[str, ...]:
    """How images look otherwise than to the source."""
    places, others = ({c.name.strip().casefold(): n for n, c in enumerate(one.data.channels)} for one in (plan, theirs))
    if len(places) == len(others) == 1:
        others = dict.fromkeys(places, 0)
    both = {plan.data.channels[n].name: (n, others[name]) for name, n in places.items() if name in others}
    return tuple(
        f"warning: {phrase}: the images do not look to the network as they did. A plan made with --like has them alike"
        for phrase in plan.space.unlike(theirs.space, both)
    )


def _grouped(named: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> tensors, in order."""
    groups: dict[str, list[str]] = {}
    for name, why in named.items():
        groups.setdefault(why, []).append(name)
    return groups
