"""Images and volumes on regular grids."""

from __future__ import annotations

from medseg.domains.grid.domain import GridDomain
from medseg.domains.grid.settings import Augmentation, GridSettings, Normalization, Scheme

__all__ = ["Augmentation", "GridDomain", "GridSettings", "Normalization", "Scheme"]
