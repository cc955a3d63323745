"""Label maps of other formats as DICOM objects on the images that they were drawn on."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from itertools import permutations
from pathlib import Path

import numpy as np

from medseg.dataset import CaseFiles, LabelClass, Labels
from medseg.errors import ImageError, Problem, UsageError
from medseg.geometry import Array, Grid, Reorient
from medseg.io.dicom.reading.reader import scan
from medseg.io.dicom.settings import DicomSettings
from medseg.io.dicom.volume import Volume
from medseg.io.dicom.writing.origin import array_digest
from medseg.io.exports import Maker, Result, find_export
from medseg.io.format import numbers
from medseg.io.grids import tolerance
from medseg.io.images import read_label
from medseg.prediction import Prediction
from medseg.record import write_atomic


def write_mask(
    mask: Path,
    reference: Path,
    out: Path,
    kind: str = "seg",
    classes: Mapping[str, tuple[int, ...]] | None = None,
    settings: DicomSettings | None = None,
) -> tuple[Problem, ...]:
    """Write a label map as a DICOM object that refers to the images it was drawn on.

    Args:
        mask: in any format that medseg reads; it lies on the voxels of the images, whatever the order and direction of its axes.
        reference: folder, file, zip archive or DICOMDIR with the images; of several volumes in it, the one that the mask lies on is taken.
        out: the file.
        kind: name of an export that writes one file: seg, labelmap, rtstruct.
        classes: name -> values; by default each value is a class, `label 1` and so on.
        settings: codes and colours of classes.

    Returns:
        what was written less well than one may expect.

    Raises:
        UsageError: the kind writes several files, or classes do not fit the values.
        ImageError: the mask or the images cannot be read, or the mask lies on none of them.
    """
    export = find_export(kind)
    image = read_label(mask)
    labels, values = _labels(mask, image.array[0], classes)
    volume, array = _placed(mask, image.array[0], image.grid, image.native.spaced, reference)
    files = CaseFiles(id="mask", images=(volume.path,), group="mask")
    targets = export.targets(files, False)
    if len(targets) != 1:
        raise UsageError.of("writes several files", where="--format", found=f"'{kind}'", expected="a format of one file, such as seg")
    if problems := export.problems(files):
        raise ImageError(problems)
    maker = Maker("medseg convert", version("medseg"), array_digest(values), settings or DicomSettings(), automatic=False)
    result = Result(files, Prediction("mask", array), volume.grid, labels, maker)
    warnings = export.warnings(files, labels, maker)
    with tempfile.TemporaryDirectory() as folder:
        export.write(result, Path(folder))
        content = (Path(folder) / targets[0]).read_bytes()
    write_atomic(out, lambda temporary: temporary.write_bytes(content))
    return warnings


def _labels(mask: Path, array: Array, classes: Mapping[str, tuple[int, ...]] | None) -> tuple[Labels, Array]:
    """The classes, and the values that occur."""
    values = np.unique(array)
    present = [int(value) for value in values if value]
    if present and min(present) < 0:
        raise ImageError.of("a label map holds negative values", where=str(mask), found=str(min(present)), expected="0 and above")
    if classes is None:
        if not present:
            raise UsageError.of(
                "holds no label, so it does not say which classes there are", where=str(mask), fix="Name them: --class liver=1"
            )
        return Labels(classes=tuple(LabelClass(name=f"label {value}", values=(value,)) for value in present)), values
    named = {value for group in classes.values() for value in group}
    if strange := [value for value in present if value not in named]:
        raise UsageError.of(
            "holds values that belong to no class",
            where=str(mask),
            found=", ".join(map(str, strange[:8])),
            expected="values that --class names",
            fix=f"Name them, for example --class liver={strange[0]}.",
        )
    shared = len(named) < sum(len(set(group)) for group in classes.values())
    order = tuple(group[0] for group in classes.values()) if shared else None
    given = {"classes": [{"name": name, "values": group} for name, group in classes.items()], "order": order}
    return Labels.parse(given, "--class"), values


def _placed(mask: Path, array: Array, grid: Grid, spaced: bool, reference: Path) -> tuple[Volume, Array]:
    """The volume that the mask lies on, and the mask on its grid."""
    volumes = scan(reference).volumes
    fitting = [
        (volume, step) for volume in volumes if not volume.errors and (step := same_voxels(grid, volume.grid, spaced and volume.spaced))
    ]
    if len(fitting) == 1:
        volume, step = fitting[0]
        return volume, np.ascontiguousarray(step.apply(array))
    if fitting:
        raise UsageError.of(
            "several volumes lie on the voxels of the mask",
            where=str(reference),
            found=", ".join(f"{volume.key} ({volume.series.modality}, series {volume.series.number})" for volume, _ in fitting),
            expected="one",
            fix="Give the folder of the one series that it was drawn on.",
        )
    usable = [volume for volume in volumes if not volume.errors]
    raise ImageError.of(
        "lies on the voxels of none of the images",
        where=str(mask),
        found=f"{numbers(grid.shape)} voxels of {numbers(grid.spacing)} mm from {numbers(grid.origin)}",
        expected="; ".join(
            f"{numbers(v.grid.shape)} voxels of {numbers(v.grid.spacing)} mm from {numbers(v.grid.origin)}" for v in usable[:4]
        )
        or f"a DICOM image in {reference}",
        fix="Resample it onto the images, by nearest neighbour, with the program that wrote it; axes may be swapped and flipped.",
    )


def same_voxels(source: Grid, target: Grid, spaced: bool = True) -> Reorient | None:
    """The step of axes from one grid to another of the same voxels; None where their voxels are not the same.

    Args:
        source: of the array that is brought to the other grid.
        target: the other.
        spaced: whether both say where they lie; if not, shapes must be equal, and axes stay.
    """
    if source.ndim != target.ndim or sorted(source.shape) != sorted(target.shape):
        return None
    if not spaced or source.ndim == 2:
        axes = tuple(range(source.ndim))
        return Reorient(axes=axes, flips=(False,) * source.ndim) if source.shape == target.shape else None
    along = source.direction.T @ target.direction
    axes = max(permutations(range(3)), key=lambda order: sum(abs(along[old, new]) for new, old in enumerate(order)))
    step = Reorient(axes=axes, flips=tuple(bool(along[old, new] < 0) for new, old in enumerate(axes)))
    moved = step.grid(source)
    return step if moved.shape == target.shape and moved.distance(target) <= tolerance(target) else None
