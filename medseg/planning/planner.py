"""From a fingerprint to plans: one per configuration that the domain proposes, exactly one of them recommended.

The planner knows neither the task nor the domain nor the network by name: the domain drafts configurations with candidate windows, the
task says what it needs, the network family configures itself for a window, and memory and work are measured on the result. Same
fingerprint and machine, same plans, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from medseg.dataset import Dataset
from medseg.device import Machine
from medseg.domains.base import Draft, find_domain
from medseg.errors import PlanError, Problem, ResourceError
from medseg.fingerprint import Fingerprint
from medseg.geometry import Shape
from medseg.models.base import Configured, find_network
from medseg.planning import rules
from medseg.planning.explain import unexplained
from medseg.planning.memory import MEASURED, Cost, extrapolated, training_cost
from medseg.plans import DataPlan, InferencePlan, Plan
from medseg.tasks.base import Frame, Needs, chosen_network, find_task


def make_plans(
    dataset: Dataset, fingerprint: Fingerprint, *, task: str, domain: str, network: str | None, machine: Machine, like: Plan | None = None
) -> tuple[Plan, ...]:
    """One plan per configuration that fits, in the domain's order.

    Args:
        dataset: as a layout read it.
        fingerprint: measured on it (`make_fingerprint`).
        task, domain, network: registered names; the network may be one of the task's own (`Task.networks`), None is what the task prefers.
        machine: kind of device and GiB that training may use.
        like: the plan of a model whose weights trainings are to begin with. The only configuration is then the one of its kind, with its
            network and all that these weights depend on.

    Raises:
        ResourceError: no configuration fits the machine; names the smallest budget in which one does.
        PlanError: a name is not registered; or the dataset cannot be planned for the network of `like`.
    """
    kind = chosen_network(task, network)
    variants = find_task(task).variants(dataset, fingerprint, network)
    drafts = find_domain(domain).drafts(fingerprint, machine)
    family: _Configures = find_network(kind)
    if like is not None:
        drafts, family = (_like(drafts, domain, fingerprint, machine, like),), _Known(like)
        if network is None or network == kind:
            variants = (find_task(task).like(dataset, fingerprint, like, _as_in(like)),)
    folds = rules.cross_validation(dataset)
    fitted: list[tuple[_Offer, Plan]] = []
    misfits: list[_Misfit] = []
    for draft in drafts:
        for needs in variants:
            offer = _Offer(draft, needs)
            found = _Search(fingerprint, folds, offer, task, domain, family, machine).result()
            if isinstance(found, _Misfit):
                misfits.append(found)
            else:
                fitted.append(found)
    if not fitted:
        raise ResourceError(_nothing_fits(misfits, machine))
    names = {offer.name for offer, _ in fitted}
    fitted = [(offer, plan) for offer, plan in fitted if offer.draft.previous in ("", *names)]
    best = max(fitted, key=lambda pair: pair[0].preference)[0]
    return tuple(_judged(plan, offer, best, misfits) for offer, plan in fitted)


@dataclass(frozen=True)
class _Offer:
    """What the domain drafts, for one of the task's variants."""

    draft: Draft
    needs: Needs

    @property
    def name(self) -> str:
        """Of the configuration."""
        return f"{self.draft.name}_{self.needs.name}" if self.needs.name else self.draft.name

    @property
    def preference(self) -> tuple[float, float]:
        """The domain decides first."""
        return self.draft.preference, self.needs.preference

    @property
    def because(self) -> str:
        """Why it is offered."""
        return f"{_sentence(self.draft.because)} {_sentence(self.needs.because)}" if self.needs.because else self.draft.because


def choose_plan(plans: Sequence[Plan], name: str | None) -> Plan:
    """The plan of a configuration; None is the recommended one.

    Raises:
        PlanError: there is no such configuration.
    """
    for one in plans:
        if one.recommended if name is None else one.name == name:
            return one
    raise PlanError.of("no such configuration", where="--configuration", found=f"'{name}'", expected=", ".join(p.name for p in plans))


class _Configures(Protocol):
    """What the search asks of a network family."""

    def configure(self, window: Shape, spacing: tuple[float, ...], machine: Machine) -> Configured:
        """See `NetworkFamily.configure`."""


@dataclass(frozen=True)
class _Known:
    """Configures the network of a model."""

    model: Plan

    def configure(self, window: Shape, spacing: tuple[float, ...], machine: Machine) -> Configured:
        """As it is."""
        return Configured(self.model.network, self.model.window, dict.fromkeys(type(self.model.network).model_fields, _as_in(self.model)))


