"""What a dataset on disk holds: channels, label classes, cases. Read by a layout (`medseg.io.layouts`), never converted by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medseg.errors import ImageError
from medseg.record import Record


class Modality(StrEnum):
    """What the values of a channel mean; decides normalisation."""

    ct = "ct"  # Hounsfield units
    mr = "mr"  # arbitrary units
    pet = "pet"  # SUV
    rgb = "rgb"  # 0..255 colour
    gray = "gray"  # 0..255 or 0..65535 photograph or microscopy
    other = "other"


class Channel(Record):
    """One input channel, in the order in which the network sees it."""

    name: str = Field(description="For people.")
    modality: Modality = Field(description="What the values mean; decides normalisation.")


class LabelClass(Record):
    """A foreground class: the voxels whose value is one of `values`. Classes that share values are regions."""

    name: str = Field(description="For people, tables and reports.")
    values: tuple[int, ...] = Field(description="Voxel values in label files.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.values:
            raise ValueError(f"class '{self.name}' has no values")
        return self


ObjectForm = Literal["numbers", "components", "codes"]
"""How label files tell objects apart: `numbers`, every value is one object of the only class; `components`, values are classes, and each
connected component of a thing is an object; `codes`, as in memory (`Labels`)."""
NUMBER_BITS = 16
"""Of a code of things: the lower bits number the object, the class's value is above them."""
MOST_OBJECTS = 2**NUMBER_BITS - 1
LARGEST_THING = 2 ** (31 - NUMBER_BITS) - 1  # class value of codes


