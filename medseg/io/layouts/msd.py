"""The Medical Segmentation Decathlon: `dataset.json` with `modality`, `labels`, `training`, `test`; channels in the fourth dimension.

http://medicaldecathlon.com. The first generation of nnU-Net used the same file with one image per channel (`_0000`); both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

from medseg.dataset import CaseFiles, Dataset
from medseg.errors import DatasetError, Problem
from medseg.io.images import image_stem, image_suffix
from medseg.io.layouts.base import Layout, LayoutOptions, make_channels, make_dataset, make_labels, read_json, refuse_reference, require
from medseg.io.layouts.files import usual_header


@final
class Decathlon(Layout):
    """A Decathlon task."""

    name: ClassVar[str] = "msd"
    task: ClassVar[str] = "semantic"
    domain: ClassVar[str] = "grid"
    looks_for: ClassVar[str] = "dataset.json with 'training' as a list of {image, label} and 'labels'"

    def detect(self, root: Path) -> bool:
        """See `Layout.detect`."""
        data = read_json(root / "dataset.json")
        return data is not None and "training" in data and "channel_names" not in data

    def read(self, root: Path, options: LayoutOptions) -> Dataset:
        """See `Layout.read`."""
        where = root / "dataset.json"
        refuse_reference(options.reference, where)
        data = read_json(where) or {}
        problems: list[Problem] = []
        if options.labels is not None:
            problems.append(Problem("--labels has no meaning here: dataset.json names every label file", str(where), options.labels))
        training = require(data, "training", list, where, problems) or []
        modality = require(data, "modality", dict, where, problems) or {}
        names = _modalities(modality, where, problems)
        labels = _classes(require(data, "labels", dict, where, problems) or {}, where, problems)
        cases = [_case(root, entry, len(names), f"{where}, training[{i}]", problems) for i, entry in enumerate(training)]
        tests = data.get("test", [])
        unlabelled = [
            _case(root, entry, len(names), f"{where}, test[{i}]", problems, labelled=False)
            for i, entry in enumerate(tests if isinstance(tests, list) else [])
        ]
        if not training and not problems:
            problems.append(Problem("'training' is empty", str(where), expected="at least one {image, label}"))
        if problems:
            raise DatasetError(problems)
        found = [c for c in cases if c is not None]
        ndim, _ = usual_header([c.images[0] for c in found])
        return make_dataset(
            where,
            name=str(data.get("name") or root.name),
            root=root,
            layout=self.name,
            task=self.task,
            domain=self.domain,
            ndim=ndim,
            channels=make_channels(names, options),
            labels=make_labels(options, labels, where),
            cases=tuple(found),
            unlabelled=tuple(c for c in unlabelled if c is not None and c.images[0].is_file()),
            licence=str(data.get("licence") or data.get("license") or ""),
        )


def _modalities(modality: Mapping[str, Any], where: Path, problems: list[Problem]) -> tuple[str, ...]:
    try:
        pairs = sorted((int(key), str(name)) for key, name in modality.items())
    except ValueError:
        problems.append(Problem("the keys of 'modality' are not channel numbers", str(where), ", ".join(modality), "0, 1, ..."))
        return ()
    if [key for key, _ in pairs] != list(range(len(pairs))):
        problems.append(
            Problem(
                "the channels of 'modality' are not numbered one by one", str(where), ", ".join(modality), "0, 1, ...", "Renumber them."
            )
        )
    names = [name for _, name in pairs]
    return tuple(name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names))


def _classes(labels: Mapping[str, Any], where: Path, problems: list[Problem]) -> dict[str, tuple[int, ...]]:
    classes: dict[str, tuple[int, ...]] = {}
    for key, name in labels.items():
        try:
            value = int(key)
        except ValueError:
            problems.append(Problem("a key of 'labels' is not a label value", str(where), f"'{key}'", "whole numbers as text"))
            continue
        if value != 0:
            text = str(name)
            if text in classes:
                text = f"{text} {value}"
            classes[text] = (value,)
    if labels and not classes and not problems:
        problems.append(Problem("'labels' declares only background", str(where), expected="at least one class"))
    return classes


def _case(root: Path, entry: Any, channels: int, where: str, problems: list[Problem], labelled: bool = True) -> CaseFiles | None:
    image = entry.get("image") if isinstance(entry, dict) else entry if not labelled else None
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(image, str) or (labelled and not isinstance(label, str)):
        problems.append(Problem("an entry names no image and label", where, str(entry)[:80], '{"image": "...", "label": "..."}'))
        return None
    if Path(image).name.startswith("._"):
        return None  # resource forks that macOS puts into archives
    path = root / image
    suffix = image_suffix(path)
    stem = image_stem(path)
    split = [path.with_name(f"{stem}_{c:04d}{suffix}") for c in range(channels)]
    images = split if not path.is_file() and split and split[0].is_file() else [path]
    return CaseFiles(id=stem, images=tuple(images), label=root / str(label) if labelled else None, group=stem)
