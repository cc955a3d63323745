"""Which prediction belongs to which reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.dataset import NUMBER_BITS, CaseFiles, Channel, Dataset, LabelClass, Labels, ObjectForm
from medseg.errors import DatasetError, ImageError, Problem, UsageError
from medseg.io.format import Image
from medseg.io.images import SUFFIXES, image_stem, read_annotation, read_label, read_prediction
from medseg.io.layouts import LayoutOptions, open_dataset
from medseg.io.layouts.base import OBJECT, Objects
from medseg.io.layouts.descriptor import MANY
from medseg.io.layouts.numbering import form_of

ALLOWED = 0.1
"""How far corners of prediction and reference may lie apart, in voxels of the finest axis: float32 headers move them a little."""


@dataclass(frozen=True)
class References:
    """What predictions are compared with.

    Attributes:
        labels: case id -> label file.
        files: case id -> files of the case, where a dataset was given; overlays take the images from it.
        classes: the dataset's classes, if it declares any.
        title: name of the dataset or folder.
    """

    labels: Mapping[str, Path]
    files: Mapping[str, CaseFiles]
    classes: Labels | None
    title: str


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference."""

    id: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class Pairs:
    """All pairs; `missing` are references without prediction, `extra` predictions without reference."""

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def find_references(
    source: Path | Dataset,
    channel: str | None = None,
    channels: Sequence[Channel] = (),
    labels: Labels | None = None,
    objects: Objects | None = None,
) -> References:
    """The references in a dataset, in a dataset's folder, or in a folder of label files.

    Args:
        channel: on whose grid the cases of a dataset's folder are read; None: as the layout chooses.
        labels: those of a model; where they name things, the dataset is read as it was.
        channels: those of a model; where the dataset's are the same in another order, its first is taken.
        objects: how the labels of a dataset's folder tell objects apart, where `labels` do not say it.

    Raises:
        UsageError: the folder does not exist, two files have one case id, or label files were asked for a channel.
        DatasetError: the folder holds neither label files nor a dataset.
    """
    if isinstance(source, Path):
        if not source.is_dir():
            raise UsageError.of("no such folder of references", where=str(source), fix="Pass a folder of label files or a dataset.")
        files = image_files(source, "references")
        if files and channel is not None:
            raise UsageError.of("label files have no channels", where="--reference", found=f"'{channel}'", fix="Leave it out.")
        if files:
            return References(files, {}, None, source.name)
        objects = labels.objects if labels is not None and labels.things else objects
        folder, source = source, open_dataset(source, LayoutOptions(reference=channel, objects=objects))
        names, wanted = [c.name for c in source.channels], [c.name for c in channels]
        if channel is None and sorted(names) == sorted(wanted) and names[0] != wanted[0]:
            source = open_dataset(folder, LayoutOptions(reference=wanted[0], objects=objects))
    cases = {case.id: case for case in source.cases if case.label is not None}
    return References({i: c.label for i, c in cases.items() if c.label is not None}, cases, source.labels, source.name)


