"""Verbs about models of other programs: import, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from medseg.commands.console import answer, ok, say, shown
from medseg.commands.options import RunPath, out_option, parse_folds
from medseg.errors import UsageError

FORMATS = ("nnunet",)


def import_model(
    program: Annotated[str, typer.Argument(metavar="FORMAT", help="Program that trained the model: nnunet.")],
    folder: Annotated[Path, typer.Argument(help="Its model folder, e.g. nnUNetTrainer__nnUNetPlans__3d_fullres.")],
    out: Annotated[Path, out_option("Folder of the model.")],
    folds: Annotated[
        str | None, typer.Option("--folds", "--fold", help="Folds to import, e.g. 0,1; none is nnU-Net's fold_all. Default: all there are.")
    ] = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="final or best.")] = "final",
    previous: Annotated[
        Path | None,
        typer.Option("--previous", help="Of a cascade: model folder of the stage before. Default: beside FOLDER, where nnU-Net puts it."),
    ] = None,
    half: Annotated[
        bool,
        typer.Option(
            "--half", help="Predict in 16 bits where the device is faster with them: about twice as fast, a few border voxels differ."
        ),
    ] = False,
) -> None:
    """Make a model folder out of a trained nnU-Net model; predictions are the same as nnU-Net's."""
    _check_format(program)
    if checkpoint not in ("final", "best"):
        raise UsageError.of("no such checkpoint", where="--checkpoint", found=f"'{checkpoint}'", expected="final or best")
    chosen = parse_folds(folds) if folds is not None else None

    from medseg.interop.nnunet.folder import import_model as convert

    plan, imported = convert(
        folder,
        out,
        folds=None if chosen == "all" else chosen,
        checkpoint=cast('Literal["final", "best"]', checkpoint),
        previous=previous,
        half=half,
    )
    names = ", ".join("all" if fold is None else str(fold) for fold in imported)
    stages = f", with {plan.previous} before it" if plan.previous else ""
    ok(f"imported {plan.name} of {plan.data.name}, fold{'s' if len(imported) > 1 else ''} {names}{stages}; model in {out}")
    say(f"Next: medseg predict {shown(out)} IMAGES -o OUT")
    answer({"model": str(out), "plan": plan.name, "folds": list(imported)})


def export_model(
    run: RunPath,
    out: Annotated[Path, out_option("Folder for the exported model.")],
    program: Annotated[str, typer.Option("--format", help="Program that shall run it: nnunet.")] = "nnunet",
    ending: Annotated[
        str | None, typer.Option("--file-ending", help="Suffix of the images to predict on. Default: .nii.gz for volumes, .png for images.")
    ] = None,
) -> None:
    """Write a model so that nnU-Net runs it, with the same predictions."""
    _check_format(program)

    from medseg.interop.nnunet.folder import export_model as convert

    stages = convert(run, out, ending=ending)
    count = sum(len(stage.folds) for stage in stages)
    ok(f"exported {count} network{'s' if count > 1 else ''} to {out}")
    earlier = ""
    for number, stage in enumerate(stages, 1):
        predictions = "OUT" if number == len(stages) else f"STAGE_{number}"
        command = f"nnUNetv2_predict_from_modelfolder -m {shown(stage.folder)} -f {' '.join(stage.folds)} -i IMAGES -o {predictions}"
        say(f"{'Next' if number == 1 else 'then'}: {command}{earlier}")
        earlier = f" -prev_stage_predictions {predictions}"
    answer({"stages": [{"folder": str(stage.folder), "folds": list(stage.folds)} for stage in stages]})


def _check_format(name: str) -> None:
    if name not in FORMATS:
        raise UsageError.of("no such format", found=f"'{name}'", expected=", ".join(FORMATS))


VERBS: dict[str, Callable[..., None]] = {"import": import_model, "export": export_model}
