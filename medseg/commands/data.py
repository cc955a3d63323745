"""Verbs about datasets and plans: verify, plan, explain, preprocess, tasks, schema."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.commands.console import Bars, answer, ok, paragraphs, say, shown, table, warn
from medseg.commands.options import (
    DATASET_HELP,
    Classes,
    DatasetPath,
    Device,
    Edit,
    LabelFolder,
    Memory,
    ModalityOption,
    Network,
    ObjectsOption,
    PlanFile,
    ReferenceChannel,
    ResampleLabels,
    SplitsFile,
    TaskName,
    ThingsOption,
    Workers,
    options,
    out_option,
    parse_edits,
)
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.planning.difference import Change
    from medseg.plans import Plan


def verify(
    dataset: DatasetPath,
    classes: Classes = None,
    labels: LabelFolder = None,
    modality: ModalityOption = None,
    reference: ReferenceChannel = None,
    objects: ObjectsOption = None,
    things: ThingsOption = None,
    workers: Workers = None,
    resample_labels: ResampleLabels = False,
    splits: SplitsFile = None,
) -> None:
    """Check a dataset and report every problem at once, before anything costs time."""
    from medseg import workflow

    with Bars() as progress:
        verified = workflow.verify(
            dataset,
            options(classes, labels, modality, reference, objects, things),
            workers=workers,
            resample_labels=resample_labels,
            splits=splits,
            progress=progress,
        )
    found = verified.dataset
    for note in found.notes:
        say(note)
    for warning in verified.warnings:
        warn(str(warning))
    rows = [
        (name, "/".join(map(str, c.values)), verified.occurrences[name])
        for name, c in zip(found.labels.names, found.labels.classes, strict=True)
    ]
    table(f"{found.name}: {len(found.cases)} labelled cases, layout {found.layout}", ("class", "values", "cases with it"), rows)
    ok("ready to plan")
    answer(
        {
            "dataset": found.name,
            "layout": found.layout,
            "cases": len(found.cases),
            "unlabelled": len(found.unlabelled),
            "occurrences": verified.occurrences,
            "notes": found.notes,
            "warnings": [str(w) for w in verified.warnings],
        }
    )


def plan(
    dataset: Annotated[Path | None, typer.Argument(help=f"{DATASET_HELP} None with --nnunet-fingerprint.")] = None,
    *,
    out: Annotated[Path, out_option("Folder for fingerprint and plans (the workspace).")],
    task: TaskName = None,
    memory: Memory = None,
    device: Device = "auto",
    classes: Classes = None,
    labels: LabelFolder = None,
    modality: ModalityOption = None,
    reference: ReferenceChannel = None,
    objects: ObjectsOption = None,
    things: ThingsOption = None,
    workers: Workers = None,
    resample_labels: ResampleLabels = False,
    splits: SplitsFile = None,
    network: Network = None,
    edits: Edit = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            help="A model folder: plan for its network, window, spacing and intensities, so that `train --init` can begin with it.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Plan as another program: nnunet (its default), nnunet-resenc-m, -l or -xl; --memory is then its GPU memory target.",
        ),
    ] = None,
    foreign: Annotated[
        Path | None,
        typer.Option(
            "--nnunet-fingerprint", help="With --preset: a folder with nnU-Net's dataset.json and dataset_fingerprint.json; no images."
        ),
    ] = None,
    program: Annotated[
        str | None, typer.Option("--format", help="Also write the plans for this program: nnunet (nnUNetPlans.json).")
    ] = None,
    prepare: Annotated[bool, typer.Option("--preprocess", help="Also prepare the cases for every configuration, cascades apart.")] = False,
) -> None:
    """Fingerprint a dataset and write one plan per configuration; says which one it recommends and why."""
    if preset is not None or foreign is not None or program is not None:
        chosen = {"--task": task, "--network": network, "--like": like}
        given = [option for option, value in chosen.items() if value is not None]
        if preset is None or given:
            raise UsageError.of(
                "these options do not go together",
                found=", ".join(["--preset" if preset else "no --preset", *given]),
                expected="--preset with --nnunet-fingerprint and --format; a preset brings its own task and network",
            )
        if program not in (None, "nnunet"):
            raise UsageError.of("no such format", where="--format", found=f"'{program}'", expected="nnunet")
    if foreign is not None and splits is not None:
        raise UsageError.of(
            "--splits has no meaning here: nnU-Net's fingerprint knows no cases", where="--splits", found=str(splits), fix="Leave it out."
        )
    if foreign is not None and prepare:
        raise UsageError.of("there are no images to prepare", where="--preprocess", found="--nnunet-fingerprint", fix="Leave it out.")
    if (dataset is None) == (foreign is None):
        raise UsageError.of("pass either a dataset or --nnunet-fingerprint", found="both" if dataset else "neither", expected="one of them")

    from medseg import workflow

    if preset is not None:
        from medseg.interop.nnunet.planning import Presets

        rules = Presets(preset, memory, out if program else None)
        if foreign is not None:
            _planned(rules.for_folder(foreign, out, parse_edits(edits, "--edit")), out, "")
            return
    else:
        rules = None
    assert dataset is not None
    with Bars() as progress:
        plans = workflow.plan(
            dataset,
            out,
            task=task,
            memory=memory,
            device=device,
            network=network,
            edits=parse_edits(edits, "--edit"),
            rules=rules,
            like=like,
            options=options(classes, labels, modality, reference, objects, things),
            workers=workers,
            resample_labels=resample_labels,
            splits=splits,
            prepare=prepare,
            progress=progress,
        )
    _planned(plans, out, "train {file} --time 20m -o RUN" + (f" --init {shown(like)}" if like is not None else ""))


def _planned(plans: Sequence[Plan], out: Path, then: str) -> None:
    rows = [(("* " if p.recommended else "  ") + p.name, _by(p.window), p.training.batch_size, p.memory.training) for p in plans]
    table(f"Plans of {plans[0].data.name} in {out}", ("configuration", "window", "batch", "training GiB"), rows)
    best = next(p for p in plans if p.recommended)
    file = shown(out / f"{best.name}.json")
    say(f"* recommended: {best.name}. {best.reasons['recommended']}")
    say(f"Next: medseg explain {file}" + (f", or medseg {then.format(file=file)}" if then else ""))
    answer([p.model_dump(mode="json") for p in plans])


def explain(
    plan: PlanFile,
    other: Annotated[Path | None, typer.Argument(help="Another plan file: print only what differs, with both values and reasons.")] = None,
) -> None:
    """Print every decision of a plan with its reason and the evidence from the fingerprint, or what differs between two plans."""
    from medseg import answers

    if other is not None:
        _differences(plan, other, answers.difference(plan, other))
        return
    decisions = answers.explain(plan)
    paragraphs([(f"{d.field} = {d.value}", d.reason) for d in decisions])
    answer([d.model_dump(mode="json") for d in decisions])


def _differences(first: Path, second: Path, changes: tuple[Change, ...]) -> None:
    answer([c.model_dump(mode="json") for c in changes])
    if not changes:
        ok(f"{first} and {second} are equal in every value")
        return
    for section, group in groupby(changes, key=lambda change: change.section):
        say(f"[{section}]")
        paragraphs([(c.field, f"{_side(first, c.first, c.first_reason)}\n{_side(second, c.second, c.second_reason)}") for c in group])


def _side(plan: Path, value: str | None, reason: str) -> str:
    return f"{plan}: " + ("no such field" if value is None else f"{value}. {reason}" if reason else value)


def preprocess(plan: PlanFile, workers: Workers = None) -> None:
    """Prepare every case for training: crop, resample, normalise. Goes on where it was interrupted."""
    from medseg import workflow

    with Bars() as progress:
        store = workflow.preprocess(plan, workers=workers, progress=progress)
    ok(f"{len(store.ids())} prepared cases in {store.folder}")
    answer({"cases": len(store.ids()), "folder": str(store.folder)})


def tasks() -> None:
    """List the tasks, domains, networks, dataset layouts and formats of predictions that are installed, plug-ins included."""
    from medseg import registry

    rows: list[tuple[str, str, str]] = []
    for family in (registry.tasks, registry.domains, registry.networks, registry.layouts, registry.exports):
        for name, found in family.items():
            rows.append((family.family, name, getattr(found, "summary", None) or _first_line(found)))
    offered: dict[tuple[str, str], list[str]] = {}
    for name, task in registry.tasks.items():
        for own in getattr(task, "networks", {}).items():
            offered.setdefault(own, []).append(name)
    rows += [(registry.networks.family, own, f"{what} (for {', '.join(names)})") for (own, what), names in offered.items()]
    table("Installed", ("family", "name", "what it is"), rows)
    answer([{"family": f, "name": n, "summary": s} for f, n, s in rows])


def schema(record: Annotated[str, typer.Argument(help="plan, dataset or fingerprint.")] = "plan") -> None:
    """Print the JSON Schema of a record."""
    import json
    import sys

    from medseg.dataset import Dataset
    from medseg.fingerprint import Fingerprint
    from medseg.planning.reference import plan_schema

    schemas: dict[str, Any] = {
        "plan": plan_schema,
        "dataset": Dataset.model_json_schema,
        "fingerprint": Fingerprint.model_json_schema,
    }
    if record not in schemas:
        raise UsageError.of("no such record", found=f"'{record}'", expected=", ".join(schemas))
    sys.stdout.write(json.dumps(schemas[record](), indent=2) + "\n")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _first_line(found: object) -> str:
    return (found.__doc__ or "").strip().split("\n")[0]


NEED_ARGUMENTS = (verify, plan, explain, preprocess)
