"""Verbs about datasets and plans: verify, plan, explain, preprocess, tasks, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from medseg.commands.console import Bars, answer, ok, paragraphs, say, shown, table, warn
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.dataset import Modality
    from medseg.io.layouts.base import LayoutOptions

Network = Annotated[str, typer.Option("--network", help="Network family, see `medseg tasks`.")]
DatasetPath = Annotated[
    Path, typer.Argument(help="Folder of a dataset: Medical Segmentation Decathlon, nnU-Net raw, or images/ + labels/.")
]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="A class and its label values, e.g. --class polyp=1-20 (repeatable). Default: as the dataset declares."),
]
LabelFolder = Annotated[str | None, typer.Option("--labels", help="Name of the label folder where a dataset has several.")]
ModalityOption = Annotated[
    str | None, typer.Option("--modality", help="What the images are: ct, mr, pet, rgb, gray, other. Default: from the dataset.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes for work over cases. Default: one per core.")]
PlanFile = Annotated[Path, typer.Argument(help="A plan file, e.g. PLANS/3d.json.")]
Memory = Annotated[float | None, typer.Option(min=0.1, help="GiB of memory to plan for or to stay within. Default: what the machine has.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
TaskName = Annotated[
    str | None, typer.Option("--task", help="What the labels mean, see `medseg tasks`. Default: as the dataset's layout says.")
]
ResampleLabels = Annotated[
    bool, typer.Option("--resample-labels", help="Resample labels that lie on another grid onto their image's grid.")
]


def options(classes: list[str] | None, labels: str | None, modality: str | None) -> LayoutOptions:
    """The dataset options of the command line."""
    from medseg.io.layouts.base import LayoutOptions

    return LayoutOptions(classes=parse_classes(classes) if classes else None, labels=labels, modality=cast("Modality | None", modality))


def parse_classes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """`["polyp=1-3,7"]` to `{"polyp": (1, 2, 3, 7)}`."""
    classes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, spec = text.partition("=")
        try:
            values: list[int] = []
            for part in spec.split(","):
                low, _, high = part.partition("-")
                values.extend(range(int(low), int(high or low) + 1))
        except ValueError:
            raise UsageError.of(
                "not a class", where="--class", found=f"'{text}'", expected="NAME=VALUES, e.g. polyp=1-20 or edema=2,3"
            ) from None
        classes[name.strip()] = tuple(values)
    return classes


def verify(
    dataset: DatasetPath,
    classes: Classes = None,
    labels: LabelFolder = None,
    modality: ModalityOption = None,
    workers: Workers = None,
    resample_labels: ResampleLabels = False,
) -> None:
    """Check a dataset and report every problem at once, before anything costs time."""
    from medseg import workflow

    with Bars() as progress:
        verified = workflow.verify(
            dataset, options(classes, labels, modality), workers=workers, resample_labels=resample_labels, progress=progress
        )
    for warning in verified.warnings:
        warn(str(warning))
    found = verified.dataset
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
            "warnings": [str(w) for w in verified.warnings],
        }
    )


def plan(
    dataset: DatasetPath,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for fingerprint and plans (the workspace).")],
    task: TaskName = None,
    memory: Memory = None,
    device: Device = "auto",
    classes: Classes = None,
    labels: LabelFolder = None,
    modality: ModalityOption = None,
    workers: Workers = None,
    resample_labels: ResampleLabels = False,
    network: Network = "unet",
) -> None:
    """Fingerprint a dataset and write one plan per configuration; says which one it recommends and why."""
    from medseg import workflow

    with Bars() as progress:
        plans = workflow.plan(
            dataset,
            out,
            task=task,
            memory=memory,
            device=device,
            network=network,
            options=options(classes, labels, modality),
            workers=workers,
            resample_labels=resample_labels,
            progress=progress,
        )
    rows = [(("* " if p.recommended else "  ") + p.name, _by(p.window), p.training.batch_size, p.memory.training) for p in plans]
    table(f"Plans of {plans[0].data.name} in {out}", ("configuration", "window", "batch", "training GiB"), rows)
    best = next(p for p in plans if p.recommended)
    file = shown(out / f"{best.name}.json")
    say(f"* recommended: {best.name}. {best.reasons['recommended']}")
    say(f"Next: medseg explain {file}, or medseg train {file} --time 20m -o RUN")
    answer([p.model_dump(mode="json") for p in plans])


def explain(plan: PlanFile) -> None:
    """Print every decision of a plan with its reason and the evidence from the fingerprint."""
    from medseg import workflow

    decisions = workflow.explain(plan)
    paragraphs([(f"{d.field} = {d.value}", d.reason) for d in decisions])
    answer([d.model_dump(mode="json") for d in decisions])


def preprocess(plan: PlanFile, workers: Workers = None) -> None:
    """Prepare every case for training: crop, resample, normalise. Goes on where it was interrupted."""
    from medseg import workflow

    with Bars() as progress:
        store = workflow.preprocess(plan, workers=workers, progress=progress)
    ok(f"{len(store.ids())} prepared cases in {store.folder}")
    answer({"cases": len(store.ids()), "folder": str(store.folder)})


def tasks() -> None:
    """List the tasks, domains, networks and dataset layouts that are installed, plug-ins included."""
    from medseg import registry

    rows: list[tuple[str, str, str]] = []
    for family in (registry.tasks, registry.domains, registry.networks, registry.layouts):
        for name, found in family.items():
            rows.append((family.family, name, getattr(found, "summary", None) or _first_line(found)))
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
