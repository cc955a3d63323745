"""nnU-Net raw datasets (version 2): `dataset.json` with `channel_names`, `labels`, `file_ending`; `imagesTr/<case>_0000<ending>`.

https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md. A label given as a list is a region, written in
`regions_class_order`; the label named `ignore` marks voxels without annotation. `dataset` (files by case) is read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

from medseg.dataset import CaseFiles, Dataset, LabelClass, region_problems
from medseg.errors import DatasetError, Problem
from medseg.io.images import SUFFIXES
from medseg.io.layouts.base import Layout, LayoutOptions, make_channels, make_dataset, make_labels, read_json, refuse_reference, require
from medseg.io.layouts.files import CHANNEL, channel_gaps, image_files, missing_image, missing_label, usual_header


@final
class NnUNetRaw(Layout):
    """An nnU-Net raw dataset."""

    name: ClassVar[str] = "nnunet"
    task: ClassVar[str] = "semantic"
    domain: ClassVar[str] = "grid"
    looks_for: ClassVar[str] = "dataset.json with 'channel_names' and 'labels', images in imagesTr/<case>_0000<file_ending>"

    def detect(self, root: Path) -> bool:
        """See `Layout.detect`."""
        data = read_json(root / "dataset.json")
        return data is not None and "channel_names" in data

    def read(self, root: Path, options: LayoutOptions) -> Dataset:
        """See `Layout.read`."""
        where = root / "dataset.json"
        refuse_reference(options.reference, where)
        data = read_json(where) or {}
        problems: list[Problem] = []
        if options.labels is not None:
            problems.append(Problem("--labels has no meaning here: labels are in labelsTr", str(where), options.labels))
        names = _channel_names(require(data, "channel_names", dict, where, problems) or {}, where, problems)
        ending = require(data, "file_ending", str, where, problems)
        if ending is not None and ending.lower() not in SUFFIXES:
            problems.append(Problem("'file_ending' is no format that can be read", str(where), ending, ", ".join(SUFFIXES)))
        classes, ignore, order = _classes(require(data, "labels", dict, where, problems) or {}, data, where, problems)
        if problems or ending is None:
            raise DatasetError(problems)
        cases = _listed(root, data["dataset"], where, problems) if isinstance(data.get("dataset"), dict) else None
        if cases is None:
            cases = _found(root / "imagesTr", root / "labelsTr", ending, len(names), problems)
        unlabelled = _found(root / "imagesTs", None, ending, len(names), problems)
        if not cases and not problems:
            problems.append(
                Problem(
                    "no training images", str(root / "imagesTr"), expected=f"files named <case>_0000{ending}", fix="Check 'file_ending'."
                )
            )
        if problems:
            raise DatasetError(problems)
        ndim, _ = usual_header([c.images[0] for c in cases])
        return make_dataset(
            where,
            name=str(data.get("name") or root.name),
            root=root,
            layout=self.name,
            task=self.task,
            domain=self.domain,
            ndim=ndim,
            channels=make_channels(names, options),
            labels=make_labels(options, classes, where, ignore, order),
            cases=tuple(cases),
            unlabelled=tuple(unlabelled),
            licence=str(data.get("licence") or data.get("license") or ""),
        )


def _channel_names(channels: Mapping[str, Any], where: Path, problems: list[Problem]) -> tuple[str, ...]:
    if not all(key.isdigit() for key in channels) or sorted(map(int, channels)) != list(range(len(channels))):
        problems.append(
            Problem(
                "the channels of 'channel_names' are not numbered one by one",
                str(where),
                ", ".join(channels),
                "0, 1, ...",
                "Renumber them.",
            )
        )
        return ()
    names = [str(channels[key]) for key in sorted(channels, key=int)]
    return tuple(name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names))


def _classes(
    labels: Mapping[str, Any], data: Mapping[str, Any], where: Path, problems: list[Problem]
) -> tuple[dict[str, tuple[int, ...]], int | None, tuple[int, ...] | None]:
    classes: dict[str, tuple[int, ...]] = {}
    ignore: int | None = None
    for name, spec in labels.items():
        values = spec if isinstance(spec, list) else [spec]
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            problems.append(Problem(f"label '{name}' is no number and no list of numbers", str(where), str(spec)))
        elif name == "ignore":
            ignore = values[0]
            if len(values) > 1:
                problems.append(
                    Problem("the label 'ignore' has several values", str(where), str(spec), "one", "Merge them in the label files.")
                )
        elif name == "background" and values != [0]:
            problems.append(Problem("the background is not 0", str(where), str(spec), "0", "Renumber it in the label files."))
        elif name != "background" and values != [0]:
            classes[name] = tuple(values)
    if labels and not classes and not problems:
        problems.append(Problem("'labels' declares only background", str(where), expected="at least one class"))
    order = data.get("regions_class_order")
    regions = any(isinstance(labels[name], list) and len(labels[name]) > 1 for name in classes)
    if not regions:
        return classes, ignore, None
    if not isinstance(order, list) or not all(isinstance(v, int) for v in order):
        problems.append(
            Problem(
                "regions need 'regions_class_order'",
                str(where),
                str(order) if "regions_class_order" in data else "nothing",
                f"a list of {len(classes)} label values, one per region",
                "Name for each region the value that a prediction writes; later ones overwrite earlier ones.",
            )
        )
        return classes, ignore, None
    for wrong in region_problems([LabelClass(name=name, values=values) for name, values in classes.items()], order, ignore):
        problems.append(
            Problem(
                wrong,
                f"{where}, field 'regions_class_order'",
                str(order),
                f"one value per region, in the order of 'labels' ({', '.join(classes)})",
                "Name for each region the value that a prediction writes, one of its own; later ones overwrite earlier ones.",
            )
        )
    return classes, ignore, None if problems else tuple(order)


def _found(images: Path, labels: Path | None, ending: str, channels: int, problems: list[Problem]) -> list[CaseFiles]:
    groups: dict[str, dict[int, Path]] = {}
    for path in image_files(images):
        if not path.name.endswith(ending):
            continue
        match = CHANNEL.match(path.name[: -len(ending)])
        if match is None:
            problems.append(
                Problem(
                    "the file name has no channel number", str(path), path.name, f"<case>_0000{ending}", "Rename the file, or move it away."
                )
            )
            continue
        groups.setdefault(match["id"], {})[int(match["channel"])] = path
    cases = []
    for case, found in groups.items():
        if list(found) != [0]:  # one file may hold all channels (colour images)
            problems += channel_gaps(case, found, channels)
        label = labels / f"{case}{ending}" if labels is not None else None
        cases.append(CaseFiles(id=case, images=tuple(found[c] for c in sorted(found)), label=label, group=case))
    stray = (
        [path for path in image_files(labels) if path.name.endswith(ending) and path.name[: -len(ending)] not in groups] if labels else []
    )
    if stray:  # `verify`, which looks for the labels of images, is not reached
        problems += [missing_label(case) for case in cases if case.label is not None and not case.label.is_file()]
        problems += [missing_image(path, str(images / f"{path.name[: -len(ending)]}_0000{ending}")) for path in stray]
    return cases


def _listed(root: Path, entries: Mapping[str, Any], where: Path, problems: list[Problem]) -> list[CaseFiles]:
    cases = []
    for case, entry in entries.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not images or not isinstance(label, str):
            problems.append(Problem("an entry of 'dataset' names no images and label", f"{where}, case '{case}'", str(entry)[:80]))
            continue
        cases.append(CaseFiles(id=case, images=tuple(root / str(i) for i in images), label=root / label, group=case))
    return cases
