"""What a layout is, and how the one that fits a folder is found."""

from __future__ import annotations

import difflib
import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import ValidationError

from medseg import registry
from medseg.dataset import Channel, Dataset, LabelClass, Labels, Modality
from medseg.errors import DatasetError, Problem, UsageError
from medseg.record import problems_of

Objects = Literal["auto", "numbers", "components", "codes"]


@dataclass(frozen=True)
class LayoutOptions:
    """What a user says about a dataset that its files do not.

    Attributes:
        classes: class name -> label values; replaces what the dataset declares.
        labels: name of the folder of labels (in case folders: of the label file; in DICOM: SEG, RTSTRUCT, or the label or series description of
            the objects), where a layout has several candidates.
        modality: what the values of every channel mean; replaces what names suggest.
        reference: name of the channel on whose grid a case is read, where files are channels by their names.
        objects: how labels tell objects apart (see `Labels`), where that is what they are for; `auto` finds out where nothing is declared.
        things: names of the classes that have objects; empty: all of them, where labels tell objects apart.
    """

    classes: Mapping[str, tuple[int, ...]] | None = None
    labels: str | None = None
    modality: Modality | None = None
    reference: str | None = None
    objects: Objects | None = None
    things: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.objects is not None and self.objects not in get_args(Objects):
            raise UsageError.of(
                "unknown form of objects", where="--objects", found=f"'{self.objects}'", expected=", ".join(get_args(Objects))
            )
        if self.modality is not None and self.modality not in list(Modality):
            raise UsageError.of("unknown modality", where="--modality", found=f"'{self.modality}'", expected=", ".join(Modality))
        if self.modality is not None:
            object.__setattr__(self, "modality", Modality(self.modality))


OBJECT = "object"  # name of the class of things that nobody has named
OF_THINGS = "instance"  # registered task of annotations that tell objects apart
OF_BOTH = "panoptic"  # of those in which other classes have none


class Layout(ABC):
    """One convention of folders, registered in `medseg.layouts`. Layouts list files; whether these are sound is for `verify` to say."""

    name: ClassVar[str]
    task: ClassVar[str]
    """What the annotations of this layout mean, unless the user says otherwise: a registered task."""
    domain: ClassVar[str]
    """Where its data lives: a registered domain."""
    looks_for: ClassVar[str]
    """What a folder must hold to be of this layout; shown when none is detected."""

    @abstractmethod
    def detect(self, root: Path) -> bool:
        """Whether the folder is of this layout. Raises DatasetError for a description file that cannot be parsed."""

    @abstractmethod
    def read(self, root: Path, options: LayoutOptions) -> Dataset:
        """The dataset. Raises DatasetError with all problems found."""


def open_dataset(path: Path, options: LayoutOptions | None = None) -> Dataset:
    """Read a dataset folder (or its `dataset.json`) by the one layout that detects it.

    Raises:
        DatasetError: no layout fits, several do, or the one that fits finds problems.
        UsageError: the classes in `options` cannot be classes.
    """
    root = Path(path).resolve()
    if root.is_file() and root.suffix == ".json":
        root = root.parent
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "no such folder"
        raise DatasetError.of(what, where=str(path), fix="Pass the folder that holds the images and labels.")
    layouts = [(name, kind()) for name, kind in registry.layouts.items()]
    fitting = [(name, layout) for name, layout in layouts if layout.detect(root)]
    if len(fitting) == 1:
        dataset = fitting[0][1].read(root, options or LayoutOptions())
        assert isinstance(dataset, Dataset)
        return dataset
    wanted = "; ".join(f"{name}: {layout.looks_for}" for name, layout in (fitting or layouts))
    if fitting:
        raise DatasetError.of(
            "several layouts fit this folder",
            where=str(root),
            found=wanted,
            expected="one",
            fix="Remove the description file that does not belong here.",
        )
    inside = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "an empty folder"
    raise DatasetError.of("is no dataset of a known layout", where=str(root), found=inside, expected=wanted)


def is_described(root: Path) -> bool:
    """Whether a `dataset.json` says that a folder is a Decathlon task or an nnU-Net raw dataset. Raises DatasetError as `read_json`."""
    described = read_json(root / "dataset.json")
    return described is not None and ("training" in described or "channel_names" in described)


