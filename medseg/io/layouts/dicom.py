"""DICOM as it comes from a PACS: image series with SEG or RTSTRUCT objects, in any folders, with any file names.

An annotation belongs to the series that it refers to. Each annotated series is a case; other series of its study and frame of reference are
further channels, if every case has exactly one of the same role (see `sessions`). A case is read on the grid of the annotated series, or of
the channel that `--reference` names. Series that could be such a case, but are not annotated, are cases to predict.

Cases are called as `medseg predict` calls them, by the user's own names of folders (`case_names`), and have a digest of the patient's id as
group: nothing of the headers that names a patient goes into plans, reports and logs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from medseg.dataset import CaseFiles, Channel, Dataset, Modality
from medseg.errors import DatasetError, ImageError, Problem
from medseg.io.images import image_suffix
from medseg.io.layouts.base import Layout, LayoutOptions, is_described, make_dataset, make_labels
from medseg.io.layouts.descriptor import NAME, Descriptor, read_descriptor
from medseg.io.layouts.files import usual_header
from medseg.io.layouts.regions import Classes, find_classes, plain

if TYPE_CHECKING:
    from medseg.io.dicom.volume import Scan, Volume
    from medseg.io.layouts.sessions import Study

LOOKED_AT = 200  # files by which a folder is told to hold DICOM
MODALITIES = {"CT": Modality.ct, "MR": Modality.mr, "PT": Modality.pet}
PHOTOGRAPHS = ("CR", "DX", "MG", "US", "XA", "RF", "OP", "SM", "ES", "OPT", "GM", "XC", "SC")


@final
class DicomStudies(Layout):
    """Image series with SEG or RTSTRUCT."""

    name: ClassVar[str] = "dicom"
    task: ClassVar[str] = "semantic"
    domain: ClassVar[str] = "grid"
    looks_for: ClassVar[str] = "DICOM files: image series, and SEG or RTSTRUCT objects that refer to them"

    def detect(self, root: Path) -> bool:
        """See `Layout.detect`."""
        if is_described(root):
            return False
        from medseg.io.dicom.reading.sources import open_source, walk  # not before: pydicom takes long to import

        dicom = 0
        for source in islice(walk([root]), LOOKED_AT):
            if image_suffix(Path(source.member or source.path)):
                return False
            try:
                with open_source(source) as file:
                    dicom += file.read(132)[128:] == b"DICM"
            except Exception:  # whatever an archive raises: `read` tells
                continue
        return dicom > 0

    def read(self, root: Path, options: LayoutOptions) -> Dataset:
        """See `Layout.read`."""
        # pydicom is imported only where there is DICOM.
        from medseg.io.dicom.naming import case_names
        from medseg.io.dicom.reading.reader import scan
        from medseg.io.layouts.sessions import choose_reference, find_sessions, regions_of, roles_of, studies_of

        descriptor = read_descriptor(root)
        found = scan(root)
        problems = _refused(root, descriptor)
        problems += [problem for other in found.others for problem in other.problems]
        problems += [problem for annotation in found.annotations for problem in annotation.errors]
        sessions = find_sessions(root, found, options.labels or descriptor.labels, problems)
        if not any(session.annotations for session in sessions):
            raise DatasetError(problems or [_nothing(root, found)])
        roles = roles_of(sessions)
        reference, why = choose_reference(root, sessions, roles, options.reference or descriptor.reference, problems)
        studies = [study for session in sessions for study in studies_of(session, reference, roles, problems)]
        others = _others(root, studies, reference, roles, descriptor, problems)
        regions: dict[str, dict[int, str]] = {}
        for annotation in (a for study in studies for a in study.annotations):
            try:
                regions[str(annotation.source)] = dict(regions_of(annotation))
            except ImageError as error:
                problems += error.problems
        named = {
            s.reference.key: [n for a in s.annotations for n in regions.get(str(a.source), {}).values()] for s in studies if s.annotations
        }
        classes = find_classes(root, descriptor, named, problems)
        labelled = [s for s in studies if s.annotations]
        channels = {study.reference.key: _channels_of(study, others, roles, problems) for study in labelled}
        labels = {study.reference.key: _label(study, regions, classes, descriptor, problems) for study in labelled}
        if problems:
            raise DatasetError(problems)
        for study in studies:
            lacking: list[Problem] = []
            if not study.annotations:
                volumes = _channels_of(study, others, roles, lacking)
                channels |= {} if lacking else {study.reference.key: volumes}
        names = case_names(list(channels.values()), found)
        every = [
            CaseFiles(id=name, images=tuple(v.path for v in volumes), label=labels.get(key), group=_patient(volumes[0]))
            for name, (key, volumes) in zip(names, channels.items(), strict=True)
        ]
        cases, unlabelled = [case for case in every if case.label is not None], [case for case in every if case.label is None]
        used = {path for case in (*cases, *unlabelled) for path in case.images}
        left = sum(volume.path not in used for volume in found.volumes)
        notes = [why, f"channels: {', '.join((reference, *others))}", f"{left} other series are left aside" if left else ""]
        ndim, in_file = usual_header([case.images[0] for case in cases])
        return make_dataset(
            root,
            name=descriptor.name or root.name,
            root=root,
            layout=self.name,
            task=self.task,
            domain=self.domain,
            ndim=ndim,
            channels=_channels(labelled[0], (reference, *others), roles, in_file, descriptor, options),
            labels=make_labels(options, {name: (value,) for name, value in classes.values.items()}, root / NAME),
            cases=tuple(sorted(cases, key=lambda case: case.id)),
            unlabelled=tuple(sorted(unlabelled, key=lambda case: case.id)),
            licence=descriptor.licence,
            notes=tuple(note for note in notes if note),
        )


def _refused(root: Path, descriptor: Descriptor) -> list[Problem]:
    """Fields of `medseg.json` that mean nothing where labels are DICOM objects."""
    given = [name for name in ("classes", "order", "ignore", "groups") if getattr(descriptor, name) is not None]
    fix = "Name the regions of each class in 'regions'; patients are known."
    return [Problem(f"'{name}' has no meaning for DICOM", str(root / NAME), expected="regions, ignore_regions", fix=fix) for name in given]


def _nothing(root: Path, found: Scan) -> Problem:
    return Problem(
        "no image series has a label",
        str(root),
        f"{len(found.volumes)} volumes, {len(found.annotations)} SEG or RTSTRUCT objects",
        "SEG or RTSTRUCT objects that refer to the series",
        "Put them anywhere in the folder; to predict, use `medseg predict`.",
    )


def _others(
    root: Path, studies: Sequence[Study], reference: str, roles: Mapping[str, str], descriptor: Descriptor, problems: list[Problem]
) -> list[str]:
    """The roles of the further channels: those that `medseg.json` lists, else those that all cases share."""
    from medseg.io.layouts.sessions import common_roles

    if descriptor.channels is None:
        return common_roles(studies, reference, roles)
    known = {plain(role): role for role in roles.values()}
    names = [channel if isinstance(channel, str) else channel.name for channel in descriptor.channels]
    unknown = [name for name in names if plain(name) not in known]
    if unknown:
        expected = ", ".join(sorted(known.values())[:20])
        problems.append(
            Problem("lists channels of which there is no series", f"{root / NAME}, field 'channels'", ", ".join(unknown), expected)
        )
    return [known[plain(name)] for name in dict.fromkeys(names) if plain(name) in known and plain(name) != plain(reference)]


def _channels_of(study: Study, others: Sequence[str], roles: Mapping[str, str], problems: list[Problem]) -> Sequence[Volume]:
    """The volumes of a case, the reference first."""
    from medseg.io.layouts.sessions import channels_of

    volumes = channels_of(study, others, roles, problems)
    problems += [
        Problem("is a time series, and a channel is one volume", str(v.path), f"{len(v.frames)} volumes", "1", "Export one time point.")
        for v in volumes
        if len(v.frames) > 1
    ]
    return volumes


def _patient(volume: Volume) -> str:
    """A digest of the patient's id; of the study where there is none."""
    from medseg.io.dicom.reading.reader import read_dataset

    header = read_dataset(volume.frames[0][0].source, tags=("PatientID", "IssuerOfPatientID"))
    told = [str(header.get(tag) or "").strip() for tag in ("IssuerOfPatientID", "PatientID")]
    return hashlib.blake2b("\n".join(told if told[1] else [volume.series.study, volume.series.uid]).encode(), digest_size=8).hexdigest()


