"""Verbs about models: demo, train, predict, evaluate, compare, select, run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from medseg.commands.console import Bars, answer, complain, ok, say, shown, table, warn
from medseg.commands.dicom import show_choice
from medseg.commands.options import (
    Classes,
    DatasetPath,
    Device,
    Devices,
    Epochs,
    Init,
    LabelFolder,
    Memory,
    ModalityOption,
    Network,
    ObjectsOption,
    Patience,
    ReferenceChannel,
    ResampleLabels,
    RunPath,
    Set,
    SplitsFile,
    TaskName,
    ThingsOption,
    Time,
    Workers,
    options,
    out_option,
    parse_classes,
    parse_edits,
    parse_folds,
    parse_formats,
    parse_names,
    parse_objects,
    parse_time,
)
from medseg.commands.scores import interval, number, show_scores, show_selection
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.dataset import ObjectForm
    from medseg.inference.predictor import Predicted
    from medseg.progress import Progress
    from medseg.serving.remote import Remote
    from medseg.workflow import RunResult


def predict(
    run: RunPath,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Image files or folders of images; DICOM also as zip archive or DICOMDIR, or in a PACS: dicomweb+https://HOST/PATH/studies/UID"
            "\\[/series/UID], dimse://AET@HOST:PORT/STUDY_UID."
        ),
    ],
    out: Annotated[Path | None, out_option("Folder for the predictions.")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Format of the predictions, several repeated or separated by commas, see `medseg tasks`. Default: a DICOM segmentation "
            "(seg) for DICOM, else the format of the image (labels).",
        ),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(
            "--series", help="Which DICOM series serves as a channel, e.g. T1=3 (its number), 'T1=mprage' or DWI=5@b800 (repeatable)."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show what would be predicted: which series serve as which channel, and why others do not."),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write class probabilities; of detectors, confidence times mask.")
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also write one uncertainty per case into predictions.json, from 0 (sure) to 1 (ignorant): mean entropy over "
            "predicted voxels, of their classes; of detectors (mask-rcnn, yolact), of the score of their object. Nothing predicted: null. How sure "
            "each object is: column score of objects.csv.",
        ),
    ] = False,
    mirror: Annotated[bool, typer.Option("--mirror/--no-mirror", help="Test-time mirroring, where the plan allows it.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Predict again, and replace files that medseg did not write (never inputs).")
    ] = False,
    store: Annotated[bool, typer.Option("--store", help="Send DICOM results to the PACS that their study comes from.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Keep what a PACS sends in this folder, and ask only for what is not there. Default: not kept."),
    ] = None,
    authorization: Annotated[
        str | None,
        typer.Option("--authorization-from", help="Name of an environment variable with a token for DICOMweb. Default: the .netrc file."),
    ] = None,
    device: Device = "auto",
    memory: Annotated[
        float | None, typer.Option("--memory", min=0.1, help="GiB of main memory for one case. Default: what the machine has.")
    ] = None,
) -> None:
    """Predict on files, folders or studies in a PACS; writes each prediction on its input's own grid."""
    from medseg import workflow
    from medseg.serving.remote import SCHEME, Remote, authorization_from, folder_for

    if SCHEME.match(run.as_posix()):
        raise UsageError.of("the model comes first, then what to predict on", where="RUN", expected="medseg predict RUN ADDRESS -o OUT")
    wanted = parse_formats(formats)
    remote = Remote(inputs, authorization_from(authorization))
    if store and not remote.archives:
        raise UsageError.of("there is no PACS to send to", where="--store", expected="an input like dicomweb+https://... or dimse://...")
    if out is None and not dry_run:
        raise UsageError.of("no folder for the predictions", where="-o", fix="Name one, or look first with --dry-run.")
    with folder_for(remote, cache) as folder, Bars() as progress:
        paths = remote.fetch(folder, progress)
        if dry_run:
            show_choice(run, paths, series or [])
            return
        assert out is not None
        predicted = workflow.predict(
            run,
            paths,
            out,
            formats=wanted,
            series=series or [],
            probabilities=probabilities,
            uncertainty=uncertainty,
            mirror=mirror,
            overwrite=overwrite,
            device=device,
            memory=memory,
            progress=progress,
        )
        sent = _sent(remote, predicted, out, progress) if store else 0
    done, failed = len(predicted.cases), len(predicted.failures)
    if done:
        ok(
            f"{done} prediction{'s' if done != 1 else ''} in {out}"
            + (f", {predicted.skipped} of them from before" if predicted.skipped else "")
        )
    if uncertainty and done:
        from medseg.inference.ledger import NAME

        say(uncertainties([case.uncertainty for case in predicted.cases], out / NAME))
    if store:
        ok(f"{sent} DICOM object{'s' if sent != 1 else ''} sent")
    for failure in predicted.failures:
        complain(str(failure))
    answer(predicted)
    if failed:
        raise typer.Exit(1 if done else 2)


