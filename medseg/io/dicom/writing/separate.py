"""Objects as classes of their own, which is how DICOM tells them apart: one segment, region or group of measurements for each."""

from __future__ import annotations

import dataclasses

import numpy as np

from medseg.dataset import LabelClass, Labels
from medseg.io.dicom.terms import class_terms
from medseg.io.exports import Result
from medseg.io.found import Findings, Found
from medseg.scratch import row_slabs


def separated(result: Result) -> Result:
    """A prediction with a class for each object, `nucleus 17`, and for each class without objects that occurs; without anything found, and of
    labels without things, with the classes as they are.

    Objects have the codes of their class, and colours of their own.
    """
    labels, maker = result.labels, result.maker
    if not labels.things:
        return result
    findings = Findings.of(result)
    if not findings.found:
        plain = Labels(classes=labels.classes, ignore=labels.ignore)
        return dataclasses.replace(result, prediction=dataclasses.replace(result.prediction, labels=result.semantic), labels=plain)
    terms = class_terms(labels, maker.settings, maker.model)
    names: dict[str, Found] = {}
    for one in findings.found:
        name = labels.names[one.index]
        names[_free(f"{name} {one.number}" if one.number else name, names)] = one
    table = np.zeros(len(findings.values), np.uint8 if len(names) < 2**8 else np.uint16 if len(names) < 2**16 else np.int32)
    for number, one in enumerate(names.values(), 1):
        table[list(one.places)] = number
    numbered = result.scratch.zeros(findings.map.shape, table.dtype)
    for rows in row_slabs(numbered.shape):
        numbered[rows] = table[findings.map[rows]]
    own = {name: terms[labels.names[one.index]].model_copy(update={"color": None}) for name, one in names.items()}
    settings = maker.settings.model_copy(update={"classes": own})
    return dataclasses.replace(
        result,
        prediction=dataclasses.replace(result.prediction, labels=numbered, probabilities=None),
        labels=Labels(classes=tuple(LabelClass(name=name, values=(k,)) for k, name in enumerate(names, 1))),
        maker=dataclasses.replace(maker, settings=settings),
    )


def _free(name: str, taken: dict[str, Found]) -> str:
    """The name, or where another class is called so by itself, one like it."""
    while name in taken:
        name = f"{name} (object)"
    return name