def _label(
    study: Study, regions: Mapping[str, Mapping[int, str]], classes: Classes, descriptor: Descriptor, problems: list[Problem]
) -> Path:
    """The name of the label map of a case; `problems` is added the classes that several objects claim."""
    from medseg.io.dicom.reading.labels import Part, label_path

    found = []
    owners: dict[str, set[str]] = {}
    for annotation in sorted(study.annotations, key=lambda a: str(a.source)):
        for number, region in regions.get(str(annotation.source), {}).items():
            name = classes.of_region.get(plain(region))
            if name is not None:
                found.append((classes.values[name], annotation.source, number))
                owners.setdefault(name, set()).add(str(annotation.source))
    for name, files in owners.items():
        if len(files) > 1:
            fix = "Say which with --labels (SEG, RTSTRUCT, or the label or series description of the objects), or move the others away."
            problems.append(
                Problem(
                    f"several objects hold class '{name}' of one series", str(study.reference.path), ", ".join(sorted(files)), "one", fix
                )
            )
    if descriptor.overlap == "later":
        found.sort(key=lambda one: one[0])
    parts = [
        Part(source, {number: value for value, _, number in several}) for source, several in groupby(found, key=lambda one: one[1])
    ] or [Part(study.annotations[0].source, {})]
    return label_path(study.reference, parts, painted=descriptor.overlap == "later")


def _channels(
    study: Study, names: Sequence[str], roles: Mapping[str, str], in_file: int, descriptor: Descriptor, options: LayoutOptions
) -> tuple[Channel, ...]:
    """Channels with their modalities; `--modality` before `medseg.json`, and that before what the series say."""
    if len(names) == 1 and in_file == 3:
        return tuple(Channel(name=name, modality=options.modality or Modality.rgb) for name in ("red", "green", "blue"))
    declared = {plain(c.name): c.modality for c in descriptor.channels or () if isinstance(c, Channel)}
    kinds = {roles[volume.key]: volume.series.modality for volume in study.session.volumes}
    channels = []
    for name in names:
        kind = kinds.get(name, "")
        said = MODALITIES.get(kind, Modality.gray if kind in PHOTOGRAPHS else Modality.other)
        channels.append(Channel(name=name, modality=options.modality or declared.get(plain(name), said)))
    return tuple(channels)
