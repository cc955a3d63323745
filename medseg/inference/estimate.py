"""What a prediction will take of memory: told before it begins, and kept within what is free."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil

from medseg.dataset import CaseFiles
from medseg.device import physical_memory
from medseg.errors import MedsegError, ResourceError
from medseg.inference.checks import check_fit
from medseg.io.images import read_header
from medseg.models.base import ObjectHead
from medseg.peak import GIB, own_memory
from medseg.progress import Progress

LOG = logging.getLogger(__name__)

if TYPE_CHECKING:
    from medseg.inference.predictor import Predictor

SHARE_OF_FREE = 0.9  # of the memory that is free now: other programs may ask for some, too
SMALLEST = 2**-6  # of the memory that was allowed; a case that does not fit within this fails
RESIDENT = 2**28  # bytes of maps in files that are in memory at a time, about


@dataclass(frozen=True)
class Estimate:
    """GiB that the prediction of one case takes.

    Attributes:
        memory: of main memory at the peak, with what the process holds already.
        files: in temporary files.
        device: on a GPU; 0 where the networks run on the CPU.
        windows: that a network sees at once.
    """

    memory: float
    files: float
    device: float
    windows: int

    def __str__(self) -> str:
        count = f"{self.windows} window{'s' if self.windows > 1 else ''} at once"
        device = f", {self.device:.1f} GiB on the device" if self.device else ""
        files = f", {self.files:.1f} GiB in temporary files" if self.files >= 0.05 else ""
        return f"about {self.memory:.1f} GiB of memory{device}{files}; {count}"


def ready(model: Predictor, cases: Sequence[CaseFiles], progress: Progress) -> Predictor:
    """The model within its memory and what is free now, after saying what the largest of the cases will take.

    Where that is more than allowed, whatever is left out of memory, the model takes the least possible, and it is said.
    """
    allowed, free = model.memory, SHARE_OF_FREE * free_memory()
    if free < allowed:
        progress.say(f"only {free:.1f} of {allowed:.1f} GiB of memory are free: fewer windows at once, larger maps in temporary files")
        model = model.within(free)
    case = largest(cases)
    estimate = estimated(model, case)
    least = SMALLEST * model.memory
    while estimate is not None and estimate.memory > allowed and model.memory > least:
        model = model.within(max(model.memory / 2, least))
        estimate = estimated(model, case)
    if estimate is not None:
        beyond = f"; more than the {allowed:.1f} GiB allowed: the least possible" if estimate.memory > allowed else ""
        progress.say(f"the largest case takes {estimate}{beyond}")
    return model


def retreated(model: Predictor, allowed: float, files: CaseFiles) -> Predictor:
    """The model with a quarter of its memory, after it ran out of it.

    Raises:
        ResourceError: that would be less than `SMALLEST` of the GiB that were `allowed`.
    """
    less = model.memory / 4
    if less < SMALLEST * allowed:
        raise ResourceError.of(
            "does not fit into memory",
            where=str(files.images[0]),
            found=f"shape {read_header(files.images[0]).shape}",
            fix="Close other programs, or use a larger machine.",
        )
    smaller = model.within(less)
    LOG.warning(
        "out of memory: the case is predicted again within %.2g GiB, with maps in temporary files and windows in batches of %d",
        less,
        smaller.ensemble.batch_size,
    )
    return smaller


def free_memory() -> float:
    """GiB of main memory that this process can still take."""
    return float(min(psutil.virtual_memory().available, physical_memory())) / GIB


def largest(cases: Sequence[CaseFiles]) -> CaseFiles:
    """The case with the largest files."""

    def size(case: CaseFiles) -> int:
        return sum(path.stat().st_size for path in case.images if path.exists())

    return max(cases, key=size)


def estimated(predictor: Predictor, files: CaseFiles) -> Estimate | None:
    """What one case will take, by its headers alone; None where these do not fit, which is told when its turn comes."""
    try:
        headers = [read_header(path) for path in files.images]
        check_fit(predictor.plan.data, files.id, sum(header.channels for header in headers), headers[0].shape)
        shapes = {member: member.domain.extent(headers[0].grid) for member in (predictor, *predictor.partners)}
    except MedsegError:
        return None
    native = math.prod(headers[0].shape)
    inside, outside, device, count = 0.0, 0.0, 0.0, 1
    decided = native * (5 if predictor.plan.data.labels.things else 1)  # codes of objects are longer, and take a byte more to be painted
    arrays = [
        native * sum(h.channels * np.dtype(h.dtype).itemsize for h in headers),
        native * 4 * sum(h.channels for h in headers),
        decided,
    ]
    for member, shape in shapes.items():
        plan, ensemble = member.plan, member.ensemble
        views, networks = 2 ** len(plan.inference.mirror), len(ensemble.networks)
        blends, summed = (networks, views) if member.domain.blends_each_network else (1, views * networks)
        prepared = math.prod(shape) * 4 * len(plan.data.channels)
        maps = [member.domain.footprint(shape, head) for head in member.task.heads for _ in range(blends)]
        count = min(ensemble.batch_size, member.domain.windows(shape))
        at_once = count * min(views, max(1, ensemble.batch_size // count))  # mirrored views of a few windows fill a batch
        # As one network gives them for some views, and the sum over views and networks; slots are not summed up, but all kept.
        outputs = 0
        for head in member.task.heads:
            kept_together = summed if isinstance(head, ObjectHead) else int(summed > 1)
            outputs += (at_once + count * kept_together) * 4 * head.numbers(plan.window)
        one = plan.memory.training / plan.training.batch_size / 3
        kept = [size for size in (*arrays, prepared) if size <= predictor.scratch.limit]
        limit = member.limit_of_maps / max(1, len(maps))
        held = sum(size for size in maps if size <= limit) + min(RESIDENT, sum(size for size in maps if size > limit))
        on_cpu = ensemble.device.type == "cpu"
        inside = max(inside, sum(kept) + held + outputs + (at_once * one * GIB if on_cpu else 0))
        outside = max(outside, sum((*arrays, prepared)) - sum(kept) + sum(size for size in maps if size > limit))
        device = max(device, 0.0 if on_cpu else at_once * one)
    return Estimate(own_memory() / GIB + inside / GIB, outside / GIB, device, count)