def uncertainties(found: Sequence[float | None], file: Path) -> str:
    """Where uncertainties of cases are written, and what they range over."""
    known = [value for value in found if value is not None]
    told = f"{min(known):.3f} to {max(known):.3f}" if known else "undefined"
    none = f"; {len(found) - len(known)} of {len(found)} cases without, where nothing was predicted" if len(known) < len(found) else ""
    return f"Uncertainty (0 sure, 1 ignorant): {told}{none}; of each case in {file}"


def _sent(remote: Remote, predicted: Predicted, out: Path, progress: Progress) -> int:
    from medseg.serving.model import dicom_files  # takes longer to import than a small case to predict

    return remote.send(dicom_files(predicted, out), progress)


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of predictions: label maps, with what was found beside them; or a COCO JSON of objects.")
    ],
    reference: Annotated[Path, typer.Argument(help="Folder of reference labels, or a dataset.")],
    out: Annotated[Path, out_option("Folder for the report.")],
    classes: Classes = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The model's folder: adds its explanation and training curves to the report.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the images: adds overlays. Found by itself for a dataset.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Comma-separated, e.g. dice,hd95,nsd@1 (NSD at 1 mm). Default: all.")
    ] = None,
    reference_channel: ReferenceChannel = None,
    objects: ObjectsOption = None,
    predicted_objects: Annotated[
        str | None,
        typer.Option(
            "--predicted-objects",
            help="How predictions of another program tell objects apart, as in --objects. Default: as medseg writes them (numbers for one class, "
            "else codes).",
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence",
            help="Of a COCO JSON, the least score of objects that PQ, accuracy and pictures show; AP is of all. Default: 0.5.",
        ),
    ] = None,
    workers: Workers = None,
) -> None:
    """Score predictions against references: JSON, CSV and one self-contained HTML page."""
    from medseg import workflow

    with Bars() as progress:
        result = workflow.evaluate(
            predictions,
            reference,
            out,
            classes=parse_classes(classes) if classes else None,
            run=run,
            images=images,
            metrics=metrics.split(",") if metrics else None,
            channel=reference_channel,
            objects=parse_objects(objects, "--objects", True),
            predicted=cast("ObjectForm | None", parse_objects(predicted_objects, "--predicted-objects", False)),
            confidence=confidence,
            workers=workers,
            progress=progress,
        )
    show_scores(result, out)
    answer(result)


def compare(
    first: Annotated[Path, typer.Argument(help="A report folder.")],
    second: Annotated[Path, typer.Argument(help="Another report folder, over the same cases.")],
) -> None:
    """Compare two evaluations case by case: paired differences, 95 % bootstrap intervals, Wilcoxon test."""
    from medseg import workflow
    from medseg.evaluation.comparison import ALL

    result = workflow.compare(first, second)
    compared = [d for d in result.differences if d.difference is not None]
    for metric, group in groupby(compared, key=lambda d: d.metric):
        rows = [
            (
                "mean" if d.cls == ALL else d.cls,
                d.n,
                number(d.mean_a),
                number(d.mean_b),
                f"{d.difference:+.4f}",
                interval(d.low, d.high).strip(),
                "" if d.p is None else f"{d.p:.2g}",
            )
            for d in group
        ]
        table(metric, ("class", "n", "first", "second", "change", "95 % interval", "p"), rows)
    say(
        f"First: {first}. Second: {second}. Over n of the {len(result.cases)} cases in both: change is second - first with its bootstrap "
        "interval, p is Wilcoxon's."
    )
    if result.trained_apart:
        apart = result.trained_apart
        warn(
            f"the two models have trained on different cases: {len(apart)} of the compared ones ({', '.join(apart[:3])}"
            f"{' ...' if len(apart) > 3 else ''}) were left out by folds with other training cases, so a change may come from these"
        )
    for name, alone in ((first, result.only_a), (second, result.only_b)):
        if alone:
            warn(f"{len(alone)} cases only in {name}, left out: {', '.join(alone[:5])}{' ...' if len(alone) > 5 else ''}")
    answer(result)


