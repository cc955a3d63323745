"""One trained model: what it says of a case in memory, on the case's own grid."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.case import Batch, Case, PreparedCase
from medseg.device import CPU_SHARE, physical_memory
from medseg.domains.base import Run, find_domain
from medseg.geometry import Step
from medseg.inference.ensemble import Ensemble, batch_size
from medseg.pages import given_back
from medseg.plans import Plan
from medseg.prediction import Prediction, Stitched
from medseg.progress import Progress
from medseg.scratch import Scratch, copy
from medseg.tasks.base import find_task

GIB = 2**30
SHARE_OF_MAPS = 0.25  # of the memory for blended maps of all heads; beyond it they lie in temporary files
LARGEST_MAPS = 2**29  # bytes of them in memory, at most: files are hardly slower, and memory does not grow with the number of classes
MANY_WINDOWS = 64  # cases of fewer are quick, and a progress bar for each would only flicker


class Member(ABC):
    """A trained model that says alone what it sees in a case. What several say together is up to `predict_case`.

    Attributes:
        plan: of all networks.
        ensemble: the networks, on their device.
        weights: digest of the weights.
        memory: GiB of main memory for one case.
        previous: of a cascade, the model whose prediction is a further input.
    """

    previous: Member | None

    def __init__(
        self, plan: Plan, networks: Sequence[nn.Module], device: torch.device, memory: float | None, weights: str, previous: Member | None
    ) -> None:
        if (previous is not None) != bool(plan.previous):
            raise ValueError(f"plan '{plan.name}' and the previous predictor do not belong together")
        self.plan = plan
        self.previous = previous
        self.weights = weights
        self.memory = memory if memory is not None else max(1.0, physical_memory() * CPU_SHARE / GIB)
        self.limit_of_maps = min(self.memory * GIB * SHARE_OF_MAPS, LARGEST_MAPS)
        self.task = find_task(plan.task)(plan)
        self.domain = find_domain(plan.domain)(plan)
        self.ensemble = Ensemble(self.task, networks, device, batch_size(self.task, device, self.memory, len(networks)))

    @abstractmethod
    def predict_case(
        self,
        case: Case,
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
        mirror: bool = True,
        progress: Progress | None = None,
    ) -> Prediction:
        """Predict a case on its native grid; the result lies on the same grid. The label of the case, if any, is not looked at.

        `progress` is told about windows where there are many.
        """

    def alone(
        self,
        case: Case,
        probabilities: bool,
        mirror: bool,
        scratch: Scratch,
        progress: Progress | None = None,
        uncertainty: bool = False,
        known: dict[str, NDArray[Any]] | None = None,
    ) -> Prediction:
        """What this member says of a case on its native grid, before anything is combined or finished.

        `known` holds label maps of the case by the `weights` of members that have predicted it, and gets this one: the stage before a
        cascade may be such a member.
        """
        native = case.grid
        earlier = self._earlier(case, mirror, progress, known or {})
        prepared = self.domain.prepare(dataclasses.replace(case, label=None, prior=earlier), scratch)
        del earlier
        trail = prepared.trail
        maps = self._stitched(PreparedCase(case.id, prepared.image, None, (), native, trail, prepared.prior), mirror, progress)
        del prepared
        decoded = self.task.decode(self.domain.native(maps, trail, self.task.heads), case.id, probabilities, scratch, uncertainty)
        del maps
        labels = self.domain.restore(decoded.labels, trail, scratch=scratch)
        if known is not None:
            known[self.weights] = labels
        chances = None if decoded.probabilities is None else self._restored_maps(decoded.probabilities, trail, native.shape, scratch)
        found = None if decoded.found is None else self.domain.restore_objects(decoded.found, trail)
        return Prediction(case.id, labels, chances, decoded.uncertainty, decoded.objects, found)

    def _earlier(self, case: Case, mirror: bool, progress: Progress | None, known: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
        """Of a cascade, the prediction that is a further input."""
        if self.previous is None:
            return None
        if (raw := known.get(self.previous.weights)) is not None:
            found = self.previous.task.finish(raw.copy(), case.grid.spacing)
        else:
            found = self.previous.predict_case(case, mirror=mirror, progress=progress).labels
        classes: NDArray[Any] = self.plan.data.labels.semantic(found)
        return classes

    def _stitched(self, case: PreparedCase, mirror: bool, progress: Progress | None) -> dict[str, Stitched]:
        """The blended maps and merged objects of all networks together, by head."""
        axes = self.plan.inference.mirror if mirror else ()
        runs = self.ensemble.runners(axes) if self.domain.blends_each_network else (self.ensemble.runner(axes),)
        memory = self.limit_of_maps / len(runs)
        counted = self._counted(runs, case.shape, progress)
        try:
            parts = [self.domain.stitch(case, run, self.task.heads, self.ensemble.batch_size, memory) for run in counted]
        finally:
            given_back()
        return self.domain.mean(parts, self.limit_of_maps) if len(parts) > 1 else parts[0]

    def _counted(self, runs: Sequence[Run], shape: tuple[int, ...], progress: Progress | None) -> Sequence[Run]:
        total = self.domain.windows(shape) * len(runs)
        if progress is None or total < MANY_WINDOWS:
            return runs
        done = 0

        def counted(run: Run, windows: Batch) -> Mapping[str, Tensor]:
            nonlocal done
            outputs = run(windows)
            done += len(windows)
            progress.update("windows of this case", done, total)
            return outputs

        return [partial(counted, run) for run in runs]

    def _restored_maps(
        self, maps: NDArray[np.float16], trail: tuple[Step, ...], shape: tuple[int, ...], scratch: Scratch
    ) -> NDArray[np.float16]:
        """Probabilities on the native grid: outside of what the network saw all is background."""
        background = self.plan.data.labels.exclusive
        restored: NDArray[np.float16] = scratch.zeros((len(maps), *shape), np.float16)
        for k, values in enumerate(maps):
            copy(self.domain.restore(values, trail, fill=1 if background and k == 0 else 0, scratch=scratch), restored[k])
        return restored


def stages_first(members: Sequence[Member]) -> list[int]:
    """The places of members in the order in which they predict a case: what may be the stage before a cascade goes before cascades."""
    return sorted(range(len(members)), key=lambda place: members[place].previous is not None)
