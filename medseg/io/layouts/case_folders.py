"""Case folders: one folder per case, in it one file per channel and a label, told apart by their names (see `roles`).

`patient07/patient07_{flair,t1,t2,seg}.nii.gz`, or `STS_002/{CT,PET,MR_T1}_{image,mask}.nii.gz`. Every case has the same roles; `channels`
in `medseg.json` may name those to use.

A case is read on the grid of its reference channel, which comes first among the channels; the others follow by name, or as `medseg.json`
lists them. The reference is

1. the channel that `--reference`, or else `reference` in `medseg.json`, names;
2. else the first of `channels` in `medseg.json`; of files that are numbered (`_0000`) the first;
3. else, with one label per case, the channel on whose grid the label lies in most cases;
4. else the channel with the finest voxels; of several, the one with the largest field of view.

What is equal by this rule is decided by name; grids are those of up to 64 cases spread over the dataset (medians). With one label for each
channel, the reference is one of the channels that have a label, and its label is that of the case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar, final

from medseg.dataset import CaseFiles, Channel, Dataset, Modality
from medseg.errors import DatasetError, Problem
from medseg.io.images import image_suffix
from medseg.io.layouts.base import Layout, LayoutOptions, is_described, make_dataset, read_json
from medseg.io.layouts.descriptor import (
    NAME,
    PHOTOGRAPHS,
    Descriptor,
    channels_in_order,
    classes_of,
    declared_channels,
    groups_of,
    read_descriptor,
)
from medseg.io.layouts.files import SERIES, image_files, usual_header
from medseg.io.layouts.reference import choose_reference
from medseg.io.layouts.roles import ONLY, CaseRoles, RoleFile, role_files, role_of_channel

OTHERS = ("images", "imagesTr")  # of the layout `folders`
SHOWN = 5
FIX = f"Add, rename or remove files, or list the channels to use in {NAME} ('channels')."


def case_folders(root: Path) -> tuple[Path, ...]:
    """The folders in `root` that can be cases, sorted by name; none where `root` is described or arranged as another layout wants it."""
    if is_described(root) or any((root / name).is_dir() for name in OTHERS):
        return ()
    return tuple(sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name))


@final
class CaseFolders(Layout):
    """One folder per case, with one file per channel and a label."""

    name: ClassVar[str] = "case_folders"
    task: ClassVar[str] = "semantic"
    domain: ClassVar[str] = "grid"
    looks_for: ClassVar[str] = (
        "one folder per case that holds an image for each channel and a label (seg, mask, label, gt, lesion in its name)"
    )

    def detect(self, root: Path) -> bool:
        """See `Layout.detect`."""
        folders = case_folders(root)
        named = (read_json(root / NAME) or {}).get("labels") if folders else None
        # Half of the folders: beside cases others may lie, which `read` names; a collection of all sorts of data is no dataset.
        return 0 < len(folders) <= 2 * sum(_is_case(folder, str(named) if named else None) for folder in folders)

    def read(self, root: Path, options: LayoutOptions) -> Dataset:
        """See `Layout.read`."""
        descriptor = read_descriptor(root)
        cases = _cases(root, options.labels or descriptor.labels, descriptor)
        declared = _declared(cases[0], descriptor)
        reference = choose_reference(cases, declared, descriptor, options)
        others = [role for role in declared or sorted(cases[0].images) if role != reference.channel]
        roles = (reference.channel, *others)
        groups = groups_of(root, [case.folder.name for case in cases], descriptor.groups)
        files = tuple(
            CaseFiles(
                id=case.folder.name,
                images=tuple(case.images[role].path for role in roles),
                label=case.labels[reference.label].path,
                group=groups[case.folder.name],
            )
            for case in cases
        )
        ndim, in_file = usual_header([c.images[0] for c in files])
        classes, notes = classes_of(
            root,
            descriptor,
            options,
            [c.label for c in files if c.label is not None],
            where=root,
            fix="Check the labels, or name other files with --labels NAME.",
        )
        return make_dataset(
            root,
            name=descriptor.name or root.name,
            root=root,
            layout=self.name,
            task=self.task,
            domain=self.domain,
            ndim=ndim,
            channels=_channels(cases[0], roles, in_file, descriptor, options),
            labels=classes,
            cases=files,
            licence=descriptor.licence,
            notes=(*((reference.why,) if reference.why else ()), *notes),
        )


def _is_case(folder: Path, label: str | None) -> bool:
    """Whether a folder may be one: it holds a label, and few enough images to be channels."""
    files = role_files(folder)
    labels = [file for file in files if _is_label(file, label)]
    return bool(labels) and 0 < len([file for file in files if file not in labels]) <= SERIES


def _is_label(file: RoleFile, name: str | None) -> bool:
    """Whether a file is a label; with a `name`, whether it is the label of that name."""
    if name is None:
        return file.label
    wanted = role_of_channel(name)
    return file.name.casefold() == wanted or (file.label and file.key == wanted)


def _cases(root: Path, label: str | None, descriptor: Descriptor) -> list[CaseRoles]:
    """The cases, all with the same roles. Raises DatasetError with all problems: folders without images, roles twice, missing, or besides."""
    problems = [
        Problem("an image lies beside the case folders", str(path), "", "images in the folders of their cases", "Move it away.")
        for path in image_files(root)
    ]
    cases: list[CaseRoles] = []
    for folder in case_folders(root):
        files = role_files(folder)
        if not files:
            inside = ", ".join(sorted(p.name for p in folder.iterdir())[:SHOWN]) or "an empty folder"
            problems.append(
                Problem("the folder of a case holds no image", str(folder), inside, "image files", "Move it away, or add the images.")
            )
            continue
        labels = [file for file in files if _is_label(file, label)]
        images = [file for file in files if not file.label and file not in labels]
        cases.append(CaseRoles(folder, _by_role(folder, images, "channel", problems), _by_role(folder, labels, "label", problems)))
    cases = _chosen(root, cases, descriptor, problems)
    problems += _differences(root, cases)
    if problems:
        raise DatasetError(problems)
    return cases


def _by_role(folder: Path, files: Sequence[RoleFile], what: str, problems: list[Problem]) -> dict[str, RoleFile]:
    found: dict[str, RoleFile] = {}
    for file in files:
        other = found.setdefault(file.key, file)
        if other is not file:
            fix = "Say which with --labels NAME." if what == "label" else "Remove or rename one of them."
            problems.append(Problem(f"two files for one {what}", str(folder), f"{other.path.name} and {file.path.name}", "one", fix))
    return found


def _chosen(root: Path, cases: list[CaseRoles], descriptor: Descriptor, problems: list[Problem]) -> list[CaseRoles]:
    """Cases without the channels that `medseg.json` does not list; a single file per case may hold all that it lists."""
    present = {role: file.role for case in cases for role, file in case.images.items()}
    if descriptor.channels is None or len(present) < 2:
        return cases
    wanted = [role_of_channel(_name(c)) for c in descriptor.channels]
    missing = [_name(c) for c, role in zip(descriptor.channels, wanted, strict=True) if role not in present]
    if missing or len(set(wanted)) != len(wanted):
        what = "lists channels of which there are no files" if missing else "lists a channel twice"
        found = ", ".join(missing or map(_name, descriptor.channels))
        problems.append(Problem(what, f"{root / NAME}, field 'channels'", found, ", ".join(present[role] for role in sorted(present))))
        return cases
    dropped = set(present) - set(wanted)
    return [
        CaseRoles(c.folder, *({role: file for role, file in files.items() if role not in dropped} for files in (c.images, c.labels)))
        for c in cases
    ]


def _name(channel: str | Channel) -> str:
    return channel if isinstance(channel, str) else channel.name


def _declared(case: CaseRoles, descriptor: Descriptor) -> tuple[str, ...]:
    """The roles that `medseg.json` lists, in its order; empty where it lists none, or names the channels within one file."""
    if descriptor.channels is None or len(case.images) == 1:
        return ()
    return tuple(role_of_channel(_name(c)) for c in descriptor.channels)


def _differences(root: Path, cases: Sequence[CaseRoles]) -> list[Problem]:
    """Which case lacks which file that the other cases have, or has one besides."""
    if not cases:
        return []
    counts = Counter(frozenset(case.files) for case in cases)
    usual, count = counts.most_common(1)[0]
    example = next(case.files for case in cases if frozenset(case.files) == usual)
    expected = ", ".join(sorted(file.name or file.path.name for file in example.values()))
    if count == 1 and len(cases) > 2:
        return [
            Problem(
                "the names of the files have nothing in common between the case folders",
                str(root),
                "; ".join(f"{case.folder.name}: {_names(case.files.values())}" for case in cases[:2]),
                "the same names in every folder, with or without the name of the folder",
                "Name the files CASE_CHANNEL, for example p01_t1.nii.gz and p01_seg.nii.gz in the folder p01.",
            )
        ]
    problems = []
    for case in cases:
        lacking = [example[key].name or example[key].path.name for key in sorted(usual - set(case.files))]
        besides = [case.files[key].path.name for key in sorted(set(case.files) - usual)]
        found = "; ".join([*([f"no {', '.join(lacking)}"] if lacking else []), *([f"{', '.join(besides)} besides"] if besides else [])])
        if found:
            problems.append(
                Problem("the case does not have the files of the other cases", f"case '{case.folder.name}'", found, expected, FIX)
            )
    for missing, what in ((False, "image"), (True, "label")):
        if not any(label is missing for label, _ in usual):
            problems.append(
                Problem(
                    f"most cases have no {what}", str(root), expected, f"one {what} at least", "Rename the files, or use --labels NAME."
                )
            )
    return problems


def _names(files: Collection[RoleFile]) -> str:
    names = sorted(file.path.name for file in files)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _channels(case: CaseRoles, roles: Sequence[str], in_file: int, descriptor: Descriptor, options: LayoutOptions) -> tuple[Channel, ...]:
    suffix = image_suffix(case.images[roles[0]].path).lower()
    only = case.images[roles[0]].role
    if len(roles) == 1 and (descriptor.channels is not None or in_file > 1 or only == ONLY):
        return channels_in_order(descriptor, options, in_file, suffix)
    declared = {role_of_channel(_name(c)): c for c in descriptor.channels or ()}
    return declared_channels(
        [declared.get(role, case.images[role].role) for role in roles], options, Modality.gray if suffix in PHOTOGRAPHS else Modality.other
    )
