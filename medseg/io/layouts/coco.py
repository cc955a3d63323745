"""COCO: folders of images, and JSON files with their objects or panoptic segments (`medseg.io.coco.annotations`).

Files of training, validation and test (by their names) may lie side by side: validation becomes the fold that is left out, images of tests and
of files without annotations are predicted only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from pydantic import ValidationError

from medseg.dataset import CaseFiles, Dataset, LabelClass, Labels, Split, Splits
from medseg.errors import DatasetError, ImageError, Problem, UsageError
from medseg.io.coco.annotations import Annotations, Picture, coco_files, is_part, read_annotations, shown
from medseg.io.coco.labels import label_path
from medseg.io.images import image_stem, image_suffix, read_header
from medseg.io.layouts.base import Layout, LayoutOptions, make_dataset, read_json, refuse_reference
from medseg.io.layouts.descriptor import NAME, Descriptor, channels_in_order, groups_of, read_descriptor
from medseg.io.layouts.files import usual_header
from medseg.io.layouts.folders import Folders
from medseg.record import problems_of

PREFIX = re.compile(r"^_?(instances|panoptic|annotations?|person_keypoints|stuff|image_info)[_.-]?(coco)?[_.-]?", re.IGNORECASE)
ROLES = {"train": r"train", "val": r"val(id(ation)?)?", "test": r"test"}
SAMPLE = 64  # file names by which folders of images are compared


@final
class Coco(Layout):
    """COCO's instances and panoptic segments."""

    name: ClassVar[str] = "coco"
    task: ClassVar[str] = "instance"
    domain: ClassVar[str] = "grid"
    looks_for: ClassVar[str] = "COCO's JSON (images, annotations, categories) in the folder, in annotations/ or beside the images"

    def detect(self, root: Path) -> bool:
        """See `Layout.detect`."""
        return bool(coco_files(root))

    def read(self, root: Path, options: LayoutOptions) -> Dataset:
        """See `Layout.read`. A folder that `options.labels` names is one of label maps."""
        if options.labels is not None and (root / options.labels).is_dir() and not (root / f"{options.labels}.json").is_file():
            return Folders().read(root, options)
        refuse_reference(options.reference, root)
        if options.objects not in (None, "auto", "codes"):
            raise UsageError.of(
                "has no meaning for COCO files, whose annotations tell objects apart",
                where="--objects",
                found=options.objects,
                fix="Leave it out, or name a folder of label maps with --labels.",
            )
        if options.things:
            raise UsageError.of(
                "has no meaning for COCO files, which say themselves which categories have objects",
                where="--thing",
                found=", ".join(options.things),
                fix="Leave it out; in panoptic files 'isthing' of each category says it.",
            )
        descriptor = _descriptor(root)
        sets = _sets(root, options.labels)
        cases, unlabelled, splits, notes = _cases(sets, root, descriptor)
        paths = [case.images[0] for case in cases]
        ndim, count = usual_header(paths)
        found = [one.annotations for one in sets if one.annotations.kind != "images"]
        labels = _labels(found, options, root)
        left = [c.name for c in found[0].categories.values() if not any(c.id in one.annotated for one in found)]
        if left and options.classes is None:
            notes.append(f"categories without an annotation are left out: {shown(left)}")
        if not labels.things:
            notes.append("no category is a thing, so there are no objects to tell apart")
        return make_dataset(
            root,
            name=descriptor.name or root.name,
            root=root,
            layout=self.name,
            task="semantic",
            domain=self.domain,
            ndim=ndim,
            channels=channels_in_order(descriptor, options, count, image_suffix(paths[0]).lower()),
            labels=labels,
            cases=tuple(cases),
            unlabelled=tuple(unlabelled),
            licence=descriptor.licence or found[0].licence,
            notes=tuple(notes),
            splits=splits,
        )


@dataclass(frozen=True)
class _Set:
    """A file, what its name says that it is for, and the folder of its images."""

    annotations: Annotations
    role: str
    images: Path


def _sets(root: Path, wanted: str | None) -> list[_Set]:
    """The files that are read. Raises DatasetError with the problems of all of them."""
    files = coco_files(root)
    if wanted is not None:
        stem = wanted.removesuffix(".json")
        exact = [p for p in files if p.stem == stem or p.relative_to(root).with_suffix("").as_posix() == stem]
        chosen = exact or [p for p in files if p.stem.startswith(f"{stem}_")]
        if not chosen:
            raise DatasetError.of(
                "no COCO file and no folder of labels has this name",
                where="--labels",
                found=f"'{wanted}'",
                expected=", ".join(p.relative_to(root).as_posix() for p in files),
            )
        files = tuple(chosen)
    problems: list[Problem] = []
    read: list[Annotations] = []
    for file in files:
        try:
            read.append(read_annotations(file))
        except DatasetError as error:
            problems += error.problems
    sets: list[_Set] = []
    for one in read:
        try:
            sets.append(_Set(one, _role(one.path.relative_to(root)), _folder(one, root)))
        except DatasetError as error:
            problems += error.problems
    problems += _rivals(sets, root) or _categories(sets)
    if not problems and not any(one.annotations.kind != "images" and one.role != "test" for one in sets):
        problems.append(Problem("no COCO file has annotations to train on", str(root), shown([p.name for p in files])))
    if problems:
        raise DatasetError([*problems, *(p for one in sets for p in _files(one))])
    return sets