def read_json(path: Path) -> Mapping[str, Any] | None:
    """A JSON object, or None where there is no such file.

    Raises:
        DatasetError: the file cannot be read, is no JSON, or is no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError.of("cannot be read", where=str(path), found=error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise DatasetError.of(
            "is not valid JSON", where=str(path), found=str(error), fix="Correct the file at this place, or restore it."
        ) from None
    if not isinstance(data, dict):
        raise DatasetError.of("is not a JSON object", where=str(path), found=type(data).__name__, expected="{...}")
    return data


def make_labels(
    options: LayoutOptions,
    classes: Mapping[str, tuple[int, ...]],
    where: Path,
    ignore: int | None = None,
    order: tuple[int, ...] | None = None,
) -> Labels:
    """The label description, `options.classes` before what the dataset declares.

    Classes that share values are regions and need `order`; several values without overlap make one class that is written as its first.

    Raises:
        UsageError: `options.classes` cannot be classes.
        DatasetError: what the dataset declares, in `where`, cannot.
    """
    chosen = {name: tuple(values) for name, values in (options.classes or classes).items()}
    if options.classes is not None:
        order = None
    objects = options.objects
    if objects == "auto":  # classes are declared, so it is their components that are objects; regions that overlap have none
        objects = "components" if order is None else None
    if objects is None and options.things:
        objects = "components"
    if objects == "numbers":
        chosen = {one_class(chosen, where): (1,)}
    if options.things and (unknown := sorted(set(options.things) - set(chosen))):
        raise UsageError([_no_such_class(name, chosen, objects) for name in unknown])
    things = options.things or tuple(chosen)
    told: dict[str, Any] = {"things": tuple(name for name in chosen if name in things), "objects": objects} if objects else {}
    try:
        return Labels(classes=tuple(LabelClass(name=n, values=v) for n, v in chosen.items()), ignore=ignore, order=order, **told)
    except ValidationError as error:
        if not options.classes:
            raise DatasetError(problems_of(Labels, error, f"{where}, labels")) from None
        given = (f"{n}={','.join(map(str, v[:8]))}{',...' if len(v) > 8 else ''}" for n, v in chosen.items())
        raise UsageError.of(
            problems_of(Labels, error, "")[0].what,
            where="--class",
            found=" ".join(given),
            expected="values above 0, each of one class only and not the ignore value",
            fix="Give each class values of its own; only a dataset can declare regions that overlap.",
        ) from None


def _no_such_class(name: str, known: Mapping[str, tuple[int, ...]], objects: Objects | None) -> Problem:
    near = difflib.get_close_matches(name, known, n=1)
    values = ",".join(map(str, next(iter(known.values())))) if len(known) == 1 else "VALUES"
    fix = (
        f"Did you mean '{near[0]}'?"
        if near
        else f"--class {shlex.quote(f'{name}={values}')}{' --objects numbers' if objects == 'numbers' else ''} names it."
    )
    return Problem("no such class", "--thing", f"'{name}'", f"one of {', '.join(known)}", fix)


def one_class(classes: Mapping[str, tuple[int, ...]], where: Path) -> str:
    """The name of the only class, `object` where none is declared.

    Raises:
        DatasetError: several are declared, or one of several values: values that number objects say nothing of their class.
    """
    if len(classes) > 1:
        raise DatasetError.of(
            "values that number objects cannot tell classes apart",
            where=str(where),
            found=f"classes {', '.join(classes)}",
            expected="one class",
            fix="Name one class, e.g. --class nucleus=1, or pass --objects components where values are classes.",
        )
    for name, values in classes.items():
        if len(values) > 1:
            raise DatasetError.of(
                "values that number objects cannot be chosen: each of them is an object",
                where=str(where),
                found=f"class '{name}' of {len(values)} values from {min(values)} to {max(values)}",
                expected="one value, which only names the class",
                fix=f"Set values that are no '{name}' to 0 in the label files and pass --class {shlex.quote(f'{name}=1')}, or pass --objects components "
                "where values are classes.",
            )
    return next(iter(classes), OBJECT)


def make_dataset(where: Path, **fields: Any) -> Dataset:
    """The validated record; pydantic's errors as a DatasetError. Where classes are things, its task is theirs."""
    labels: Labels = fields["labels"]
    if labels.things:
        fields["task"] = OF_THINGS if len(labels.things) == len(labels.classes) else OF_BOTH
    try:
        return Dataset(**fields)
    except ValidationError as error:
        raise DatasetError(problems_of(Dataset, error, str(where))) from None


def require(data: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: Path, problems: list[Problem]) -> Any:
    """`data[key]` if it has the type, else None and a problem."""
    value = data.get(key)
    if isinstance(value, kind):
        return value
    kinds = " or ".join(
        "an object" if k is dict else "a list" if k is list else "text" for k in (kind if isinstance(kind, tuple) else (kind,))
    )
    found = "nothing" if key not in data else type(value).__name__
    problems.append(Problem(f"'{key}' is missing or of the wrong type", str(where), found, kinds))
    return None


def refuse_reference(name: str | None, where: Path) -> None:
    """For layouts that number their channels: a trained model expects the files in the order of their numbers.

    Raises:
        DatasetError: another reference channel was asked for.
    """
    if name is not None:
        raise DatasetError.of(
            "a reference channel has no meaning here: channels are numbered, and the first one's grid is that of the case",
            where=str(where),
            found=f"'{name}'",
            fix="Leave out --reference, or number the files and channels in another order.",
        )


WORDS = {
    Modality.ct: {"ct", "cbct", "hu"},
    Modality.pet: {"pet", "suv", "fdg"},
    Modality.rgb: {"rgb", "red", "green", "blue", "r", "g", "b"},
    Modality.mr: {
        "mr", "mri", "t1", "t1w", "t1gd", "t1c", "t1ce", "t1post", "t2", "t2w", "t2star", "flair", "adc", "dwi", "hbv", "pd", "pdw", "swi",
        "bold", "mra", "dce", "stir", "asl",
    },
    Modality.gray: {"gray", "grey", "grayscale", "greyscale", "xray", "us", "ultrasound", "microscopy", "em", "oct"},
}  # fmt: skip


def modality_of(name: str, fallback: Modality = Modality.other) -> Modality:
    """What a channel's name says of its values, for example `FLAIR` -> mr, `CT` -> ct."""
    words = set("".join(c if c.isalnum() else " " for c in name.lower()).split())
    return next((modality for modality, known in WORDS.items() if words & known), fallback)


def make_channels(names: tuple[str, ...], options: LayoutOptions, fallback: Modality = Modality.other) -> tuple[Channel, ...]:
    """Channels by name; `options.modality` before what the names say."""
    return tuple(Channel(name=name, modality=options.modality or modality_of(name, fallback)) for name in names)
