"""Every decision of a plan with its reason, as plain records."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic_core import to_jsonable_python

from medseg.fingerprint import Fingerprint
from medseg.plans import Plan, lookup
from medseg.record import Record, compact_json

DECIDED = ("window", "recommended")
SECTIONS = ("space", "network", "target", "training", "inference", "memory")


class Decision(Record):
    """One decision.

    Attributes:
        field: dotted field name, as for `--set`.
        value: JSON text.
        reason: why.
    """

    field: str
    value: str
    reason: str


def explain(plan: Plan, fingerprint: Fingerprint | None = None) -> tuple[Decision, ...]:
    """All decisions of a plan in the order of its fields, after the evidence from the fingerprint (when given)."""
    decisions = [] if fingerprint is None else [Decision(field=f, value=v, reason=r) for f, v, r in _evidence(fingerprint)]
    for path in _told(plan):
        value = to_jsonable_python(lookup(plan, path))  # also of a field that is not written, because it is as in most plans
        decisions.append(Decision(field=path, value=compact_json(value, width=10**6), reason=plan.reasons.get(path, "")))
    return tuple(decisions)


def unexplained(plan: Plan) -> tuple[str, ...]:
    """Decisions without a reason. A reason for a section or for a part of a field counts for the field."""
    return tuple(
        path
        for path in _decided(plan)
        if not plan.reasons.get(path)
        and not any(known == path.split(".")[0] or known.startswith(f"{path}.") for known, reason in plan.reasons.items() if reason)
    )


def _told(plan: Plan) -> Iterator[str]:
    """Fields in the order of the plan, each followed by those of its parts that have reasons of their own."""
    left = sorted(plan.reasons)
    for path in _decided(plan):
        parts = [known for known in left if known.startswith(f"{path}.")]
        if path in plan.reasons or not parts:
            yield path
        yield from parts
        left = [known for known in left if known != path and known not in parts]
    yield from left


def _decided(plan: Plan) -> Iterator[str]:
    yield DECIDED[0]
    for section in SECTIONS:
        for name in getattr(plan, section).model_dump():
            if name != "kind" or f"{section}.kind" in plan.reasons:
                yield f"{section}.{name}"
    yield DECIDED[1]


def _evidence(fingerprint: Fingerprint) -> Iterator[tuple[str, str, str]]:
    """What the plan was made from: field, value, meaning."""
    cases = fingerprint.cases
    axes = range(len(cases[0].shape))
    yield "data.cases", str(len(cases)), "Labelled cases that were measured."
    for name in ("shape", "spacing"):
        columns = [sorted(getattr(case, name)[a] for case in cases) for a in axes]
        text = " x ".join(f"{c[0]:.4g}..{c[-1]:.4g} (median {c[len(c) // 2]:.4g})" for c in columns)
        yield f"data.{name}", text, "Smallest, largest and median per axis, " + ("in voxels." if name == "shape" else "in mm.")
    for channel, stats in zip(fingerprint.channels, fingerprint.intensities, strict=True):
        text = f"mean {stats.mean:.4g}, sd {stats.std:.4g}, 0.5 to 99.5 % {stats.percentile(0.5):.4g}..{stats.percentile(99.5):.4g}"
        yield f"data.channels.{channel.name}", text, f"Intensities within the foreground ({channel.modality})."
    foreground = max(1, sum(found.voxels for case in cases for found in case.classes))
    for k, name in enumerate(fingerprint.labels.names):
        voxels = [case.classes[k].voxels for case in cases]
        parts = sorted(case.classes[k].components for case in cases)
        share = sum(voxels) / foreground
        yield (
            f"data.classes.{name}",
            f"{share:.1%} of the foreground, in {sum(v > 0 for v in voxels)} of {len(cases)} cases, {parts[0]} to {parts[-1]} components",
            "Frequency of the class.",
        )
