"""DICOM studies as cases: which series is annotated by which objects, and which series are channels of one case.

A session is what one study holds in one frame of reference. The role of a series in it is its modality, or modality and description where
some session holds several series of that modality.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import config

from medseg.errors import Problem
from medseg.io.dicom.reading.annotations import annotated
from medseg.io.dicom.reading.reader import read_dataset
from medseg.io.dicom.reading.segments import segmentation_header
from medseg.io.dicom.reading.structures import closed_regions
from medseg.io.dicom.volume import Annotation, Scan, Volume
from medseg.io.grids import coverage
from medseg.io.layouts.regions import plain

COVERED = 0.5  # share of the reference's field of view that a further channel must cover to be taken without being asked for
NAMES = {"PT": "PET"}
"""What modalities are called as channels, where people do not say what DICOM says."""


@dataclass
class Session:
    """What lies in one study and one frame of reference: usable volumes, and the annotations of each by its key."""

    volumes: list[Volume] = field(default_factory=list)
    annotations: dict[str, list[Annotation]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Study:
    """A case on its way into a dataset: what is annotated, and its images.

    Attributes:
        session: where it comes from.
        reference: the volume on whose grid it is read.
        annotations: of the reference, or of another volume of the session; none for a case to predict.
    """

    session: Session
    reference: Volume
    annotations: tuple[Annotation, ...] = ()


def find_sessions(root: Path, found: Scan, wanted: str | None, problems: list[Problem]) -> list[Session]:
    """The sessions, in order; `problems` is added the annotations whose images are missing or cannot be used.

    Args:
        root: for messages.
        found: everything in the dataset's folder.
        wanted: `SEG`, `RTSTRUCT`, or the label or series description of the annotations to use; None: all.
    """
    sessions: dict[tuple[str, str], Session] = defaultdict(Session)
    for volume in found.volumes:
        if not volume.errors:
            sessions[_session(volume)].volumes.append(volume)
    chosen = [a for a in found.annotations if not a.errors and (wanted is None or plain(wanted) in _names(a))]
    if wanted is not None and found.annotations and not chosen:
        names = sorted({name for annotation in found.annotations for name in _names(annotation)})
        problems.append(Problem("no annotation is called so", f"{root}, --labels", f"'{wanted}'", ", ".join(names[:20])))
    for annotation in chosen:
        drawn_on = _volume_of(annotation, found.volumes, problems)
        if drawn_on is not None:
            sessions[_session(drawn_on)].annotations[drawn_on.key].append(annotation)
    return list(sessions.values())


def _session(volume: Volume) -> tuple[str, str]:
    return volume.series.study, volume.series.world or volume.series.uid


@config.disable_value_validation()
def _names(annotation: Annotation) -> set[str]:
    """What an annotation is called: its kind, label, and the description of its series."""
    tags = ("StructureSetLabel", "ContentLabel", "SeriesDescription")
    header = read_dataset(annotation.source, tags=tags)
    return {plain(annotation.kind), *(plain(str(header.get(tag))) for tag in tags if header.get(tag))}


def _volume_of(annotation: Annotation, volumes: Sequence[Volume], problems: list[Problem]) -> Volume | None:
    """The volume that an annotation refers to most; None and a problem where there is none, several, or one that cannot be used."""
    shared = annotated(annotation, volumes)
    candidates = [v for v in volumes if v.key in shared and shared[v.key] == max(shared.values())]
    where = str(annotation.source)
    if not candidates:
        problems.append(
            Problem(
                "annotates images that are missing", where, expected="the series that it refers to", fix="Add the series, or move it away."
            )
        )
        return None
    best = [v for v in candidates if not v.errors] or candidates
    if len(best) > 1:
        found = ", ".join(str(v.path) for v in best[:4])
        problems.append(Problem("may annotate several volumes", where, found, "one", "Move the others away."))
        return None
    if best[0].errors:
        problems.extend(Problem(p.what, f"{best[0].path}, annotated by {where}", p.found, p.expected, p.fix) for p in best[0].errors)
        return None
    return best[0]


def regions_of(annotation: Annotation) -> dict[int, str]:
    """Number and name of the regions of an annotation that enclose something, as labels number them. Raises ImageError."""
    return segmentation_header(annotation.source).names if annotation.kind == "SEG" else closed_regions(annotation.source)


def roles_of(sessions: Sequence[Session]) -> dict[str, str]:
    """Key of a volume -> its role."""
    several = {
        modality
        for session in sessions
        for modality, count in Counter(volume.series.modality for volume in session.volumes).items()
        if count > 1
    }
    roles = {}
    for session in sessions:
        for volume in session.volumes:
            modality, text = volume.series.modality, " ".join(volume.series.description.split())
            name = NAMES.get(modality, modality) or "image"
            words = plain(text).split()
            said = name if not text or modality not in several else text if plain(name) in words else f"{name} {text}"
            roles[volume.key] = said
    return roles


def choose_reference(
    root: Path, sessions: Sequence[Session], roles: Mapping[str, str], wanted: str | None, problems: list[Problem]
) -> tuple[str, str]:
    """The role on whose grids cases are read, and why: as wanted, else the one that most sessions have annotated."""
    counts = Counter(role for session in sessions for role in {roles[key] for key in session.annotations})
    if wanted is not None:
        equal = [role for role in dict.fromkeys(roles.values()) if plain(role) == plain(wanted)]
        if equal:
            return equal[0], ""
        problems.append(
            Problem("no series is this channel", f"{root}, --reference", f"'{wanted}'", ", ".join(sorted(set(roles.values()))[:20]))
        )
    (role, count), *rest = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    why = f"reference channel: {role}, annotated in {count} of {sum(bool(s.annotations) for s in sessions)} studies"
    return role, why + (f" (annotations of {', '.join(name for name, _ in rest)} are not used there)" if rest else "")


def studies_of(session: Session, reference: str, roles: Mapping[str, str], problems: list[Problem]) -> list[Study]:
    """The cases of a session: one for each annotated volume of the reference's role.

    Where none of these is annotated but another volume is, its annotations are brought to the only volume of that role.
    """
    volumes = [v for v in session.volumes if roles[v.key] == reference]
    own = [Study(session, v, tuple(session.annotations[v.key])) for v in volumes if v.key in session.annotations]
    if own or not session.annotations:
        return own or [Study(session, v) for v in volumes]
    if len(volumes) == 1 and len(session.annotations) == 1:
        (annotations,) = session.annotations.values()
        return [Study(session, volumes[0], tuple(annotations))]
    drawn = next(v for v in session.volumes if v.key in session.annotations)
    what = f"an annotated study has {'no' if not volumes else 'several'} {reference} in the frame of reference of its annotation"
    fix = "Choose another channel with --reference, or move the study away."
    problems.append(Problem(what, str(drawn.folder), ", ".join(sorted(roles[v.key] for v in session.volumes)), f"one {reference}", fix))
    return []


def common_roles(studies: Sequence[Study], reference: str, roles: Mapping[str, str]) -> list[str]:
    """The other roles that every annotated case has exactly once, and that see at least half of what its reference sees; sorted."""
    shared: set[str] | None = None
    for study in studies:
        if study.annotations:
            counts = Counter(roles[v.key] for v in study.session.volumes if _goes_with(v, study.reference))
            once = {role for role, count in counts.items() if count == 1}
            shared = once if shared is None else shared & once
    return sorted((shared or set()) - {reference})


def _goes_with(volume: Volume, reference: Volume) -> bool:
    """Whether a volume can be a channel beside the reference without anybody asking for it."""
    return (
        volume.spaced
        and reference.spaced
        and volume.grid.ndim == reference.grid.ndim == 3
        and len(volume.frames) == volume.samples == 1
        and "LOCALIZER" not in volume.series.kind.upper()
        and coverage(volume.grid, reference.grid) >= COVERED
    )


def channels_of(study: Study, others: Sequence[str], roles: Mapping[str, str], problems: list[Problem]) -> tuple[Volume, ...]:
    """The volumes of a case, the reference first; `problems` is added the roles that it lacks or has several times."""
    chosen = [study.reference]
    for role in others:
        found = [v for v in study.session.volumes if roles[v.key] == role and v.key != study.reference.key]
        if len(found) != 1:
            what = f"a study has {'no' if not found else 'several'} {role}"
            have = ", ".join(sorted(roles[v.key] for v in study.session.volumes))
            problems.append(Problem(what, str(study.reference.path), have, f"one {role} in the frame of reference of the annotated series"))
        chosen += found[:1]
    return tuple(chosen)
