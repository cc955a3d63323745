"""Edits of fresh plans (`medseg plan --edit FIELD=VALUE`): applied, checked, and measured again where they change what a step costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from medseg.device import Machine
from medseg.errors import PlanError, Problem, ResourceError
from medseg.geometry import Shape
from medseg.models.base import find_network
from medseg.planning import rules
from medseg.planning.memory import Cost, same_cost, training_cost
from medseg.plans import Plan, is_field, lookup

OPTION = "--edit"
MOST = 1024.0  # GiB; more than a machine is likely to have is no advice
DECIDED_ELSEWHERE = {
    "memory": "Pass --memory and --device; what training needs is measured.",
    "data": "It describes the dataset. Change the dataset, or what is said of it (--class, --modality).",
    "task": "Pass --task.",
    "domain": "It follows from the dataset.",
    "recommended": "Choose a configuration when you train: its plan file, or `medseg run --configuration`.",
    "name": "It is the name of the file.",
    "format": "It is the version of the file format.",
    "reasons": "An edit becomes its own reason.",
}


def edit_plans(plans: Sequence[Plan], edits: Mapping[str, str]) -> tuple[Plan, ...]:
    """Apply edits to every configuration that has the field; the memory section is measured again where they change it.

    Args:
        plans: the configurations of one dataset.
        edits: dotted field name to a JSON value (text that is not JSON is taken as a string). A name may begin with that of a
            configuration (`3d.window`), and is then for this one only.

    Raises:
        PlanError: a field does not exist, is not for editing, or has an impossible value; all of them at once.
        ResourceError: plans that need more memory than they may use; says the largest window and batch that fit.
    """
    problems: list[Problem] = []
    shares = _shares(plans, edits, problems)
    edited: list[Plan] = []
    for plan in plans:
        try:
            edited.append(plan.edited(shares[plan.name], OPTION) if shares[plan.name] else plan)
        except PlanError as error:
            problems += [_of(plan, problem) for problem in error.problems]
    if problems:
        raise PlanError(problems)
    costs = [None if same_cost(before, after) else training_cost(after) for before, after in zip(plans, edited, strict=True)]
    large = [_too_large(plan, cost) for plan, cost in zip(edited, costs, strict=True) if cost and cost.memory > plan.memory.budget]
    if large:
        raise ResourceError(large)
    return tuple(_told(plan, cost) if cost else plan for plan, cost in zip(edited, costs, strict=True))


def _shares(plans: Sequence[Plan], edits: Mapping[str, str], problems: list[Problem]) -> dict[str, dict[str, str]]:
    """Each configuration's edits; what concerns none becomes a problem."""
    shares: dict[str, dict[str, str]] = {plan.name: {} for plan in plans}
    for path, text in edits.items():
        name, _, rest = path.partition(".")
        asked, field = ([p for p in plans if p.name == name], rest) if rest and name in shares else (list(plans), path)
        if rest and name not in shares and not is_field(name):
            problems.append(
                Problem(f"no configuration '{name}' of this dataset", OPTION, f"'{path}={text}'", f"one of {', '.join(shares)}")
            )
            continue
        section = field.partition(".")[0]
        if section in DECIDED_ELSEWHERE:
            problems.append(Problem("this field is not for editing", OPTION, f"'{path}={text}'", fix=DECIDED_ELSEWHERE[section]))
            continue
        missing = ""
        for plan in asked:
            try:
                lookup(plan, field)
            except ValueError as error:
                missing = missing or str(error)
            else:
                shares[plan.name][field] = text
        if not any(field in shares[plan.name] for plan in asked):
            problems.append(Problem(missing, OPTION, f"'{path}={text}'"))
    return shares


def _of(plan: Plan, problem: Problem) -> Problem:
    """A problem that says in which configuration it is."""
    return Problem(problem.what, f"configuration '{plan.name}', {problem.where}", problem.found, problem.expected, problem.fix)


def _told(plan: Plan, cost: Cost) -> Plan:
    """The plan with its memory section measured."""
    machine = Machine(plan.memory.device, plan.memory.budget)
    memory, reasons = rules.memory(math.ceil(cost.memory * 100) / 100, machine, cost)
    told = plan.reasons | {f"memory.{name}": reason for name, reason in reasons.items()}
    return plan.model_copy(update={"memory": memory, "reasons": dict(sorted(told.items()))})


def _too_large(plan: Plan, cost: Cost) -> Problem:
    fits = []
    if batch := largest_batch(plan):
        fits.append(f"training.batch_size={batch} with this window")
    if window := largest_window(plan):
        fits.append(f"window={list(window)} with this batch")
    budget = math.ceil(cost.memory * 100) / 100
    return Problem(
        "the edited plan needs more memory than it may use",
        f"{OPTION}, configuration '{plan.name}'",
        f"{cost.memory:.2f} GiB for a batch of {plan.training.batch_size} and window {list(plan.window)}",
        f"at most {plan.memory.budget:g} GiB (--memory)",
        (f"The largest that fits is {', or '.join(fits)}." if fits else "No window and no batch fits with this network.")
        + (f" It needs --memory {budget:g}." if budget <= MOST else ""),
    )


def largest_batch(plan: Plan) -> int:
    """The largest batch below the plan's with which a step fits the plan's budget; 0 if none does."""
    low, high = 0, plan.training.batch_size - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _memory(plan, batch=middle) <= plan.memory.budget else (low, middle - 1)
    return low


def largest_window(plan: Plan) -> Shape:
    """The largest window of about the plan's proportions, below its size, with which a step fits its budget; empty if none does."""
    windows = list(_smaller(plan))
    if not windows or _memory(plan, window=windows[-1]) > plan.memory.budget:
        return ()
    low, high = 0, len(windows) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _memory(plan, window=windows[middle]) <= plan.memory.budget else (middle + 1, high)
    return windows[low]


def _smaller(plan: Plan) -> Iterator[Shape]:
    """Windows that the network takes, each one step smaller along the axis that has kept most of its size."""
    check, network = find_network(plan.network.kind).check, plan.network
    window, axes = plan.window, range(len(plan.window))

    def cut(start: Shape, axis: int, by: int) -> Shape:
        return tuple(n - by if a == axis else n for a, n in enumerate(start))

    steps = [next((s for s in range(1, window[a]) if not check(network, cut(window, a, s))), 0) for a in axes]
    while True:
        able = [a for a in axes if steps[a] and window[a] > steps[a] and not check(network, cut(window, a, steps[a]))]
        if not able:
            return
        axis = max(able, key=lambda a: (window[a] / plan.window[a], window[a], -a))
        window = cut(window, axis, steps[axis])
        yield window


def _memory(plan: Plan, window: Shape = (), batch: int = 0) -> float:
    return training_cost(_with(plan, window, batch)).memory


def _with(plan: Plan, window: Shape = (), batch: int = 0) -> Plan:
    """The plan with another window or batch, for measurements only: reasons do not follow."""
    training = plan.training.model_copy(update={"batch_size": batch or plan.training.batch_size})
    return plan.model_copy(update={"window": window or plan.window, "training": training})