def _role(file: Path) -> str:
    """`train`, `val`, `test` or nothing, by the file's name, else by that of its folder within the dataset (`train/_annotations.coco.json`)."""
    for name in (file.stem.lower(), file.parent.name.lower()):
        for role, pattern in ROLES.items():
            if re.search(rf"(?<![a-z]){pattern}(?![a-z])", name):
                return role
    return ""


def _folder(one: Annotations, root: Path) -> Path:
    """The folder below which the images lie: the one that has most of them, `images` and folders named as the file before others."""
    if not one.pictures:
        raise DatasetError.of("lists no image", where=str(one.path), expected="'images'")
    part = PREFIX.sub("", one.path.stem)
    likely = [
        root / "images" / part,
        root / part,
        one.path.parent / part,
        root / "images",
        one.path.parent / "images",
        one.path.parent,
        root,
    ]
    others = [p for p in sorted(root.rglob("*")) if p.is_dir() and not p.name.startswith(".") and not is_part(p)]
    names = [p.file for p in one.pictures.values()]
    names = names[:: -(-len(names) // SAMPLE)]
    counts = {place: sum((place / name).is_file() for name in names) for place in dict.fromkeys((*likely, *others))}
    most = max(counts.values())
    best = [place for place, count in counts.items() if count == most]
    if not most:
        raise DatasetError.of(
            "none of its images is there",
            where=str(one.path),
            found=shown([f"no '{name}'" for name in names[:2]]),
            expected=f"files in {root / 'images'}, or in another folder of {root}",
            fix="Put the images there, under the names that 'file_name' gives.",
        )
    if best[0] not in likely and len(best) > 1:
        raise DatasetError.of(
            "several folders hold images of these names",
            where=str(one.path),
            found=shown([p.relative_to(root).as_posix() for p in best]),
            expected="one, or one that is called images",
            fix="Rename the folder of the images.",
        )
    return best[0]


def _rivals(sets: Sequence[_Set], root: Path) -> list[Problem]:
    """Files that annotate the same images."""
    owners: dict[Path, list[_Set]] = {}
    for one in sets:
        for picture in one.annotations.pictures.values() if one.annotations.kind != "images" else ():
            owners.setdefault(one.images / picture.file, []).append(one)
    several = {tuple(dict.fromkeys(o.annotations.path for o in of)) for of in owners.values() if len(of) > 1}
    return [
        Problem(
            "several COCO files annotate the same images",
            str(root),
            shown([p.relative_to(root).as_posix() for p in paths]),
            "one",
            f"Say which with --labels, for example --labels {paths[0].stem}.",
        )
        for paths in sorted(several)
    ]


def _categories(sets: Sequence[_Set]) -> list[Problem]:
    """Files whose categories differ from those of the first."""
    annotated = [one.annotations for one in sets if one.annotations.kind != "images"]
    return [
        Problem(
            "has other categories than another file of this dataset",
            str(other.path),
            shown([f"{c.id} {c.name}" for c in other.categories.values() if annotated[0].categories.get(c.id) != c]) or "fewer",
            f"those of {annotated[0].path}",
            "Give the same categories the same ids in both, or choose one file with --labels.",
        )
        for other in annotated[1:]
        if other.categories != annotated[0].categories
    ]


def _files(one: _Set) -> list[Problem]:
    """Images that are missing, or of another size than the file says; where `verify`, which looks at images, is not reached."""
    missing, sizes = [], []
    for picture in one.annotations.pictures.values():
        path = one.images / picture.file
        if not path.is_file():
            missing.append(f"'{picture.file}'")
            continue
        try:
            shape = read_header(path).shape
        except ImageError:
            continue
        if shape != picture.shape:
            sizes.append(f"'{picture.file}' ({shape[-1]} x {shape[-2]}, listed as {picture.shape[1]} x {picture.shape[0]})")
    told = (("images are missing", missing), ("images have other sizes than the file says", sizes))
    return [Problem(what, str(one.annotations.path), shown(items), f"as listed, in {one.images}") for what, items in told if items]


def _descriptor(root: Path) -> Descriptor:
    """`medseg.json`, of which name, licence, channels and groups have a meaning here. Raises DatasetError."""
    descriptor = read_descriptor(root)
    given = [key for key in (read_json(root / NAME) or {}) if key not in ("name", "licence", "channels", "groups")]
    if given:
        raise DatasetError.of(
            "says what the COCO file says",
            where=str(root / NAME),
            found=", ".join(given),
            expected="name, licence, channels, groups",
            fix="Remove these keys, or choose a folder of label maps with --labels.",
        )
    return descriptor


def _cases(sets: Sequence[_Set], root: Path, descriptor: Descriptor) -> tuple[list[CaseFiles], list[CaseFiles], Splits | None, list[str]]:
    """Cases to learn from, cases to predict, the fold that the files decide, and what is to be said about it."""
    members: dict[Path, tuple[_Set, Picture]] = {}
    for one in sorted(sets, key=lambda one: one.annotations.kind == "images"):
        for picture in one.annotations.pictures.values():
            members.setdefault(one.images / picture.file, (one, picture))
    names = _names({path: picture.file for path, (_, picture) in members.items()})
    group = groups_of(root, list(names.values()), descriptor.groups)
    cases: list[CaseFiles] = []
    unlabelled: list[CaseFiles] = []
    roles: dict[str, list[str]] = {"train": [], "val": [], "": []}
    bare = 0
    for path, (one, picture) in members.items():
        case, found = names[path], one.annotations
        void = found.kind == "panoptic" and picture.id not in found.entries
        bare += void
        if found.kind == "images" or one.role == "test" or void:
            unlabelled.append(CaseFiles(id=case, images=(path,), group=group[case]))
        else:
            cases.append(CaseFiles(id=case, images=(path,), label=label_path(found.path, picture.id), group=group[case]))
            roles[one.role].append(case)
    notes = [f"annotations: {shown([o.annotations.path.relative_to(root).as_posix() for o in sets if o.annotations.kind != 'images'])}"]
    if bare:
        notes.append(f"{bare} images have no segments, and are only predicted")
    if tests := [one.annotations.path.name for one in sets if one.role == "test" and one.annotations.kind != "images"]:
        notes.append(f"images of {shown(tests)} are only predicted")
    splits = None
    if roles["val"] and roles["train"]:
        splits = Splits(
            folds=(Split(train=tuple(roles["train"] + roles[""]), val=tuple(roles["val"])),), source="the names of COCO's files"
        )
        notes.append(f"folds: 1, trained on {len(splits.folds[0].train)} images, {len(roles['val'])} left out, as the files' names say")
    return cases, unlabelled, splits, notes


def _names(files: Mapping[Path, str]) -> dict[Path, str]:
    """Case ids: stems where these are unique, else with the folders before them."""
    stems = {path: image_stem(path) for path in files}
    if max(Counter(stem.lower() for stem in stems.values()).values()) == 1:
        return stems
    return {path: "_".join((*Path(file).parent.parts, stems[path])) for path, file in files.items()}


def _labels(found: Sequence[Annotations], options: LayoutOptions, root: Path) -> Labels:
    """Annotated categories in the order of their values; `options.classes` may give them other names, and merge them."""
    first = found[0]
    values = first.values
    annotated = {values[c]: first.categories[c] for c in sorted(values) if any(c in one.annotated for one in found)}
    if not annotated:
        raise DatasetError.of("no image has an annotation", where=shown([str(one.path) for one in found]))
    classes = {c.name: (value,) for value, c in annotated.items()} if options.classes is None else dict(options.classes)
    things = {value for value, c in annotated.items() if c.thing}
    if options.classes is not None:
        named = {value for several in classes.values() for value in several}
        left = [f"{value} {c.name}" for value, c in annotated.items() if value not in named]
        mixed = [name for name, several in classes.items() if 0 < len(things & set(several)) < len(annotated.keys() & set(several))]
        if left or mixed:
            raise UsageError.of(
                "merges things and stuff" if mixed else "leaves out categories that are annotated",
                where="--class",
                found=shown(mixed or left),
                expected=", ".join(f"{value} {c.name}" for value, c in annotated.items()),
                fix="" if mixed else f"Name them, too, for example --class other={','.join(text.split()[0] for text in left[:3])}.",
            )
    ignore = first.ignore if any(one.kind == "panoptic" or one.crowded for one in found) else None
    told = {"things": tuple(name for name, several in classes.items() if things & set(several))}
    try:
        return Labels(classes=tuple(LabelClass(name=n, values=v) for n, v in classes.items()), ignore=ignore, **told)
    except ValidationError as error:
        kind = UsageError if options.classes is not None else DatasetError
        raise kind(problems_of(Labels, error, "--class" if options.classes is not None else str(root))) from None
