"""What a class is in the terms of the field: SNOMED CT codes, side of the body and colour, found by the name of the class.

Codes are those of DICOM PS3.16 CID 7150 to 7166 and 7192 where these have one. Those of ribs, of single muscles and of a few other
structures are from the tables that TotalSegmentator publishes (`resources/totalsegmentator_snomed_mapping.csv`). Both are in `terms.csv`.
"""

from __future__ import annotations

import colorsys
import csv
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from medseg.dataset import Labels
from medseg.errors import Problem
from medseg.io.dicom.settings import DicomSettings, SegmentTerms, Term

CATEGORIES = {
    "anatomy": Term(value="91723000", meaning="Anatomical Structure"),
    "abnormality": Term(value="49755003", meaning="Morphologically Abnormal Structure"),
    "tissue": Term(value="85756007", meaning="Tissue"),
    "object": Term(value="260787004", meaning="Physical object"),
    "substance": Term(value="91720002", meaning="Body Substance"),
}
UNKNOWN = SegmentTerms(category=CATEGORIES["tissue"], type=Term(value="85756007", meaning="Tissue"))
"""Of a class that nothing is known about: some tissue. Valid, but it says nothing."""

LEFT, RIGHT = Term(value="7771000", meaning="Left"), Term(value="24028007", meaning="Right")
BILATERAL = Term(value="51440002", meaning="Bilateral")
SIDES = {
    **dict.fromkeys(("left", "l", "lt", "lft"), LEFT),
    **dict.fromkeys(("right", "r", "rt", "rgt"), RIGHT),
    **dict.fromkeys(("bilateral", "both"), BILATERAL),
}
PARTS = {
    "anterior": Term(value="255549009", meaning="Anterior"),
    "posterior": Term(value="255551008", meaning="Posterior"),
    "superior": Term(value="264217000", meaning="Superior"),
    "inferior": Term(value="261089000", meaning="Inferior"),
    "medial": Term(value="255561001", meaning="Medial"),
    "lateral": Term(value="49370004", meaning="Lateral"),
    "proximal": Term(value="40415009", meaning="Proximal"),
    "distal": Term(value="46053002", meaning="Distal"),
    "central": Term(value="26216008", meaning="Central"),
    "peripheral": Term(value="14414005", meaning="Peripheral"),
}
SILENT = frozenset({"of", "the", "and", "in", "structure", "region", "whole", "entire", "mask", "segmentation", "label", "task", "dataset"})
SPELLINGS = {
    "tumour": "tumor", "oesophagus": "esophagus", "oedema": "edema", "haemorrhage": "hemorrhage", "haematoma": "hematoma", "grey": "gray",
    "coeliac": "celiac", "hepatic": "liver", "renal": "kidney", "pancreatic": "pancreas", "prostatic": "prostate", "pulmonary": "lung",
    "cerebral": "brain", "cardiac": "heart", "splenic": "spleen", "gastric": "stomach", "colonic": "colon", "hippocampal": "hippocampus",
    "vertebrae": "vertebra", "bronchi": "bronchus", "bronchia": "bronchus", "metastases": "metastasis", "primaries": "primary",
    "nuclei": "nucleus", "phalanges": "phalange", "testes": "testis", "feet": "foot", "teeth": "tooth",
}  # fmt: skip

Words = frozenset[str]


@dataclass(frozen=True)
class Known:
    """A row of the table; `composes` tells what lies in some organ, such as a tumour or vessels, from what is one."""

    terms: SegmentTerms
    composes: bool


def terms_of(name: str, settings: DicomSettings | None = None, context: str = "") -> SegmentTerms | None:
    """The terms of a class, or None where its name says nothing that the table knows.

    Args:
        name: of the class, in any usual spelling: `kidney_left`, `Left Kidney`, `lt kidney`, `liver tumours`, `vertebrae_T10`.
        settings: what somebody chose; it has the first word.
        context: what the model is about, such as the name of its dataset: `Anterior` of `Hippocampus` is known, alone it is not.
    """
    if settings is not None and name in settings.classes:
        return settings.classes[name]
    words = _words(name)
    found = _find(words)
    organ = next((known for known in map(_organ, _stretches(context)) if known is not None), None) if context else None
    if organ is None:
        return found
    if found is None:
        return _find(words | _words(organ[0]))
    if found.region is None and any(known.composes and known.terms.type == found.type for known in _table().values()):
        return found.model_copy(update={"region": organ[1].type})
    return found


