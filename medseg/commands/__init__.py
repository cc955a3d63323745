"""The command line: `medseg VERB ...`. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.core import TyperCommand

from medseg.commands import console, data, dicom, interop, machine, models, pacs, training
from medseg.errors import MedsegError, UsageError

FLAGS = {"--json": "json", "--quiet": "quiet", "-q": "quiet", "--debug": "debug"}
RESUMING = ("run", "plan", "preprocess", "predict")  # the same command finds what it has done before
RESUMING_IF_ASKED = ("train", "pretrain")  # with --resume
INTERRUPTED = 130
EPILOG = "Every verb also takes --json (result for machines on stdout), --quiet and --debug (full traceback), anywhere on the line."


class Verb(TyperCommand):
    """A verb, which says how another names what it calls otherwise."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Refuse `--set` where it is called `--edit`, and the other way round."""
        known = {option for parameter in self.params for option in parameter.opts}
        for option, other in (("--set", "--edit"), ("--edit", "--set")):
            if option not in known and other in known and any(one == option or one.startswith(f"{option}=") for one in args):
                raise UsageError.of(f"`medseg {self.name}` has no such option", where=option, fix=f"Pass {other} FIELD=VALUE.")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="medseg",
    help="Self-configuring segmentation for medical images. Start with `medseg demo`, then `medseg run DATASET -o RUN`.",
    no_args_is_help=True,
    epilog=EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("medseg"))
        raise typer.Exit


for verb in (
    models.demo,
    data.verify,
    data.plan,
    data.explain,
    data.preprocess,
    training.train,
    training.pretrain,
    models.predict,
    models.evaluate,
    models.compare,
    models.select,
    models.run,
    dicom.inspect,
    dicom.convert,
    dicom.dicom,
    training.benchmark,
    machine.doctor,
    data.tasks,
    data.schema,
):
    app.command(
        cls=Verb,
        epilog=EPILOG,
        no_args_is_help=verb in (*data.NEED_ARGUMENTS, *dicom.NEED_ARGUMENTS, *models.NEED_ARGUMENTS, *training.NEED_ARGUMENTS),
    )(verb)
for word, named in (interop.VERBS | pacs.VERBS).items():
    app.command(word, epilog=EPILOG, no_args_is_help=True)(named)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 some cases failed, 2 wrong input or usage, 130 interrupted."""
    # Idle OpenMP threads sleep instead of spinning: with other work on the machine, spinning slows a training several times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing about a hospital's use leaves it
    arguments = sys.argv[1:]
    limit = arguments.index("--") if "--" in arguments else len(arguments)
    for flag in [a for a in arguments[:limit] if a in FLAGS]:
        setattr(console.style, FLAGS[flag], True)
    kept = [a for a in arguments[:limit] if a not in FLAGS] + arguments[limit:]
    try:
        app(args=kept, prog_name="medseg")
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer says nothing
            console.interrupted(_going_on(kept))
        raise
    except MedsegError as error:
        if console.style.debug:
            raise
        console.fail(error)
        sys.exit(2)


def _going_on(arguments: list[str]) -> str:
    """How the work of an interrupted command is gone on with, where it can be."""
    verb = next((one for one in arguments if not one.startswith("-")), "")
    if verb in RESUMING and "--overwrite" not in arguments:
        return "run the same command again to go on"
    if verb in RESUMING_IF_ASKED:
        return f"run the same command again{'' if '--resume' in arguments else ' with --resume'} to go on"
    return ""
