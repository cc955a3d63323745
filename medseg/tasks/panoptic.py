"""Panoptic segmentation (Kirillov et al. 2019, arXiv:1801.00868): every voxel has a class, and those of things are objects besides.

Detectors make it the panoptic feature pyramid network: one pyramid, a branch for objects and one for voxels, and a merge (`instance.detectors`). Votes
for centres make it Panoptic-DeepLab's kind of network.
"""

from __future__ import annotations

import json
import shlex
from typing import ClassVar

from medseg.dataset import Dataset
from medseg.errors import PlanError
from medseg.fingerprint import Fingerprint
from medseg.tasks.base import Needs
from medseg.tasks.instance import Instance
from medseg.tasks.instance.settings import ObjectSettings, PanopticSettings


class Panoptic(Instance):
    """Instance segmentation of a dataset that has both, things and stuff."""

    Settings: ClassVar[type[ObjectSettings]] = PanopticSettings
    summary = "a class for every voxel, and each object of things by itself"

    @classmethod
    def needs(cls, dataset: Dataset, fingerprint: Fingerprint) -> Needs:
        """See `Instance.needs`.

        Raises:
            PlanError: all classes are things, or none is.
        """
        labels = dataset.labels
        if not labels.things or len(labels.things) == len(labels.names):
            names = labels.names
            both = "--task instance, where all classes have objects, or --task semantic, where none has"
            if len(names) == 1:
                fix = f"One class cannot be things and stuff at once: take {both}."
            else:
                told = f'--thing {shlex.quote(names[0])}, or "things": [{json.dumps(names[0])}] in the dataset\'s medseg.json'
                fix = f"Say which classes have objects, e.g. {told}; or take {both}."
            raise PlanError.of(
                "a panoptic task needs classes with objects (things) and classes without (stuff)",
                where=f"dataset '{dataset.name}'",
                found=f"things: {', '.join(labels.things) or 'none'}; all classes: {', '.join(labels.names)}",
                expected="some of the classes among the things",
                fix=fix,
            )
        return super().needs(dataset, fingerprint)