class Labels(Record):
    """How voxel values in label files map to classes. Value 0 is background.

    Where some classes are things, label maps in memory hold codes: `class value << NUMBER_BITS | number`, int32. Objects of a case are
    numbered from 1 on; number 0 is what has no objects (stuff, background, ignored voxels). All that looks at classes asks `semantic` first.

    Attributes:
        classes: foreground classes in the order of the network's output.
        ignore: value of voxels without annotation; they count in no loss and no score.
        order: for regions only: the value written for each class; later classes overwrite earlier ones (nnU-Net's `regions_class_order`).
        things: names of classes whose voxels are separate objects. Written where there are any.
        objects: how label files tell objects apart (see `ObjectForm`). Written where it is not `codes`.
    """

    seldom: ClassVar[tuple[str, ...]] = ("things", "objects")

    classes: tuple[LabelClass, ...] = Field(min_length=1)
    ignore: int | None = None
    order: tuple[int, ...] | None = None
    things: tuple[str, ...] = ()
    objects: ObjectForm = "codes"

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ValueError(f"two classes have the same name: {names}")
        if 0 in self.values:
            raise ValueError("value 0 is background and cannot belong to a class")
        if self.ignore is not None and self.ignore in self.values:
            owners = ", ".join(f"'{c.name}'" for c in self.classes if self.ignore in c.values)
            raise ValueError(f"the ignore value {self.ignore} also belongs to a class: {owners}")
        if self.order is None and not self.exclusive:
            raise ValueError("overlapping regions need 'order' (regions_class_order) with one written value per class")
        if self.order is not None and (wrong := region_problems(self.classes, self.order, self.ignore)):
            raise ValueError("; ".join(wrong))
        if unknown := sorted(set(self.things) - set(names)):
            raise ValueError(f"things that are no classes: {', '.join(unknown)}; the classes are {', '.join(names)}")
        if self.things and not self.exclusive:
            raise ValueError("classes that overlap (regions) cannot be things")
        known = self.values if self.ignore is None else (*self.values, self.ignore)
        if self.things and not -LARGEST_THING <= min(known) <= max(known) <= LARGEST_THING:
            raise ValueError(
                f"where objects are told apart, values of classes go up to {LARGEST_THING}; found {min(known)} to {max(known)}"
            )
        if self.objects != "codes" and not self.things:
            raise ValueError(f"objects are '{self.objects}', but no class is named in 'things'")
        if self.objects == "numbers" and (len(self.classes) > 1 or len(self.values) > 1):
            raise ValueError(f"where every value is one object, there is one class with one value; found {names}")
        return self

    @property
    def exclusive(self) -> bool:
        """True when no two classes share a value, so that a voxel has exactly one class; an `order` declares regions all the same."""
        return self.order is None and len(self.values) == sum(len(set(c.values)) for c in self.classes)

    @property
    def values(self) -> tuple[int, ...]:
        """Every foreground value, sorted, without the ignore value."""
        return tuple(sorted({v for c in self.classes for v in c.values}))

    @property
    def written(self) -> tuple[int, ...]:
        """The value a prediction writes for each class."""
        return self.order if self.order is not None else tuple(c.values[0] for c in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in output order."""
        return tuple(c.name for c in self.classes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of label maps in memory: int16, or int32 for codes."""
        return np.dtype(np.int32 if self.things else np.int16)

    @property
    def given(self) -> ObjectForm:
        """How predictions are written: `numbers` where there is one class, else `codes`."""
        return "numbers" if len(self.values) == 1 else "codes"

    def semantic(self, array: Any) -> Any:
        """The class values of a label map in memory (an integer array or tensor); the map itself where there are no things."""
        return array >> NUMBER_BITS if self.things else array

    def numbers(self, array: Any) -> Any:
        """The number of each voxel's object, 0 where there is none; only where there are things."""
        return array - (self.semantic(array) << NUMBER_BITS)  # unlike a mask, right for the few bits of an empty map, too

    def as_objects(self, objects: ObjectForm) -> Self:
        """The same classes, all of them things."""
        return type(self)(classes=self.classes, ignore=self.ignore, order=self.order, things=self.names, objects=objects)


def region_problems(classes: Sequence[LabelClass], order: Sequence[int], ignore: int | None) -> list[str]:
    """Why no prediction that is written in this order can show every region; empty for an order that is sound."""
    if len(order) != len(classes):
        told = f"the region order has {len(order)} values for {len(classes)} classes"
        return [f"{told}; the ignore value {ignore} does not belong into it" if ignore in order else told]
    problems = []
    for one, value in zip(classes, order, strict=True):
        if value == ignore:
            problems.append(f"the region order holds the ignore value {value}, for class '{one.name}'")
        elif value not in one.values:
            values = ", ".join(map(str, one.values))
            problems.append(f"the region order writes {value} for class '{one.name}', which has the values {values}")
    for value in sorted({v for v in order if order.count(v) > 1}):
        names = " and ".join(f"'{one.name}'" for one, other in zip(classes, order, strict=True) if other == value)
        problems.append(f"the region order writes {value} for {names}, so a prediction cannot tell them apart")
    if problems:
        return problems
    for one in classes:
        seen = [shown(value, classes, order) for value in one.values]
        if not any(value in one.values for value in seen):
            over = ", ".join(f"'{other.name}'" for other, value in zip(classes, order, strict=True) if value in seen)
            problems.append(
                f"class '{one.name}' can never be seen: {over} comes later in the region order and overwrites all of it; larger regions come first"
            )
    return problems


def shown(value: int, classes: Sequence[LabelClass], order: Sequence[int]) -> int:
    """What a perfect prediction of regions writes for a voxel of some value: that of the last region with it."""
    return next(written for one, written in zip(reversed(classes), reversed(order), strict=True) if value in one.values)


class CaseFiles(Record):
    """The files of one case.

    Attributes:
        id: unique within the dataset; the stem of predictions.
        images: one file per channel, or one file with all channels (4D NIfTI, RGB). The case lies on the grid of the first.
        label: None for cases to predict only.
        group: cases of one patient share it; they are never split between training and validation.
        resample_label: the label lies on another grid in the same world and is brought to the image's when it is read.
        prior: what an earlier stage predicted, on the image's grid; no layout gives it.
    """

    id: str
    images: tuple[Path, ...] = Field(min_length=1)
    label: Path | None = None
    group: str
    resample_label: bool = False
    prior: Path | None = None


class Split(Record):
    """One fold: ids of cases to train on and of cases that the fold's model never sees."""

    train: tuple[str, ...] = Field(min_length=1)
    val: tuple[str, ...]


class Splits(Record):
    """All folds of a cross-validation; `source` is the name of the user's file that decided them, empty where medseg did."""

    folds: tuple[Split, ...]
    source: str = ""


class Dataset(Record):
    """A dataset as it lies on disk; `task` and `domain` are what its layout says that annotations mean and where data lives.

    The first channel is the reference: a case lies on the grid of its first file. `notes` says what was decided in reading, and why.
    `splits` are folds that the user decided; they are not written with the dataset but beside it (`Workspace.splits_file`).
    """

    name: str
    root: Path
    layout: str
    task: str
    domain: str
    ndim: int = Field(ge=2, le=3)
    channels: tuple[Channel, ...] = Field(min_length=1)
    labels: Labels
    cases: tuple[CaseFiles, ...] = Field(min_length=1)
    unlabelled: tuple[CaseFiles, ...] = ()
    licence: str = ""
    notes: tuple[str, ...] = ()
    splits: Splits | None = Field(default=None, exclude=True)

    def case(self, case_id: str) -> CaseFiles:
        """The case with this id. Raises KeyError."""
        return self.by_id[case_id]

    @cached_property
    def by_id(self) -> dict[str, CaseFiles]:
        """Case id -> files."""
        return {c.id: c for c in (*self.unlabelled, *self.cases)}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """See pydantic, which would also copy what is cached of the values that change."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("by_id", None)
        return copied


def file_digest(path: Path) -> str:
    """16 hexadecimal digits of a file's content.

    Raises:
        ImageError: the file does not exist, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except FileNotFoundError:
        raise ImageError.of("the file does not exist", where=str(path), fix="Check the path, or restore the file.") from None
    except OSError as error:
        raise ImageError.of("cannot be read", where=str(path), found=error.strerror or str(error)) from None


def case_digest(case: CaseFiles, of_file: Callable[[Path], str] = file_digest) -> str:
    """16 hexadecimal digits of the content of all files of a case, and of their order; `of_file` gives the digest of one file."""
    files = [*case.images, *(file for file in (case.label, case.prior) if file)]
    return hashlib.blake2b("/".join(of_file(f) for f in files).encode(), digest_size=8).hexdigest()
