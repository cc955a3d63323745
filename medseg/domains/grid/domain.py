"""The grid domain: images and volumes with voxels in rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medseg.case import Batch, Case, PreparedCase, Window
from medseg.dataset import Labels
from medseg.device import Machine
from medseg.domains.base import Domain, Draft, Run
from medseg.domains.grid.drafts import draft_like, make_drafts
from medseg.domains.grid.maps import MeanMap, ResampledMap, VectorMap
from medseg.domains.grid.measure import measure_case
from medseg.domains.grid.prepare import extent, prepare_case, restore_array, restore_objects, spacing_on
from medseg.domains.grid.sampling import sample_window, source_window, window_locations
from medseg.domains.grid.settings import Blending, GridSettings, Interpolation
from medseg.fingerprint import CaseStats, Fingerprint
from medseg.geometry import Grid, Resample, Shape, Step
from medseg.models.base import Head, ObjectHead
from medseg.plans import Plan, SpaceSection
from medseg.prediction import FoundObjects, Stitched
from medseg.scratch import IN_MEMORY, Scratch

if TYPE_CHECKING:  # what needs torch is imported by the methods that do
    from torch import Generator


class GridDomain(Domain):
    """Images `(C, Y, X)` and volumes `(C, Z, Y, X)`. Windows have two or three axes; two go through a volume slice by slice."""

    Settings: ClassVar[type[SpaceSection]] = GridSettings
    configurations: ClassVar[Mapping[str, int]] = {"3d": 3, "3d_low": 3, "3d_cascade": 3, "2d": 2}

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        assert isinstance(plan.space, GridSettings)
        self.settings: GridSettings = plan.space
        self.source = source_window(plan.window, self.settings.augmentation)

    @staticmethod
    def measure(case: Case, labels: Labels, digest: str) -> CaseStats:
        """See `Domain.measure`."""
        return measure_case(case, labels, digest)

    @staticmethod
    def drafts(fingerprint: Fingerprint, machine: Machine) -> tuple[Draft, ...]:
        """See `Domain.drafts`."""
        return make_drafts(fingerprint, machine)

    @staticmethod
    def like(draft: Draft, fingerprint: Fingerprint, machine: Machine, model: Plan, because: str) -> Draft:
        """See `Domain.like`."""
        return draft_like(draft, fingerprint, machine, model, because)

    @staticmethod
    def check(plan: Plan) -> str:
        """See `Domain.check`."""
        space = plan.space
        assert isinstance(space, GridSettings)
        window, ndim = len(plan.window), plan.data.ndim
        if len(space.axes) != ndim:
            return f"space.axes has {len(space.axes)} axes but the data has {ndim} dimensions"
        if not 2 <= window <= ndim:
            return f"window has {window} axes; a {ndim}D dataset takes {'2' if ndim == 2 else '2 or 3'}"
        if len(space.channels) != len(plan.data.channels):
            return f"space.channels normalises {len(space.channels)} channels but the data has {len(plan.data.channels)}"
        for name, axes in (("space.augmentation.mirror", space.augmentation.mirror), ("inference.mirror", plan.inference.mirror)):
            if len(set(axes)) != len(axes) or any(not 0 <= a < window for a in axes):
                return f"{name} must name different axes of the window (0 to {window - 1}), got {list(axes)}"
        if (space.prior is not None) != bool(plan.previous):
            return "space.prior damages the prediction of an earlier configuration, so it is set where 'previous' names one, and only there"
        unseen = sorted(set(plan.inference.mirror) - set(space.augmentation.mirror))
        if unseen:
            return f"inference.mirror flips axes {unseen} that training never flips; add them to space.augmentation.mirror or remove them"
        return ""

    def prepare(self, case: Case, scratch: Scratch = IN_MEMORY) -> Case:
        """See `Domain.prepare`."""
        return prepare_case(case, self.settings, scratch)

    def prepares_like(self, other: Domain, grid: Grid) -> bool:
        """See `Domain.prepares_like`: where the target spacing of the one is what the other leaves as it is."""
        assert isinstance(other, GridDomain)
        ours, theirs = (one.settings.preparing().model_copy(update={"spacing": spacing_on(grid, one.settings)}) for one in (self, other))
        return ours == theirs and self.plan.data.labels == other.plan.data.labels

    def locations(self, label: NDArray[Any]) -> tuple[NDArray[np.int32], ...]:
        """See `Domain.locations`."""
        return window_locations(label, self.plan.data.labels)

    def sample(self, case: PreparedCase, rng: np.random.Generator, focus: int | None) -> Window:
        """See `Domain.sample`; the margin is what augmentation can move into the window."""
        return sample_window(case, self.plan.window, self.source, rng, focus, self.plan.data.labels.dtype)

    def augment(self, batch: Batch, generator: Generator) -> Batch:
        """See `Domain.augment`."""
        from medseg.domains.grid.augment import augment_batch

        labels = self.plan.data.labels
        values = (0, *labels.values, *([] if labels.ignore is None else [labels.ignore]))
        how, proportions = self.settings.augmentation, self._proportions()
        return augment_batch(batch, self.plan.window, how, proportions, values, generator, self.settings.prior, bool(labels.things))

    def extent(self, grid: Grid) -> Shape:
        """See `Domain.extent`."""
        return extent(grid, self.settings)

    def footprint(self, shape: Shape, head: Head) -> int:
        """See `Domain.footprint`; masks of objects that do not overlap much have about a byte for each voxel."""
        if isinstance(head, ObjectHead):
            return math.prod(shape)
        return head.channels * math.prod(shape) * (2 if self.settings.blending is Blending.nnunet else 4)

    def windows(self, shape: Shape) -> int:
        """See `Domain.windows`."""
        from medseg.domains.grid.stitch import layout

        return math.prod(len(starts) for starts in layout(shape, self.plan.window, self.plan.inference.overlap)[1])

    def stitch(self, case: PreparedCase, run: Run, heads: tuple[Head, ...], batch_size: int, memory: float) -> dict[str, Stitched]:
        """See `Domain.stitch`."""
        from medseg.domains.grid.stitch import stitch_as_nnunet, stitch_case

        stitched = stitch_as_nnunet if self.settings.blending is Blending.nnunet else stitch_case
        return stitched(case, run, heads, self.plan.window, self.plan.inference.overlap, batch_size, memory)

    @property
    def blends_each_network(self) -> bool:
        """See `Domain.blends_each_network`."""
        return self.settings.blending is Blending.nnunet

    def mean(self, maps: Sequence[Mapping[str, Stitched]], memory: float) -> dict[str, Stitched]:
        """See `Domain.mean`."""
        from medseg.domains.grid.detections import mean_objects

        several = {name: tuple(one[name] for one in maps) for name in maps[0]}
        each = memory / len(several)
        return {
            name: mean_objects(parts, each) if isinstance(parts[0], FoundObjects) else MeanMap(parts) for name, parts in several.items()
        }

    def native(self, maps: Mapping[str, Stitched], trail: tuple[Step, ...], heads: tuple[Head, ...]) -> dict[str, Stitched]:
        """See `Domain.native`; displacements are taken from the nearest voxel, because the mean of two leads nowhere. Objects keep their masks,
        whose cells grow with their boxes."""
        result, half = dict(maps), self.settings.interpolation is Interpolation.nnunet
        vectors = {head.name for head in heads if head.vector}
        for step in reversed(trail):
            if isinstance(step, Resample):
                for name, source in result.items():
                    if isinstance(source, FoundObjects):
                        result[name] = source.resized(step.source, step.thick)
                    elif name in vectors:
                        result[name] = VectorMap(source, step.source)
                    else:
                        result[name] = ResampledMap(source, step.source, step.thick, half)
        return result

    def restore(self, array: NDArray[Any], trail: tuple[Step, ...], fill: float = 0, scratch: Scratch = IN_MEMORY) -> NDArray[Any]:
        """See `Domain.restore`."""
        return restore_array(array, trail, fill, scratch)

    def restore_objects(self, found: FoundObjects, trail: tuple[Step, ...]) -> FoundObjects:
        """See `Domain.restore_objects`."""
        return restore_objects(found, trail)

    def _proportions(self) -> tuple[float, ...]:
        """Relative spacing of the window axes: rotations happen in millimetres."""
        spacing = self.settings.spacing[-len(self.plan.window) :]
        known = [s for s in spacing if s is not None]
        return tuple(1.0 if s is None else s / min(known) for s in spacing)
