"""`medseg.json`: what folders of images and labels cannot say of themselves, and what is taken for granted where it says nothing.

Classes that nobody declares are the values found in the labels; one value alone (0/1 or 0/255 masks) is the class `foreground`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

from medseg.dataset import Channel, Labels, Modality, ObjectForm
from medseg.errors import DatasetError, PlanError
from medseg.io.layouts.base import OBJECT, LayoutOptions, make_channels, make_labels, read_json
from medseg.io.layouts.numbering import form_of, values_of
from medseg.record import Record

NAME = "medseg.json"
PHOTOGRAPHS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MANY = 256  # more values than this are no classes but instances, or an image
EYE = re.compile(r"^(?P<patient>.*[0-9_-])(?P<side>[LR])$")


class Descriptor(Record):
    """The content of `medseg.json`.

    Attributes:
        channels: names, or names with modalities, in order. In case folders the names are roles of files: those to use, the first being
            the reference.
        classes: class name -> label values.
        order: for regions that overlap, the value written for each class.
        objects: where labels tell objects apart, how (see `Labels`): `numbers`, every value is an object of the only class; `components`,
            every connected component of a class is one; `codes`, 65536 times the class's value plus the object's number.
        things: names of the classes that have objects, where not all have; what `objects` says is about these.
        labels: name of the folder of labels; in case folders, of the label file.
        groups: regular expression whose first group, matched from the start of a case id, names the patient.
        reference: in case folders and DICOM, the channel on whose grid cases are read.
        regions: in DICOM, class name -> regular expressions, one of which must match the whole name of an annotated region, whatever its
            capital letters, spaces, `_` and `-`; the classes have the values 1, 2, ... in this order.
        ignore_regions: in DICOM, regular expressions for the names of regions that belong to no class.
        overlap: in DICOM, whether regions of different classes may overlap: `refuse`, or the `later` class lies on top.
    """

    name: str = ""
    licence: str = ""
    channels: tuple[str | Channel, ...] | None = None
    classes: dict[str, tuple[int, ...]] | None = None
    ignore: int | None = None
    order: tuple[int, ...] | None = None
    objects: ObjectForm | None = None
    things: tuple[str, ...] = ()
    labels: str | None = None
    groups: str | None = None
    reference: str | None = None
    regions: dict[str, tuple[str, ...]] | None = None
    ignore_regions: tuple[str, ...] = ()
    overlap: Literal["refuse", "later"] = "refuse"


def read_descriptor(root: Path) -> Descriptor:
    """The descriptor of a folder, an empty one where there is none. Raises DatasetError for one that does not validate."""
    data = read_json(root / NAME)
    if data is None:
        return Descriptor()
    try:
        return Descriptor.parse(data, str(root / NAME))
    except PlanError as error:
        raise DatasetError(error.problems) from None


def groups_of(root: Path, cases: Sequence[str], pattern: str | None) -> dict[str, str]:
    """The patient of each case: by the descriptor's expression; else both sides (`01L`, `01R`) of a patient belong together.

    Raises:
        DatasetError: the expression is none, has no group, or does not match every case.
    """
    if pattern is not None:
        where = f"{root / NAME}, field 'groups'"
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise DatasetError.of("is not a regular expression", where=where, found=f"'{pattern}' ({error})") from None
        if expression.groups < 1:
            raise DatasetError.of("has no group in parentheses", where=where, found=f"'{pattern}'", expected="for example '([^_]+)_'")
        matches = {case: expression.match(case) for case in cases}
        missing = [case for case, match in matches.items() if match is None]
        if missing:
            raise DatasetError.of(
                "does not match every case", where=where, found=", ".join(missing[:5]), expected=f"a match of '{pattern}' from the start"
            )
        return {case: str(match[1]) for case, match in matches.items() if match is not None}
    sides = {case: EYE.match(case) for case in cases}
    if not all(sides.values()):
        return {case: case for case in cases}
    return {case: match["patient"].rstrip("_-") for case, match in sides.items() if match is not None}


def channels_in_order(descriptor: Descriptor, options: LayoutOptions, count: int, suffix: str) -> tuple[Channel, ...]:
    """Channels that are known by their order only, `count` of them unless the descriptor names them; `suffix` tells photographs."""
    fallback = Modality.gray if suffix in PHOTOGRAPHS else Modality.other
    if descriptor.channels is not None:
        return declared_channels(descriptor.channels, options, fallback)
    if suffix in PHOTOGRAPHS and count == 3:
        return make_channels(("red", "green", "blue"), options)
    if suffix in PHOTOGRAPHS and count == 1:
        return make_channels(("gray",), options)
    return make_channels(("image",) if count == 1 else tuple(f"channel {i}" for i in range(count)), options, fallback)


def declared_channels(declared: Sequence[str | Channel], options: LayoutOptions, fallback: Modality) -> tuple[Channel, ...]:
    """Channels as a descriptor lists them; `options.modality` before what it says, and what it says before what names suggest."""
    named = make_channels(tuple(c if isinstance(c, str) else c.name for c in declared), options, fallback)
    return tuple(n if isinstance(c, str) or options.modality else c for n, c in zip(named, declared, strict=True))


def classes_of(
    root: Path, descriptor: Descriptor, options: LayoutOptions, files: Sequence[Path], where: Path, fix: str
) -> tuple[Labels, tuple[str, ...]]:
    """The classes that were declared, else one for each value found in the label `files`; and what was decided about objects, and why.

    Args:
        where: what holds the labels, for errors.
        fix: how other labels are chosen.

    Raises:
        DatasetError: the labels hold no foreground, or no classes.
    """
    if descriptor.objects is not None and options.objects in (None, "auto"):
        options = replace(options, objects=descriptor.objects)
    if descriptor.things and not options.things and options.classes is None:
        options = replace(options, things=descriptor.things)
    declared = options.classes is not None or descriptor.classes is not None
    if declared or options.objects == "numbers":
        return make_labels(options, descriptor.classes or {}, root / NAME, descriptor.ignore, descriptor.order), ()
    with ThreadPoolExecutor(4) as pool:
        found = [one - {descriptor.ignore} for one in pool.map(values_of, files)]
    values = sorted({v for one in found for v in one})
    if not values:
        raise DatasetError.of(
            "no label file has any foreground",
            where=str(where),
            found=f"{len(files)} files, all missing, unreadable or 0",
            expected="values above 0",
            fix=fix,
        )
    if options.objects == "auto" and values[0] > 0:
        form, apart, why = form_of(files, found)
        chosen = _each(values) if apart else {OBJECT: (1,) if form == "numbers" else tuple(values)}
        return make_labels(replace(options, objects=form), chosen, root, descriptor.ignore), (why,)
    if len(values) > MANY or values[0] < 0:
        one = f", or as one class --class {OBJECT}=1-{values[-1]}" if values[0] > 0 else ""
        raise DatasetError.of(
            "the labels hold too many values to be classes",
            where=str(where),
            found=f"{len(values)} values from {values[0]} to {values[-1]}",
            expected=f"at most {MANY} classes with positive values",
            fix=f"Where values number objects: --task instance or --objects numbers{one}. Else declare classes in {NAME} or with --class NAME=VALUES.",
        )
    classes = {"foreground": (values[0],)} if len(values) == 1 else _each(values)
    return make_labels(options, classes, root, descriptor.ignore), ()


def _each(values: Sequence[int]) -> dict[str, tuple[int, ...]]:
    return {f"class {v}": (v,) for v in values}
