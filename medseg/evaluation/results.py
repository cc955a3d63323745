"""Predictions in one COCO file, brought into the form in which medseg itself writes predictions, so that they are scored like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Labels
from medseg.errors import DatasetError, ImageError, Problem
from medseg.evaluation.pairing import References
from medseg.imaging.painting import paint_objects
from medseg.io.coco.annotations import Check, Picture, read_annotations, shown
from medseg.io.coco.labels import SUFFIX, image_id
from medseg.io.coco.results import Results, detections, read_results
from medseg.io.detections import Detection, detections_path, write_detections
from medseg.io.format import numbers
from medseg.io.images import read_header, write_label
from medseg.prediction import SURE, FoundObjects

CONFIDENCE = 0.5
"""Of an object that is painted: what panoptic feature pyramid networks show (Kirillov et al. 2019, arXiv:1901.02446)."""
SHOWN = 4  # names of classes in errors


def unpack(file: Path, references: References, labels: Labels, confidence: float, folder: Path) -> tuple[tuple[str, ...], int]:
    """Write label maps and detections of the cases of a file into `folder`; the ids of cases that it should hold, and how many results are left out.

    Every image has all its detections. Label maps hold those of at least this confidence, painted one over another as those of a model
    (`paint_objects`). Of a list of results the cases are all those of the files whose images it names, as in `pycocotools`; of a whole file
    those that it lists, which should be all. Left out are results of categories that the references list, but have no object of: no score knows of these.

    Args:
        references: what the predictions are compared with.
        labels: the classes, some of which are things.

    Raises:
        DatasetError: the file cannot be read, or does not belong to these references; all problems at once.
    """
    if not labels.things:
        raise DatasetError.of(
            "no class of the references has objects",
            where=references.title,
            found=shown(labels.names),
            fix="Say which: --objects, or --run.",
        )
    results = read_results(file)
    if results.images is None:
        cases, classes = _by_ids(results, references, labels)
    else:
        cases, classes = _by_names(results, references, labels)
    pictures, problems = _pictures(cases, references)
    check = Check(file)
    told = {
        "image": "ids of the COCO file that annotates the images" if results.images is None else "ids listed in 'images'",
        "category": f"one of {', '.join(map(str, list(classes)[:SHOWN]))}"
        + (f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""),
    }
    found = detections(results, pictures, classes, check, told)
    problems += check.problems
    if problems:
        raise DatasetError(problems)
    small = max(labels.values) < 2**8
    for identity, case in cases.items():
        codes = _painted(found[identity], labels, pictures[identity].shape, confidence, f"case '{case}'")
        write_label(folder / f"{case}{'.png' if small else '.tif'}", codes, like=references.labels[case], colours=small)
        write_detections(detections_path(folder, case), found[identity], labels, pictures[identity].shape)
    expected = cases.values() if results.images is None else references.labels
    return tuple(expected), sum(classes[one["category_id"]] is None for one in results.entries)


def _by_ids(results: Results, references: References, labels: Labels) -> tuple[dict[int, str], dict[int, int | None]]:
    """Image id -> case, and category id -> index of the class, of a list of results."""
    files = _files(references)
    if not files:
        raise DatasetError.of(
            "a list of results names images and categories by ids, which the references do not have",
            where=str(results.path),
            found=f"references that are no COCO dataset ({references.title})",
            expected="a folder with the COCO file of the annotations",
            fix="Pass that, or write the predictions as a COCO file with 'images' and 'categories'.",
        )
    ids = results.ids
    chosen = [path for path, of in files.items() if ids <= of.keys()]
    chosen = chosen or [path for path, of in files.items() if ids & of.keys()] or list(files)
    owners = [identity for path in chosen for identity in files[path]]
    if len(set(owners)) < len(owners):
        raise DatasetError.of(
            "several COCO files of the references have images of these ids",
            where=str(results.path),
            found=", ".join(path.name for path in chosen),
            fix="Write the predictions as a COCO file with 'images' and 'categories', which names images by their files.",
        )
    cases = {identity: case for path in chosen for identity, case in files[path].items()}
    values = read_annotations(next(iter(files))).values
    index = {value: k for k, one in enumerate(labels.classes) if one.name in labels.things for value in one.values}
    return cases, {category: index.get(value) for category, value in values.items()}


def _files(references: References) -> dict[Path, dict[int, str]]:
    """The COCO files that annotate the references: image id -> case."""
    files: dict[Path, dict[int, str]] = {}
    for case, label in references.labels.items():
        if label.name.endswith(SUFFIX):
            files.setdefault(label.parent, {})[image_id(label)] = case
    return files


def _by_names(results: Results, references: References, labels: Labels) -> tuple[dict[int, str], dict[int, int | None]]:
    """The same of a file that names images and categories; what has another name is not among them."""
    assert results.images is not None
    assert results.categories is not None
    owners: dict[str, set[str]] = {}
    for case in references.labels:
        images = references.files[case].images if case in references.files else ()
        for name in {case, *(path.name for path in images), *("/".join(path.parts[-2:]) for path in images)}:
            owners.setdefault(name, set()).add(case)
    cases: dict[int, str] = {}
    strange = []
    for identity, name in results.images.items():
        path = PurePosixPath(name.replace("\\", "/"))
        tries = ("/".join(path.parts[-2:]), path.name, path.stem)
        of = next((owners[key] for key in tries if key in owners), set())
        if len(of) == 1 and not of & set(cases.values()):
            cases[identity] = next(iter(of))
        else:
            strange.append(f"'{name}'")
    index = {name: k for k, name in enumerate(labels.names) if name in labels.things}
    listed = {*labels.names, *(one.name for path in _files(references) for one in read_annotations(path).categories.values())}
    unknown = [f"'{name}'" for name in results.categories.values() if name not in listed]
    check = Check(results.path)
    for name in strange:
        check.add("lists images that are none of the references, or not one alone", name, "file names as in the references")
    for name in unknown:
        check.add("has categories that are no classes of the references", name, ", ".join(labels.names))
    if check.problems:
        raise DatasetError(check.problems)
    return cases, {identity: index.get(name) for identity, name in results.categories.items()}


def _pictures(cases: Mapping[int, str], references: References) -> tuple[dict[int, Picture], list[Problem]]:
    pictures: dict[int, Picture] = {}
    problems: list[Problem] = []
    for identity, case in cases.items():
        try:
            shape = read_header(references.labels[case], label=True).shape
        except ImageError as error:
            problems += error.problems
            continue
        if len(shape) != 2:
            problems.append(Problem("a volume has no COCO predictions", str(references.labels[case]), numbers(shape), "an image in 2D"))
            continue
        pictures[identity] = Picture(identity, case, (shape[0], shape[1]))
    return pictures, problems


def _painted(found: Sequence[Detection], labels: Labels, shape: tuple[int, int], confidence: float, where: str) -> NDArray[np.int32]:
    """Codes `(height, width)` of what is confident enough."""
    sure = [one for one in found if one.score is not None and one.score >= confidence and one.mask.area]
    corners = [one.mask.box.astype(int) for one in sure]
    masks = [
        one.mask.decode()[top:bottom, left:right].astype(np.uint8) * np.uint8(SURE)
        for one, ((top, left), (bottom, right)) in zip(sure, corners, strict=True)
    ]
    boxes = np.array([box.ravel() for box in corners], np.float64).reshape(-1, 4)
    scores, classes = np.array([one.score for one in sure], np.float32), np.array([one.index + 1 for one in sure], np.int32)
    return paint_objects(FoundObjects(shape, boxes, scores, classes, tuple(masks)), labels.written, where)[0]
