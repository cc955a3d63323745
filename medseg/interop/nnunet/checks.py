"""What nnU-Net's own files must agree on. nnU-Net finds these contradictions late, by failed assertions in a worker process, or not at all.

Source: nnU-Net 2.8.1, `utilities/label_handling/label_handling.py` and `experiment_planning/verify_dataset_integrity.py`.
"""

from __future__ import annotations

from pathlib import Path

from medseg.dataset import LabelClass, region_problems
from medseg.errors import DatasetError, MedsegError, Problem
from medseg.interop.nnunet.records import NnUNetDataset, NnUNetFingerprint

DATASET = "dataset.json"
FINGERPRINT = "dataset_fingerprint.json"


def read_folder(folder: Path) -> tuple[NnUNetDataset, NnUNetFingerprint]:
    """The two files that nnU-Net's planner reads; images are not needed.

    Args:
        folder: a dataset's folder in `nnUNet_preprocessed`, or any other with `dataset.json` and `dataset_fingerprint.json`.

    Raises:
        DatasetError: a file is missing or damaged, or they contradict themselves or each other; all problems at once.
    """
    problems: list[Problem] = []
    dataset: NnUNetDataset | None = None
    fingerprint: NnUNetFingerprint | None = None
    try:
        dataset = NnUNetDataset.load(folder / DATASET)
    except MedsegError as error:
        problems += error.problems
    try:
        fingerprint = NnUNetFingerprint.load(folder / FINGERPRINT)
    except MedsegError as error:
        problems += error.problems
    if dataset is not None:
        problems += dataset_problems(dataset, str(folder / DATASET))
    if fingerprint is not None:
        problems += fingerprint_problems(fingerprint, dataset, str(folder / FINGERPRINT))
    if problems or dataset is None or fingerprint is None:
        raise DatasetError(problems)
    return dataset, fingerprint


def dataset_problems(dataset: NnUNetDataset, where: str) -> list[Problem]:
    """Contradictions within `dataset.json`; `where` names the file."""
    problems = []
    numbers = tuple(dataset.channel_names or dataset.modality or {})
    if numbers != tuple(str(i) for i in range(len(numbers))):
        problems.append(
            Problem(
                "the channels are not numbered one by one; nnU-Net takes them in the order of the file",
                f"{where}, field 'channel_names'",
                ", ".join(numbers),
                ", ".join(str(i) for i in range(len(numbers))),
                "Renumber or reorder them as in the file names (_0000, _0001, ...).",
            )
        )
    return problems + _label_problems(dataset, where)


def _label_problems(dataset: NnUNetDataset, where: str) -> list[Problem]:
    field = f"{where}, field 'labels'"
    if dataset.labels.get("background") != 0:
        found = repr(dataset.labels["background"]) if "background" in dataset.labels else f"only {', '.join(dataset.labels) or 'nothing'}"
        return [
            Problem(
                "the background is not declared as 0",
                field,
                found,
                "background: 0",
                "Files of nnU-Net 1 map values to names; version 2 maps names to values.",
            )
        ]
    problems = [Problem(f"label '{name}' has no values", field) for name, spec in dataset.labels.items() if spec == ()]
    if problems:
        return problems
    ignore = dataset.labels.get("ignore")
    values = sorted(
        {v for name, spec in dataset.labels.items() if name != "ignore" for v in (spec if isinstance(spec, tuple) else (spec,))}
    )
    if values != list(range(len(values))):
        problems.append(
            Problem(
                "the label values are not consecutive",
                field,
                ", ".join(map(str, values)),
                f"0 to {len(values) - 1} without gaps",
                "Renumber the labels here and in the label images.",
            )
        )
    elif ignore is not None and ignore != len(values):
        problems.append(
            Problem(
                "the label to ignore is not the highest",
                field,
                str(list(ignore)) if isinstance(ignore, tuple) else str(ignore),
                f"the number {len(values)}, one more than the highest label",
                "Renumber it here and in the label images.",
            )
        )
    return problems + _region_problems(dataset, where)


def _region_problems(dataset: NnUNetDataset, where: str) -> list[Problem]:
    if not dataset.has_regions:
        return []
    regions = [name for name, spec in dataset.labels.items() if name != "ignore" and spec != 0 and spec != (0,)]
    order = dataset.regions_class_order
    if order is not None:
        ignore = dataset.labels.get("ignore")
        classes = [LabelClass(name=name, values=spec if isinstance(spec := dataset.labels[name], tuple) else (spec,)) for name in regions]
        return [
            Problem(
                wrong,
                f"{where}, field 'regions_class_order'",
                str(list(order)),
                fix="Name for each region the value that a prediction writes, one of its own; later ones overwrite earlier ones.",
            )
            for wrong in region_problems(classes, order, ignore if isinstance(ignore, int) else None)
        ]
    return [
        Problem(
            "labels with several values are regions, and nnU-Net must know which value to write for each",
            f"{where}, field 'regions_class_order'",
            "nothing",
            f"{len(regions)} values, for {', '.join(regions)}",
            "List them in the order of 'labels'; later ones overwrite earlier ones.",
        )
    ]


def fingerprint_problems(fingerprint: NnUNetFingerprint, dataset: NnUNetDataset | None, where: str) -> list[Problem]:
    """Contradictions within `dataset_fingerprint.json`, and with the dataset where it could be read; `where` names the file."""
    again = "Extract the fingerprint again with nnUNetv2_extract_fingerprint --clean."
    cases = len(fingerprint.spacings)
    problems = []
    if len(fingerprint.shapes_after_crop) != cases:
        problems.append(
            Problem(
                "there are not as many shapes as spacings",
                f"{where}, field 'shapes_after_crop'",
                str(len(fingerprint.shapes_after_crop)),
                str(cases),
                again,
            )
        )
    if dataset is None:
        return problems
    if dataset.num_training != cases:
        problems.append(
            Problem(
                f"'numTraining' of {DATASET} is another number of cases",
                f"{where}, field 'spacings'",
                str(cases),
                str(dataset.num_training),
                f"{again[:-1]}, or correct 'numTraining'.",
            )
        )
    seen = tuple(fingerprint.foreground_intensity_properties_per_channel)
    expected = tuple(str(i) for i in range(len(dataset.channels)))
    if sorted(seen) != sorted(expected):
        problems.append(
            Problem(
                f"the channels are not those of {DATASET}",
                f"{where}, field 'foreground_intensity_properties_per_channel'",
                ", ".join(seen) or "none",
                ", ".join(expected),
                again,
            )
        )
    return problems