def class_terms(labels: Labels, settings: DicomSettings, context: str = "") -> dict[str, SegmentTerms]:
    """The terms of every class, each with a colour that no other class of the model has; see `terms_of`."""
    found = {name: terms_of(name, settings, context) or UNKNOWN for name in labels.names}
    taken = {terms.color for name, terms in found.items() if name in settings.classes and terms.color is not None}
    result: dict[str, SegmentTerms] = {}
    for number, (name, terms) in enumerate(found.items()):
        color = terms.color
        if color is None or (color in taken and name not in settings.classes):
            color = _free_color(number, taken)
        taken.add(color)
        result[name] = terms.model_copy(update={"color": color})
    return result


def unknown_classes(labels: Labels, settings: DicomSettings, context: str = "") -> tuple[Problem, ...]:
    """A warning for the classes whose names are not in the table, with how to say what they are."""
    found = {name: terms_of(name, settings, context) for name in labels.names}
    names = [name for name, terms in found.items() if terms is None or terms.model_copy(update={"color": None}) == UNKNOWN]
    if not names:
        return ()
    category, kind = (
        {"value": value, "meaning": meaning} for value, meaning in (("91723000", "Anatomical Structure"), ("10200004", "Liver"))
    )
    example = json.dumps({"classes": {names[0]: {"category": category, "type": kind}}}, ensure_ascii=False)
    return (
        Problem(
            f"no SNOMED CT code is known for {'a class' if len(names) == 1 else f'{len(names)} classes'}, so DICOM objects call "
            f"{'it' if len(names) == 1 else 'them'} Tissue beside {'its' if len(names) == 1 else 'their'} name",
            ", ".join(f"'{name}'" for name in names),
            fix=f"Give category and type in dicom.json of the model folder (for `medseg convert` in a file, with --terms), for example {example}.",
        ),
    )


def _free_color(number: int, taken: set[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Hues in steps of the golden angle: any number of colours, none near the one before."""
    while True:
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, (0.55, 0.75, 0.9)[number % 3], (0.95, 0.8)[number // 3 % 2])
        color = round(red * 255), round(green * 255), round(blue * 255)
        if color not in taken:
            return color
        number += 1


def _words(name: str) -> Words:
    """`Left Kidneys`, `kidney_left`, `KidneyLeft` are the same words."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    parts = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", plain).lower())
    return frozenset(_stem(part) for part in parts if part and part not in SILENT)


def _stem(word: str) -> str:
    if word in SPELLINGS:
        return SPELLINGS[word]
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as")):
        word = word[:-1]
    return SPELLINGS.get(word, word)


def _stretches(text: str) -> list[str]:
    """A text, and every word of it: `Task04_Hippocampus`, `Task04`, `Hippocampus`."""
    return [text, *re.findall(r"[A-Za-z]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text))]


def _organ(text: str) -> tuple[str, SegmentTerms] | None:
    known = _table().get(_words(text))
    return (text, known.terms) if known is not None and not known.composes and known.terms.category == CATEGORIES["anatomy"] else None


def _find(words: Words) -> SegmentTerms | None:
    table = _table()
    sides = {SIDES[word] for word in words if word in SIDES}
    parts = [PARTS[word] for word in sorted(words) if word in PARTS]
    side = None if not sides else sides.pop() if len(sides) == 1 else BILATERAL
    plain = words.difference(SIDES)
    for some, modifier in ((words, None), (plain, side), (plain.difference(PARTS), side or (parts[0] if parts else None))):
        if some in table:
            return table[some].terms.model_copy(update={"modifier": modifier})
        heads = [head for head, known in table.items() if known.composes and head < some]
        for head in sorted(heads, key=lambda head: (-len(head), sorted(head))):
            organ = table.get(some - head)
            if organ is not None and organ.terms.category == CATEGORIES["anatomy"]:
                return table[head].terms.model_copy(update={"region": organ.terms.type, "modifier": modifier})
    return None


@cache
def _table() -> dict[Words, Known]:
    text = (files("medseg.io.dicom") / "terms.csv").read_text(encoding="utf-8")
    table: dict[Words, Known] = {}
    for row in csv.DictReader(text.splitlines()):
        red, green, blue = map(int, row["color"].split())
        term = Term(value=row["code"], scheme=row["scheme"], meaning=row["meaning"])
        known = Known(SegmentTerms(category=CATEGORIES[row["category"]], type=term, color=(red, green, blue)), row["of"] == "yes")
        for name in row["names"].split(","):
            table.setdefault(_words(name), known)
    return table