def select(
    runs: Annotated[list[Path], typer.Argument(help="Two model folders or more, each with all folds trained on the same splits.")],
    out: Annotated[Path, out_option("Folder of the model and its report.")],
    plans: Annotated[
        Path | None, typer.Option("--plans", help="Folder of plans of the dataset. Default: where `medseg run` left it.")
    ] = None,
    device: Device = "auto",
    memory: Memory = None,
    workers: Workers = None,
) -> None:
    """Make one model of several: the best, or some together, by their predictions of the cases left out. Run it again to go on."""
    from medseg import workflow

    with Bars() as progress:
        result = workflow.select(runs, out, plans=plans, device=device, memory=memory, workers=workers, progress=progress)
    answer(result)
    show_selection(result.selection)
    show_scores(result.evaluation, result.report)
    say(f"Model: {out}. Next: medseg predict {shown(out)} IMAGES -o OUT")


def run(
    dataset: DatasetPath,
    out: Annotated[Path, out_option("Folder of the model, its workspace and its report.")],
    time: Time = None,
    epochs: Epochs = None,
    patience: Patience = None,
    folds: Annotated[
        str,
        typer.Option(
            "--folds",
            "--fold",
            help="0 (default): train on four fifths, report on the rest; all: cross-validate every configuration and select the best, or "
            "several together; none: every case.",
        ),
    ] = "0",
    configurations: Annotated[
        list[str] | None,
        typer.Option(
            "--configuration",
            help="Configuration to train. Default: the recommended one; with --folds all every one (repeatable, or 2d,3d).",
        ),
    ] = None,
    init: Init = None,
    edits: Set = None,
    task: TaskName = None,
    network: Network = None,
    memory: Memory = None,
    device: Device = "auto",
    devices: Devices = 1,
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
    """Verify, plan, preprocess, train, predict and evaluate. Run it again to go on after an interruption."""
    from medseg import workflow

    with Bars() as progress:
        result = workflow.run(
            dataset,
            out,
            seconds=parse_time(time),
            epochs=epochs,
            patience=patience,
            folds=parse_folds(folds),
            configuration=parse_names(configurations),
            init=init,
            edits=parse_edits(edits),
            task=task,
            network=network,
            memory=memory,
            device=device,
            devices=devices,
            options=options(classes, labels, modality, reference, objects, things),
            workers=workers,
            resample_labels=resample_labels,
            splits=splits,
            progress=progress,
        )
    conclude(result)
    say(f"Model: {out}. Next: medseg predict {shown(out)} IMAGES -o OUT")
    if result.tracking:
        say(f"Training is tracked: mlflow ui --backend-store-uri {shlex.quote(result.tracking)}")


def demo(
    out: Annotated[Path, out_option("Folder for the demo's model and report.")] = Path("medseg-demo"),
    time: Time = "100s",
) -> None:
    """Everything on the shipped real sample (24 hippocampus MR volumes), in a few minutes on 2 cores."""
    from medseg import workflow

    with Bars() as progress:
        result = workflow.demo(out, seconds=parse_time(time), progress=progress)
    conclude(result)
    say("Open the report in a browser. The same on your data: medseg run DATASET -o RUN --time 20m")


def conclude(result: RunResult) -> None:
    """The answer and the scores of a run; one that was interrupted ends the verb."""
    answer(result)
    if result.interrupted:
        say(f"stopped by {result.interrupted}; the same command goes on from there")
        raise typer.Exit(1)
    if result.selection is not None:
        show_selection(result.selection)
    if result.evaluation is not None:
        show_scores(result.evaluation, result.report)


NEED_ARGUMENTS = (predict, evaluate, compare, select, run)