def _as_in(model: Plan) -> str:
    return f"As in the model '{model.data.name} {model.name}' (--like), so that its weights fit."


def _like(drafts: Sequence[Draft], domain: str, fingerprint: Fingerprint, machine: Machine, model: Plan) -> Draft:
    """The draft of a model's kind, made like it: that of its name, else the first whose windows have as many axes."""
    axes = len(model.window)
    for name, ours, theirs in (("domain", domain, model.domain), ("dimensions of a case", fingerprint.ndim, model.data.ndim)):
        if ours != theirs:
            raise PlanError.of(
                "this dataset cannot be planned like the model", where=f"--like, --init, {name}", found=f"{theirs} in '{model.data.name} {model.name}'",
                expected=f"{ours}, as in dataset '{fingerprint.dataset}'", fix="Choose a model of such data.",
            )  # fmt: skip
    if model.previous:
        raise PlanError.of(
            "a cascade cannot be planned like its second stage alone",
            where="--like, --init",
            found=f"'{model.data.name} {model.name}', which takes the prediction of '{model.previous}'",
            fix=f"Choose a model that stands alone, such as its '{model.previous}'.",
        )
    alike = [draft for draft in drafts if len(draft.windows[0]) == axes and not draft.previous]
    chosen = next((draft for draft in alike if draft.name == model.name), alike[0] if alike else None)
    if chosen is None:
        raise PlanError.of(
            "this dataset cannot be planned like the model",
            where="--like, --init",
            found=f"windows of {axes} axes in '{model.data.name} {model.name}'",
            expected=f"as many as in one of {', '.join(f'{draft.name} ({len(draft.windows[0])})' for draft in drafts)}",
            fix="Choose a model of such a configuration.",
        )
    return find_domain(domain).like(chosen, fingerprint, machine, model, _as_in(model))


@dataclass(frozen=True)
class _Misfit:
    """A configuration whose smallest window needs more memory than there is, in GiB."""

    name: str
    window: Shape
    memory: float

    @property
    def budget(self) -> float:
        """The smallest budget in which it fits, to a hundredth."""
        return math.ceil(self.memory * 100) / 100


def _nothing_fits(misfits: Sequence[_Misfit], machine: Machine) -> list[Problem]:
    least = min(misfits, key=lambda m: m.memory)
    return [
        Problem(
            "the smallest window does not fit the memory",
            where=misfit.name,
            found=f"{misfit.memory:.2f} GiB for {rules.SMALLEST_BATCH} windows of {list(misfit.window)}",
            expected=f"at most {machine.memory:g} GiB",
            fix=f"The smallest budget in which a configuration fits is --memory {least.budget:g} ('{least.name}').",
        )
        for misfit in misfits
    ]


def _judged(plan: Plan, offer: _Offer, best: _Offer, misfits: list[_Misfit]) -> Plan:
    """The plan with its recommendation, which also names the configurations that did not fit."""
    reason = offer.because if offer is best else f"{offer.because.removesuffix('.')}; but {best.name} is recommended: {best.because}"
    if misfits:
        left = ", ".join(f"{m.name} ({m.budget:g} GiB)" for m in misfits)
        reason += f"; left out, because the smallest window needs more than {plan.memory.budget:g} GiB: {left}"
    reasons = {path: _sentence(why) for path, why in sorted({**plan.reasons, "recommended": reason}.items())}
    plan = plan.model_copy(update={"recommended": offer is best, "reasons": reasons})
    missing = unexplained(plan)
    if missing:
        raise AssertionError(f"decisions without a reason in plan '{plan.name}': {', '.join(missing)}")
    return plan


