"""What the files of a case folder are, by their names: `patient07/patient07_flair.nii.gz` is the channel `flair` of case `patient07`.

A file's role is its stem without the case id and without words for images and labels; a file with a word for labels is a label. Words are
whole tokens between `_`, `-`, `.` and spaces, in small or capital letters: `t1post` is no `t1`, and `unmasked` no label.

In names by the Brain Imaging Data Structure, `sub-01_label-22_ct`, pairs with a hyphen tell files apart, and the last word says what a file is:
this is an image. What such pairs say of an image belongs to the case, and is no part of a role.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.io.images import image_stem
from medseg.io.layouts.files import image_files

IMAGE_WORDS = {"image", "images", "img", "scan", "volume", "vol"}
LABEL_WORDS = {
    "seg", "dseg", "segm", "segmentation", "segmentations", "mask", "masks", "msk", "label", "labels", "lbl", "gt", "groundtruth", "truth", "annotation",
    "annotations", "annot", "lesion", "lesions", "roi", "rois", "contour", "contours",
}  # fmt: skip
SEPARATORS = r"_\-. "
PAIRS = re.compile(r"(?P<pairs>sub-[^\W_]+(?:_[^\W_]+-[^\W_]+)*)_(?P<last>[^\W_]+)", re.IGNORECASE)
ONLY = "image"
"""The role of a file whose name says nothing but the case."""


@dataclass(frozen=True)
class RoleFile:
    """An image file in a case folder.

    Attributes:
        role: for people, `MR_T1`; empty for a label whose name says nothing but that it is one.
        name: the stem without the case id, `MR_T1_mask`.
        label: whether it is a label.
    """

    path: Path
    role: str
    name: str
    label: bool

    @property
    def key(self) -> str:
        """What roles are compared by."""
        return self.role.casefold()


@dataclass(frozen=True)
class CaseRoles:
    """A case folder whose files are told apart: images by role, and labels by the role of what they annotate, empty where they name none."""

    folder: Path
    images: Mapping[str, RoleFile]
    labels: Mapping[str, RoleFile]

    @property
    def files(self) -> dict[tuple[bool, str], RoleFile]:
        """All files by (whether it is a label, role)."""
        return {(label, key): file for label, files in ((False, self.images), (True, self.labels)) for key, file in files.items()}


def role_files(folder: Path) -> tuple[RoleFile, ...]:
    """The image files directly in a case folder, whose name is the case id, sorted by name."""
    files = image_files(folder)
    shared = {pair for path in files for pair in _pairs_of_image(image_stem(path))}
    return tuple(role_file(path, folder.name, shared) for path in files)


def role_file(path: Path, case: str, shared: Collection[str] = ()) -> RoleFile:
    """The role of one file of a case; `shared` are pairs (`label-22`) that belong to the case."""
    whole = image_stem(path)
    stem = "_".join(part for part in whole.split("_") if part not in {*shared, *_pairs_of_image(whole)})
    rest = re.sub(rf"(?<![^{SEPARATORS}]){re.escape(case)}(?![^{SEPARATORS}])", "_", stem, count=1, flags=re.IGNORECASE)
    words = _words(rest)
    label = any(word.lower() in LABEL_WORDS for word in words)
    role = "_".join(word for word in words if word.lower() not in IMAGE_WORDS | (LABEL_WORDS if label else set()))
    return RoleFile(path, role if role or label else ONLY, "_".join(words), label)


def _pairs_of_image(stem: str) -> list[str]:
    """The pairs with a word for labels in the name of an image: `label-22` of `sub-01_label-22_ct`; none in other names."""
    match = PAIRS.fullmatch(stem)
    if match is None or match["last"].lower() in LABEL_WORDS:
        return []
    return [pair for pair in match["pairs"].split("_") if pair.split("-")[0].lower() in LABEL_WORDS]


def role_of_channel(name: str) -> str:
    """What a role is compared by to be that of the channel `name`."""
    return "_".join(_words(name)).casefold()


def _words(text: str) -> list[str]:
    return [word for word in re.split(rf"[{SEPARATORS}]+", text) if word]