def image_files(folder: Path, what: str) -> dict[str, Path]:
    """Stem -> file for the images directly in a folder; hidden files are skipped.

    Raises:
        UsageError: two files have the same stem.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
            found.setdefault(image_stem(path), []).append(path)
    twice = [
        Problem(f"two {what} for one case", str(folder), " and ".join(p.name for p in paths), "one", "Remove one of them.")
        for paths in found.values()
        if len(paths) > 1
    ]
    if twice:
        raise UsageError(twice)
    return {stem: paths[0] for stem, paths in found.items()}


def pair(predictions: Path, references: References, cases: Collection[str] | None = None) -> Pairs:
    """Match predictions with references by file stem.

    A reference whose stem goes on after the prediction's stem (`Image_01L_1stHO` for `Image_01L`) matches, too, if it is the only one.

    Args:
        predictions: folder of label maps.
        references: from `find_references`.
        cases: the ids that should be there; None means every reference.

    Raises:
        UsageError: there is no folder of predictions, or nothing matches.
    """
    if not predictions.is_dir():
        raise UsageError.of("no such folder of predictions", where=str(predictions), fix="Pass the folder that `medseg predict` wrote.")
    found = image_files(predictions, "predictions")
    pairs, extra, taken = [], [], set()
    for stem, path in found.items():
        name = _match(stem, references.labels)
        if name is None or (cases is not None and stem not in cases):
            extra.append(stem)
            continue
        pairs.append(Pair(stem, path, references.labels[name]))
        taken.add(name)
    if not pairs:
        raise UsageError.of(
            "no prediction matches a reference by file name",
            where=str(predictions),
            found=_some(found),
            expected=f"names as in the references: {_some(references.labels)}",
            fix="Predictions must be called as their cases; check that both folders belong to the same data.",
        )
    expected = references.labels if cases is None else [name for name in references.labels if name in cases]
    return Pairs(tuple(pairs), tuple(name for name in expected if name not in taken), tuple(extra))


def object_labels(files: Sequence[Path], objects: Objects) -> Labels:
    """The classes of label files that tell objects apart: one for `numbers`, else one for each class value that occurs.

    Raises:
        ImageError: a file cannot be read.
        DatasetError: none holds a foreground voxel, or values that can be none.
    """
    found = [{int(v) for v in np.unique(read_label(path).array)} - {0} for path in files]
    values = sorted({v for one in found for v in one})
    apart = True
    if objects == "auto" and values and values[0] > 0:
        objects, apart, _ = form_of(files, found)
    if objects == "codes":
        values = sorted({v >> NUMBER_BITS for v in values} - {0})
    if not values or values[0] < 0 or (objects == "components" and len(values) > MANY):
        raise DatasetError.of(
            f"the references hold no classes of objects as {objects}",
            where=str(files[0].parent),
            found="nothing but 0" if not values else f"{len(values)} values from {values[0]} to {values[-1]}",
            expected=f"from 1 to {MANY} positive values",
            fix="Say how they tell objects apart: --objects numbers, components or codes.",
        )
    if objects == "numbers" or len(values) == 1 or not apart:
        classes: tuple[LabelClass, ...] = (LabelClass(name=OBJECT, values=(1,) if objects == "numbers" else tuple(values)),)
    else:
        classes = tuple(LabelClass(name=f"value {v}", values=(v,)) for v in values)
    return Labels(classes=classes, things=tuple(c.name for c in classes), objects=objects)


def read_pair(case: Pair, labels: Labels, predicted: ObjectForm | None = None) -> tuple[Image, Image]:
    """Prediction and reference on one grid, as they are in memory (`Labels`).

    `predicted`: how the prediction tells objects apart, where it is not as medseg writes it.

    Raises:
        ImageError: one cannot be read, or their grids differ.
    """
    prediction, truth = read_prediction(case.prediction, labels, predicted), read_annotation(case.reference, labels)
    if prediction.grid.shape != truth.grid.shape:
        raise ImageError.of(
            "prediction and reference have different shapes",
            where=str(case.prediction),
            found=" x ".join(map(str, prediction.grid.shape)),
            expected=f"{' x '.join(map(str, truth.grid.shape))} as in {case.reference}",
            fix="Predict on the image that the reference was drawn on.",
        )
    # A photograph knows no millimetres: where one of the two has no geometry, its shape is all that can be checked.
    if prediction.native.spaced and truth.native.spaced:
        distance, allowed = prediction.grid.distance(truth.grid), ALLOWED * min(truth.grid.spacing)
        if not distance <= allowed:
            raise ImageError.of(
                "prediction and reference lie on different grids",
                where=str(case.prediction),
                found=f"{distance:.3g} mm between far corners",
                expected=f"at most {allowed:.3g} mm from {case.reference}",
                fix="Predict on the image that the reference was drawn on, or resample one of the two.",
            )
    return prediction, truth


def _match(stem: str, names: Collection[str]) -> str | None:
    if stem in names:
        return stem
    longer = [name for name in names if name.startswith(stem) and not name[len(stem)].isalnum()]
    return longer[0] if len(longer) == 1 else None


def _some(names: Collection[str]) -> str:
    if not names:
        return "no image"
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" ... ({len(listed)})" if len(listed) > 3 else "")