def _sentence(text: str) -> str:
    """Reasons come from several packages; in a plan they all read as sentences."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


@dataclass(frozen=True)
class _Search:
    """The search for window and batch of one configuration."""

    fingerprint: Fingerprint
    folds: rules.Folds
    offer: _Offer
    task: str
    domain: str
    family: _Configures
    machine: Machine

    @property
    def draft(self) -> Draft:
        """The domain's share of the configuration."""
        return self.offer.draft

    def result(self) -> tuple[_Offer, Plan] | _Misfit:
        """The plan with the first window that fits memory and work, and with the largest batch, and the offer as the task fits it to that window; a misfit
        when none fits memory."""
        networks = list({c.window: c for c in (self._configured(window) for window in self.draft.windows)}.values())
        costs: dict[int, Cost] = {}

        def works(index: int) -> bool:
            cost = costs[index] = training_cost(self._plan(networks[index], rules.SMALLEST_BATCH, ""))
            return cost.memory <= self.machine.memory and (self.machine.kind != "cpu" or cost.flops <= rules.WINDOW_FLOPS)

        # Candidates shrink, and so do their costs: the first that works is found by bisection.
        low, high = 0, 0 if works(0) else len(networks) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if works(middle) else (middle + 1, high)
        if low not in costs:
            works(low)
        configured, smallest = networks[low], costs[low]
        if smallest.memory > self.machine.memory:
            return _Misfit(self.offer.name, configured.window, smallest.memory)
        batch, why, cost = self._batch(configured, smallest)
        because = ""
        if not isinstance(self.family, _Known):  # of which nothing was searched
            because = rules.window_reason(configured.window, tuple(c.window for c in networks), self.draft, self.machine, smallest)
        return replace(self.offer, needs=self._fitted(configured)), self._plan(configured, batch, why, cost, because)

    def _batch(self, configured: Configured, smallest: Cost) -> tuple[int, str, Cost]:
        """The largest batch, which limit binds, and its cost."""
        most, why = rules.most_windows(configured.window, self.draft.samples, smallest, self.machine)
        if most == rules.SMALLEST_BATCH:
            return most, why, smallest
        # Few batches are measured, because each takes a moment; the others are on the line through two that are.
        measured = {rules.SMALLEST_BATCH: smallest}
        for batch in {min(most, n) for n in (MEASURED // 2, MEASURED)}:
            measured[batch] = training_cost(self._plan(configured, batch, ""))
        *_, small, large = sorted(measured)
        best, cost = rules.SMALLEST_BATCH, smallest
        for batch in range(best + 1, most + 1):
            tried = measured.get(batch) or extrapolated(measured[small], small, measured[large], large, batch)
            if tried.memory > self.machine.memory:
                return best, f"one more window would need more than {self.machine.memory:g} GiB", cost
            best, cost = batch, tried
        return most, why, cost

    def _configured(self, window: Shape) -> Configured:
        return self.family.configure(window, self.draft.spacing, self.machine)

    def _fitted(self, configured: Configured) -> Needs:
        """What the task needs in these windows and of this network."""
        if self.offer.needs.final:
            return self.offer.needs
        levels = find_network(configured.settings.kind).levels(configured.settings)
        frame = Frame(configured.window, self.draft.spacing, self.draft.axes, levels, self.machine.kind)
        return find_task(self.task).fit(self.offer.needs, self.fingerprint, frame)

    def _plan(self, configured: Configured, batch: int, why: str, cost: Cost | None = None, window_because: str = "") -> Plan:
        draft, seen, needs = self.draft, self.fingerprint, self._fitted(configured)
        training, of_training = rules.training(batch, why, configured.window, draft.samples, len(seen.cases), self.folds, self.machine)
        memory, of_memory = rules.memory(math.ceil(cost.memory * 100) / 100 if cost else 0.0, self.machine, cost)
        reasons = {"window": window_because}
        for part, told in (
            ("network", configured.reasons),
            ("target", needs.reasons),
            ("training", of_training),
            ("memory", of_memory),
        ):
            reasons |= {f"{part}.{name}": reason for name, reason in told.items()}
        for path, reason in draft.reasons.items():
            # The domain says why it proposes such windows, the planner which one fitted.
            reasons[path] = f"{_sentence(reason)} {window_because}".strip() if path == "window" else reason
        if needs.overlap > draft.overlap:
            reasons["inference.overlap"] = needs.overlap_because
        if needs.one_view:
            reasons["inference.mirror"] = needs.one_view
        if needs.one_network:
            training = training.model_copy(update={"networks": 1})
            reasons["training.networks"] = needs.one_network
        return Plan(
            name=self.offer.name,
            task=self.task,
            domain=self.domain,
            data=DataPlan(name=seen.dataset, digest=seen.digest, ndim=seen.ndim, channels=seen.channels, labels=needs.labels),
            window=configured.window,
            space=draft.space,
            network=configured.settings,
            target=needs.target,
            training=training,
            inference=InferencePlan(overlap=max(draft.overlap, needs.overlap), mirror=() if needs.one_view else draft.mirror),
            memory=memory,
            previous=draft.previous,
            reasons=dict(sorted(reasons.items())),
        )
