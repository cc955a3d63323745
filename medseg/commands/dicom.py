"""Verbs about DICOM: inspect, convert, dicom; and what `predict --dry-run` shows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from medseg.commands.console import Bars, answer, complain, ok, say, shown, style, table, warn
from medseg.commands.options import Classes, RunPath, out_option, parse_classes
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.geometry import Grid
    from medseg.io.dicom.conversion import Pet, Tilt
    from medseg.io.dicom.volume import Scan, Volume

SHOWN = 5  # files with the same fault that are named one by one
DicomPath = Annotated[Path, typer.Argument(help="Folder, DICOM file, zip archive or DICOMDIR.")]
TiltOption = Annotated[str, typer.Option("--tilt", help="CT of a tilted gantry: resample (onto an orthogonal grid) or refuse.")]
PetOption = Annotated[str, typer.Option("--pet", help="PET values: suv (body weight), or raw (as rescaled, e.g. Bq/ml).")]


def inspect(
    path: DicomPath,
    uids: Annotated[bool, typer.Option("--uids", help="Also the UIDs of study and series, which identify a patient.")] = False,
    tilt: TiltOption = "resample",
) -> None:
    """List the series, volumes and annotations in DICOM data: geometry, what is usable and why not. Reads headers only."""
    from medseg.io.dicom.conversion import refusals
    from medseg.io.dicom.naming import case_name

    chosen = _tilt(tilt)
    found = _scanned(path)
    rows = []
    for volume in found.volumes:
        row = [
            "" if volume.series.number is None else volume.series.number,
            volume.key,
            volume.series.modality,
            volume.series.description,
            "x".join(map(str, volume.grid.shape)) + (" colour" if volume.samples == 3 else ""),
            "x".join(f"{v:.3g}" for v in volume.grid.spacing),
            orientation(volume.grid) if volume.spaced else "",
            len(volume.frames),
            len(volume.sources),
            "no" if refusals(volume, chosen) else "yes",
        ]
        rows.append([*row, volume.series.study, volume.series.uid] if uids else row)
    columns = ("series", "key", "modality", "description", "voxels zyx", "mm zyx", "orientation", "times", "files", "usable")
    if rows:
        table(f"Volumes in {path}", (*columns, "study UID", "series UID") if uids else columns, rows)
    if found.annotations:
        table(
            "Annotations",
            ("kind", "of series", "names", "file", "usable"),
            [
                (one.kind, _series_of(one.series, found), ", ".join(one.names), one.source, "no" if one.errors else "yes")
                for one in found.annotations
            ],
        )
    _report(found)
    for volume in found.volumes:
        for problem in refusals(volume, chosen):
            complain(f"{_called(volume)} cannot be used: {problem}")
    if not (found.volumes or found.annotations or found.others):
        raise _nothing(path, found)
    if any(not refusals(volume, chosen) for volume in found.volumes):
        say(f"Next: medseg convert {shown(path)} -o OUT; a volume is an image of the name FOLDER/KEY.series for other verbs")
    answer(
        {
            "volumes": [
                {**_record(volume, uids), "case": case_name(volume, found), "usable": not refusals(volume, chosen)}
                for volume in found.volumes
            ],
            "annotations": [
                {
                    "kind": one.kind,
                    "file": str(one.source),
                    "names": one.names,
                    "of": [volume.key for volume in found.of_series(one.series)],
                    "errors": [str(error) for error in one.errors],
                }
                for one in found.annotations
            ],
            "others": [{"file": str(one.source), "kind": one.kind, "problems": [str(p) for p in one.problems]} for one in found.others],
            "foreign": found.foreign,
            "problems": [str(problem) for problem in found.problems],
        }
    )


def convert(
    path: Annotated[Path, typer.Argument(help="Folder, DICOM file, zip archive or DICOMDIR; with --reference a label map.")],
    out: Annotated[Path, out_option("Folder for NIfTI files; with --reference the DICOM file.")],
    tilt: TiltOption = "resample",
    pet: PetOption = "suv",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="The other way: DICOM images that the label map PATH was drawn on.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--format", help="With --reference: seg (default), labelmap or rtstruct.")] = None,
    classes: Classes = None,
    terms: Annotated[
        Path | None, typer.Option("--terms", help="With --reference: codes and colours of classes, a file like a model's dicom.json.")
    ] = None,
) -> None:
    """Write DICOM volumes, segmentations and structure sets as NIfTI, or a label map as DICOM; says what was left out and why."""
    chosen = _tilt(tilt)
    if pet not in ("suv", "raw"):
        raise UsageError.of("no such unit", where="--pet", found=f"'{pet}'", expected="suv or raw")
    if reference is not None:
        _mask_to_dicom(path, reference, out, kind or "seg", classes, terms, overwrite)
        return
    for option, value in (("--format", kind), ("--class", classes), ("--terms", terms)):
        if value:
            raise UsageError.of("has no meaning without --reference", where=option, expected="a label map and its images")
    _to_nifti(path, out, chosen, cast("Pet", pet), overwrite)


def _mask_to_dicom(
    mask: Path, reference: Path, out: Path, kind: str, classes: list[str] | None, terms: Path | None, overwrite: bool
) -> None:
    from medseg.io.dicom.settings import DicomSettings
    from medseg.io.dicom.writing.masks import write_mask

    if out.exists() and not overwrite:
        raise UsageError.of("exists already", where=str(out), fix="Choose another file, or pass --overwrite.")
    settings = DicomSettings.load(terms) if terms is not None else None
    for warning in write_mask(mask, reference, out, kind, parse_classes(classes) if classes else None, settings):
        warn(str(warning))
    ok(f"written to {out}")
    answer({"written": str(out), "format": kind})


def _to_nifti(path: Path, out: Path, tilt: Tilt, pet: Pet, overwrite: bool) -> None:
    from medseg.io.dicom import conversion

    found = _scanned(path)
    if not found.volumes:
        _report(found)
        raise _nothing(path, found)
    with Bars() as progress:
        done = conversion.convert(found, out, tilt, pet, overwrite, progress)
    rows = [
        (file.name, volume.series.modality, _by(volume.grid.shape), _by(f"{v:.4g}" for v in volume.grid.spacing), len(volume.frames))
        for volume, file in done.written
    ]
    if rows:
        table(f"Written to {out}", ("file", "modality", "voxels zyx", "mm zyx", "times"), rows)
    if done.labels:
        table("Label maps", ("file", "from", "names"), [(file.name, one.kind, ", ".join(one.names)) for one, file in done.labels])
    for volume, _ in done.written:
        for warning in volume.warnings:
            warn(f"{_called(volume)}: {warning}")
    for volume, problems in done.failed:
        for problem in problems:
            complain(f"{_called(volume)}: {problem}")
    for annotation, problems in done.left:
        for problem in problems:
            complain(f"{annotation.kind} {problem}")
    _report(found, warnings=False)
    answer(
        {
            "written": [{"file": str(file), **_record(volume, False)} for volume, file in done.written],
            "labels": [{"file": str(file), "kind": one.kind, "names": one.names} for one, file in done.labels],
            "failed": [{"key": volume.key, "problems": [str(problem) for problem in problems]} for volume, problems in done.failed],
            "left": [{"file": str(one.source), "problems": [str(problem) for problem in problems]} for one, problems in done.left],
            "others": [{"file": str(one.source), "problems": [str(p) for p in one.problems]} for one in found.others],
        }
    )
    if not done.written:
        raise typer.Exit(2)
    ok(f"{len(done.written)} of {len(found.volumes)} volumes written")
    if done.failed or done.left or any(one.problems for one in found.others):
        raise typer.Exit(1)


def _scanned(path: Path) -> Scan:
    from medseg.io.dicom.reading.reader import scan

    with Bars() as progress:
        return scan(path, progress)


def _tilt(text: str) -> Tilt:
    if text not in ("resample", "refuse"):
        raise UsageError.of("no such choice", where="--tilt", found=f"'{text}'", expected="resample or refuse")
    return cast("Tilt", text)


def _nothing(path: Path, found: Scan) -> UsageError:
    what = f"{found.foreign} files that are no DICOM, {len(found.others)} DICOM files without images"
    error = UsageError.of("holds no DICOM image", where=str(path), found=what, expected="DICOM images")
    assert isinstance(error, UsageError)
    return error


def _report(found: Scan, warnings: bool = True) -> None:
    """What is odd or broken beside the volumes."""
    if warnings:
        for volume in found.volumes:
            for warning in volume.warnings:
                warn(f"{_called(volume)}: {warning}")
    for problem in found.problems:
        warn(str(problem))
    kinds: dict[str, int] = {}
    alike: dict[str, int] = {}
    for other in found.others:
        for problem in other.problems:
            alike[problem.what] = alike.get(problem.what, 0) + 1
            if alike[problem.what] <= SHOWN:
                complain(str(problem))
        if not other.problems:
            kinds[other.kind or "unknown"] = kinds.get(other.kind or "unknown", 0) + 1
    for what, count in alike.items():
        if count > SHOWN:
            complain(f"{count - SHOWN} more files: {what}; --json names all")
    for annotation in found.annotations:
        for problem in annotation.errors:
            complain(str(problem))
    if kinds:
        say("Other DICOM files: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    if found.foreign:
        say(f"{found.foreign} file{'s are' if found.foreign > 1 else ' is'} no DICOM")


def _called(volume: Volume) -> str:
    number = "" if volume.series.number is None else f"{volume.series.number}, "
    return f"series {number}{volume.key}"


def _by(values: Any) -> str:
    return " x ".join(str(value) for value in values)


def _series_of(series: tuple[str, ...], found: Scan) -> str:
    numbers = {volume.series.number for volume in found.of_series(series)}
    return ", ".join("unnumbered" if number is None else str(number) for number in numbers) or "not among these files"


def orientation(grid: Grid) -> str:
    """`axial`, `oblique sagittal`, ... after the normal of the slices, and where axes of the array (slices, rows, columns) point: `SPL`."""
    if grid.ndim == 2:
        return ""
    letters = ""
    for axis in range(3):
        direction = grid.direction[:, axis]
        world = max(range(3), key=lambda i: abs(direction[i]))
        letters += ("LPS" if direction[world] > 0 else "RAI")[world]
    normal = abs(grid.direction[:, 0])
    plane = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    return f"{'' if normal.max() > 0.999 else 'oblique '}{plane} {letters}"


def _record(volume: Volume, uids: bool) -> dict[str, Any]:
    series = volume.series
    told = {
        "image": str(volume.path),
        "key": volume.key,
        "series": series.number,
        "modality": series.modality,
        "description": series.description,
        "shape": volume.grid.shape,
        "spacing": volume.grid.spacing,
        "orientation": orientation(volume.grid) if volume.spaced else "",
        "times": volume.times,
        "samples": volume.samples,
        "dtype": volume.dtype,
        "files": len(volume.sources),
        "tilted": volume.tilted is not None,
        "warnings": [str(warning) for warning in volume.warnings],
        "errors": [str(error) for error in volume.errors],
    }
    return {**told, "study_uid": series.study, "series_uid": series.uid} if uids else told


def dicom(
    run: RunPath,
    out: Annotated[Path | None, out_option("File for the JSON; as RUN/dicom.json, edited or not, it decides. Default: the screen.")] = None,
) -> None:
    """How a model meets DICOM: the rules by which series serve as channels, and the terms of its classes, as JSON."""
    from medseg import answers

    settings = answers.dicom(run)
    if style.json or out is None:
        sys.stdout.write(settings.to_json())
    if out is None:
        return
    if out.exists():
        raise UsageError.of("exists already", where=str(out), fix="Edit it, or choose another file with -o.")
    settings.save(out)
    ok(f"rules and terms in {out}")


def show_choice(run: Path, inputs: Sequence[Path], series: list[str]) -> None:
    """What `predict` would make of its inputs; ends the verb where that is nothing."""
    from medseg import answers
    from medseg.io.dicom.choice import shown as line

    with Bars() as progress:
        chosen = answers.choice(run, inputs, series, progress=progress)
    if chosen.files:
        table("Images", ("case", "files"), [(case.id, ", ".join(path.name for path in case.images)) for case in chosen.files])
    for study in chosen.studies.studies if chosen.studies is not None else ():
        table(
            f"Study in {study.folder}",
            ("series (modality, voxels zyx, key)", ""),
            [(line(volume), study.told(volume)) for volume in study.volumes],
        )
    for warning in chosen.warnings():
        warn(warning)
    cases = chosen.cases()
    answer({"cases": [case.model_dump(mode="json") for case in cases]})
    ok(f"{len(cases)} case{'s' if len(cases) != 1 else ''} would be predicted: {', '.join(case.id for case in cases)}")


NEED_ARGUMENTS = (inspect, convert, dicom)
