"""The options and arguments that verbs share, each declared once, and how their texts are read."""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer
from typer.models import OptionInfo

from medseg import registry
from medseg.errors import Problem, UsageError

if TYPE_CHECKING:
    from medseg.dataset import Modality
    from medseg.io.layouts.base import LayoutOptions, Objects

DATASET_HELP = (
    "Folder of a dataset: Medical Segmentation Decathlon, nnU-Net raw, images/ + labels/, case folders, COCO (instances or panoptic JSON), or DICOM "
    "series with SEG or RTSTRUCT."
)
DatasetPath = Annotated[Path, typer.Argument(help=DATASET_HELP)]
PlanFile = Annotated[Path, typer.Argument(help="A plan file, e.g. PLANS/3d.json; `explain` also takes a model folder.")]
RunPath = Annotated[Path, typer.Argument(help="A model: the folder that `medseg run` or `medseg train` wrote.")]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="A class and its label values, e.g. --class polyp=1-20 (repeatable). Default: as the dataset declares."),
]
LabelFolder = Annotated[
    str | None, typer.Option("--labels", help="Name of the label folder (in case folders: of the label files) where a dataset has several.")
]
ModalityOption = Annotated[
    str | None, typer.Option("--modality", help="What the images are: ct, mr, pet, rgb, gray, other. Default: from the dataset.")
]
ReferenceChannel = Annotated[
    str | None,
    typer.Option(
        "--reference", help="In case folders, the channel on whose grid cases are read. Default: that of the label, or the finest."
    ),
]
ObjectsOption = Annotated[
    str | None,
    typer.Option(
        "--objects",
        help="Where labels tell objects apart, how: numbers (each value is an object), components (each connected component of a class is one), "
        "codes (65536 times the class's value, plus a number). Default: as the dataset says; with --task instance it is found out.",
    ),
]
ThingsOption = Annotated[
    list[str] | None,
    typer.Option("--thing", help="A class that has separate objects, where others have none; may be repeated. Default: all classes have."),
]
ResampleLabels = Annotated[
    bool, typer.Option("--resample-labels", help="Resample labels that lie on another grid onto their image's grid.")
]
SplitsFile = Annotated[
    Path | None,
    typer.Option(
        "--splits",
        help="Folds of cross-validation: nnU-Net's splits_final.json, or a splits.json of medseg. Default: the dataset's splits_final.json, "
        "if it has one.",
    ),
]
TaskName = Annotated[
    str | None, typer.Option("--task", help="What the labels mean, see `medseg tasks`. Default: as the dataset's layout says.")
]
Network = Annotated[
    str | None,
    typer.Option(
        "--network",
        help="Network family, or what the task puts on one (of objects: dense, mask-rcnn, yolact), see `medseg tasks`. Default: the task's choice.",
    ),
]
Memory = Annotated[float | None, typer.Option(min=0.1, help="GiB of memory to plan for or to stay within. Default: what the machine has.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Devices = Annotated[int, typer.Option(min=1, help="Number of devices (processes) to train on.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes for work over cases, and for cutting the windows of a GPU. Default: one per core.")
]
Time = Annotated[str | None, typer.Option("--time", help="Length of the training itself, e.g. 20m, 90s, 1h30m.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Length of the training in epochs. Default: the plan's.")]
Patience = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Stop after this many validations without a better Dice, and keep the best weights. They are chosen on the cases that the "
        "report scores, so it is slightly optimistic.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")]
Init = Annotated[
    Path | None,
    typer.Option("--init", help="A model folder (trained, imported or pre-trained): networks begin with its weights, where these fit."),
]
Edit = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        help="Change a value in every configuration that has it, e.g. --edit training.batch_size=4, or in one: --edit '3d.window=[64,64,64]' "
        "(repeatable). Memory is measured again.",
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change a plan value, e.g. --set training.batch_size=4 (repeatable).")]


def out_option(text: str) -> OptionInfo:
    """`-o`: every verb that writes has it, and says what it writes."""
    option: OptionInfo = typer.Option("-o", "--out", help=text)
    return option


def options(
    classes: list[str] | None,
    labels: str | None,
    modality: str | None,
    reference: str | None,
    objects: str | None,
    things: list[str] | None,
) -> LayoutOptions:
    """The dataset options of the command line."""
    from medseg.io.layouts.base import LayoutOptions

    return LayoutOptions(
        classes=parse_classes(classes) if classes else None,
        labels=labels,
        modality=cast("Modality | None", modality),
        reference=reference,
        objects=cast("Objects | None", objects),
        things=tuple(things or ()),
    )


def parse_classes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """`["polyp=1-3,7"]` to `{"polyp": (1, 2, 3, 7)}`."""
    classes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, spec = text.partition("=")
        name, ranges = name.strip(), [_range(part) for part in spec.split(",")]
        if not name or not all(ranges):
            raise UsageError.of(
                "not a class",
                where="--class",
                found=f"'{text}'",
                expected="NAME=VALUES, e.g. polyp=1-20 or edema=2,3",
                fix="Name the class, and give its values one by one or as ranges from low to high.",
            )
        if name in classes:
            raise UsageError.of(
                "a class is given twice",
                where="--class",
                found=f"'{text}' after another '{name}'",
                expected="each name once",
                fix=f"Give all values of a class together, e.g. --class {shlex.quote(f'{name}=1,2')}.",
            )
        classes[name] = tuple(value for one in ranges for value in one)
    return classes


def _range(text: str) -> range:
    """`"3-5"` or `"3"`; empty where the text is no range."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    return range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)


def parse_objects(text: str | None, option: str, auto: bool) -> Objects | None:
    """A form in which labels tell objects apart; `auto`: whether finding out is one."""
    from medseg.io.layouts.base import Objects

    known = [form for form in get_args(Objects) if auto or form != "auto"]
    if text is not None and text not in known:
        raise UsageError.of("unknown form of objects", where=option, found=f"'{text}'", expected=", ".join(known))
    return cast("Objects | None", text)


def parse_time(text: str | None) -> float | None:
    """`"1h30m"` to seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    seconds = sum(float(n or 0) * unit for n, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0.0
    if seconds <= 0:
        raise UsageError.of("not a length of time", where="--time", found=f"'{text}'", expected="for example 20m, 90s or 1h30m")
    return seconds


def parse_edits(texts: list[str] | None, option: str = "--set") -> dict[str, str]:
    """`["training.batch_size=4"]` to a dict."""
    edits: dict[str, str] = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError.of("not an edit", where=option, found=f"'{text}'", expected="FIELD=VALUE, e.g. training.batch_size=4")
        edits[name.strip()] = value
    return edits


def parse_names(texts: list[str] | None) -> tuple[str, ...]:
    """`["2d,3d"]` or `["2d", "3d"]` to names."""
    return tuple(name.strip() for text in texts or [] for name in text.split(",") if name.strip())


def parse_formats(texts: list[str] | None) -> tuple[str, ...]:
    """Names of formats of predictions, each of which there is."""
    names = parse_names(texts)
    known = registry.exports.names()
    problems = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"Did you mean '{near[0]}'?" if near else ""
            problems.append(Problem("unknown format", "--format", f"'{name}'", f"one of {', '.join(known)}", fix))
    if problems:
        raise UsageError(problems)
    return names


def parse_folds(text: str) -> tuple[int | None, ...] | Literal["all"]:
    """`0`, `0,2`, `all` or `none`."""
    if text == "all":
        return "all"
    if text == "none":
        return (None,)
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError.of("not folds", where="--folds", found=f"'{text}'", expected="a number, a list such as 0,1, all or none") from None
