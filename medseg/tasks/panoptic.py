"""Panoptic segmentation (Kirillov et al. 2019, arXiv:1801.00868): every voxel has a class, and those of things are objects besides.

Detectors make it the panoptic feature pyramid network: one pyramid, a branch for objects and one for voxels, and a merge (`instance.detectors`). Votes
for centres make it Panoptic-DeepLab's kind of network.
"""

from __future__ import annotations

from typing import ClassVar

from medseg.tasks.instance import Instance
from medseg.tasks.instance.settings import ObjectSettings, PanopticSettings


class Panoptic(Instance):
    """Instance segmentation of a dataset that has both, things and stuff."""

    Settings: ClassVar[type[ObjectSettings]] = PanopticSettings
    summary = "a class for every voxel, and each object of things by itself"
    both = True
