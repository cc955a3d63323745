"""From the plan of a task to that of a pre-training whose networks suit it: the same but for what is learned."""

from __future__ import annotations

import math

from medseg.device import Machine
from medseg.errors import PlanError
from medseg.planning import rules
from medseg.planning.memory import training_cost
from medseg.plans import Plan
from medseg.tasks.base import find_pretext, find_task


def pretext_plan(plan: Plan, objective: str) -> Plan:
    """The plan of a pre-training: same space, window and network.

    Args:
        plan: of a task.
        objective: registered name of an objective without annotations.

    Raises:
        PlanError: `plan` is no plan of a task or one of a cascade, or `objective` needs annotations.
    """
    find_task(plan.task)
    if plan.previous:
        raise PlanError.of(
            "this configuration takes the prediction of another, which images alone do not give",
            where=f"plan '{plan.name}', field 'previous'",
            found=f"'{plan.previous}'",
            fix="Pre-train with the plan of a configuration that stands alone and has the same network, and begin this one with it (--init).",
        )
    target, reasons = find_pretext(objective).target(plan)
    training = plan.training.model_copy(update={"foreground": 0.0, "networks": 1})
    kept = {path: why for path, why in plan.reasons.items() if path.partition(".")[0] not in ("target", "memory", "recommended")}
    told = {
        **kept,
        **{f"target.{field}": reason for field, reason in reasons.items()},
        "recommended": "No configuration of a dataset, but where its trainings begin (`--init`).",
        "training.foreground": "No window is centred on a class: images without annotations have none.",
        "training.networks": "One: where trainings begin need not be averaged.",
    }
    changed = plan.model_copy(
        update={"task": objective, "target": target, "training": training, "recommended": False, "reasons": dict(sorted(told.items()))}
    )
    cost = training_cost(changed)
    memory, why = rules.memory(math.ceil(cost.memory * 100) / 100, Machine(plan.memory.device, plan.memory.budget), cost)
    told |= {f"memory.{field}": reason for field, reason in why.items()}
    changed = changed.model_copy(update={"memory": memory, "reasons": dict(sorted(told.items()))})
    return Plan.parse(changed.model_dump(mode="json"), where=f"plan '{plan.name}' for '{objective}'")
