"""Trained networks as one function from windows to outputs: maps of folds and mirrored views are averaged, slots of objects come together."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from medseg.case import Batch
from medseg.device import autocast_dtype, machine, out_of_memory, release_cache
from medseg.errors import ResourceError
from medseg.models.base import ObjectHead, Outputs
from medseg.models.blocks import memory_format
from medseg.models.slots import Slots
from medseg.pages import kept_pages
from medseg.tasks.base import Task

LOG = logging.getLogger(__name__)
LARGEST_BATCH = {"cpu": 4, "mps": 8, "cuda": 16}  # beyond it a device gains nothing
PIECES = 8  # in which outputs are mirrored
LARGEST_OUTPUTS = 2**28  # bytes of a batch's outputs on a CPU: of a hundred classes one window's are as many


class Ensemble:
    """Networks of one plan on one device.

    Maps are averaged before the task decodes them (logits for most tasks), over folds and over mirrored views, as nnU-Net does. Objects have
    no mean before somebody says which are the same: slots of all views and networks stand side by side.
    """

    def __init__(self, task: Task, networks: Sequence[nn.Module], device: torch.device, batch_size: int) -> None:
        self.task = task
        self.device = device
        self.batch_size = batch_size
        self.summed_on_device = True  # over views and networks; False after that ran out of memory
        self.layout = memory_format(device, len(task.plan.window))
        self.networks = tuple(network.to(device).to(memory_format=self.layout).eval() for network in networks)  # type: ignore[call-overload]
        self.dtype = autocast_dtype(device)

    def runner(self, mirror: Sequence[int]) -> Callable[[Batch], dict[str, Tensor]]:
        """The function for `Domain.stitch`: windows to averaged outputs `(N, channels, *window)`, or to slots of all views and networks
        `(N, views, slots, channels)`, float32 on the CPU; see `Domain.stitch`.

        Args:
            mirror: window axes to mirror; all combinations are averaged.
        """
        return partial(self._average, views=_views(mirror), networks=self.networks)

    def runners(self, mirror: Sequence[int]) -> tuple[Callable[[Batch], dict[str, Tensor]], ...]:
        """As `runner`, one function for each network."""
        return tuple(partial(self._average, views=_views(mirror), networks=(network,)) for network in self.networks)

    def _average(self, windows: Batch, views: Sequence[tuple[int, ...]], networks: Sequence[nn.Module]) -> dict[str, Tensor]:
        try:
            return self._forward(windows, views, networks)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if not self._retreats(len(windows), len(views)):
                if self.device.type == "cpu":
                    raise  # its memory is that of the case's maps, too, which can go into files: the case is predicted again with less
                raise ResourceError.of(
                    "one window does not fit on the device",
                    where=str(self.device),
                    found=f"window {' x '.join(map(str, windows.image.shape[2:]))}",
                    fix="Close other programs that use it, or predict on another device (--device cpu).",
                ) from error
            # freed by leaving the handler: the exception's traceback holds the activations
        release_cache(self.device)
        parts: list[dict[str, Tensor]] = []
        done = 0
        while done < len(windows):
            part = windows[done : done + self.batch_size]
            parts.append(self._average(part, views, networks))
            done += len(part)
        if len(parts) == 1:
            return parts[0]
        objects = {head.name for head in self.task.heads if isinstance(head, ObjectHead)}
        several = {name: [one[name] for one in parts] for name in parts[0]}
        return {name: torch.cat(_as_wide(some) if name in objects else some) for name, some in several.items()}

    def _retreats(self, windows: int, views: int) -> bool:
        """Less at once from now on, after so much ran out of memory; False where there is nothing less."""
        if windows > 1:
            self.batch_size = (windows + 1) // 2
            LOG.warning("out of memory on %s with %d windows at once: %d from now on", self.device, windows, self.batch_size)
        elif min(views, self.batch_size) > 1:
            self.batch_size = 1
            LOG.warning("out of memory on %s: mirrored views of a window go one by one", self.device)
        elif self.device.type != "cpu" and self.summed_on_device:
            self.summed_on_device = False
            LOG.warning("out of memory on %s with one window: outputs are summed up in main memory", self.device)
        else:
            return False
        return True

    @torch.inference_mode()
    def _forward(self, windows: Batch, views: Sequence[tuple[int, ...]], networks: Sequence[nn.Module]) -> dict[str, Tensor]:
        images = self.task.inputs(windows.to(self.device))
        total: dict[str, Tensor] = {}
        slots: dict[str, list[Tensor]] = {}
        together = max(1, self.batch_size // len(windows))  # a few windows alone leave a device idle, their mirrored views fill it
        # Within one block weights are rounded to 16 bits once for all views.
        with kept_pages(), torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            for start in range(0, len(views), together):
                some = views[start : start + together]
                stacked = torch.cat([images.flip(view) if view else images for view in some]).contiguous(memory_format=self.layout)
                for network in networks:
                    # In a function of its own, which leaves nothing behind for the next network.
                    self._add(network(stacked), some, windows.image.shape[2:], total, slots)
        count = len(views) * len(networks)
        means = {name: maps.div_(count).cpu() for name, maps in total.items()}
        return means | {name: torch.stack(_as_wide(parts), 1) for name, parts in slots.items()}

    def _add(
        self,
        outputs: Outputs,
        views: Sequence[tuple[int, ...]],
        window: Sequence[int],
        total: dict[str, Tensor],
        slots: dict[str, list[Tensor]],
    ) -> None:
        """Add outputs for mirrored views of the same windows, `(views times N, channels, *window)`, to their sums, and slots to the others."""
        heads = {head.name: head for head in self.task.heads}
        for name, maps in outputs.items():
            head = heads[name]
            if isinstance(head, ObjectHead):
                for view, part in zip(views, maps[0].float().cpu().chunk(len(views)), strict=True):
                    found = Slots.unpack(_filled(part), head.axes, head.mask)
                    filled = (found.classes > 0)[..., None]
                    slots.setdefault(name, []).append(found.mirrored([axis - 2 for axis in view], window).pack() * filled)
                continue
            values = maps[0].float() if self.summed_on_device else maps[0].cpu().float()
            for view, part in zip(views, values.chunk(len(views)), strict=True):
                part = head.turned(part, [axis - 2 for axis in view])
                if name in total:
                    _add_mirrored(part, view, total[name])
                else:  # as it is; of several views the others would stay in memory with it
                    total[name] = part.flip(view) if view else part.clone() if len(views) > 1 else part


def _filled(packed: Tensor) -> Tensor:
    """Packed slots `(N, slots, channels)`, filled ones first, and only as many as are filled in the fullest window; the others are zeros."""
    filled = packed[..., 1] >= 0.5
    order = (~filled).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(filled.sum(1).max())]
    rows = torch.arange(len(packed))[:, None]
    return packed[rows, order].masked_fill_(~filled[rows, order][..., None], 0)


def _as_wide(parts: Sequence[Tensor]) -> list[Tensor]:
    """Packed slots `(..., slots, channels)`, as many each: empty ones are added."""
    most = max(part.shape[-2] for part in parts)
    return [nn.functional.pad(part, (0, 0, 0, most - part.shape[-2])) for part in parts]


def _add_mirrored(part: Tensor, view: tuple[int, ...], total: Tensor) -> None:
    """Piece by piece: to mirror outputs is to copy them."""
    size = part.shape[2]
    piece = math.ceil(size / PIECES) if view else size
    for low in range(0, size, piece):
        high = min(low + piece, size)
        mirrored = part[:, :, size - high : size - low] if 2 in view else part[:, :, low:high]
        total[:, :, low:high].add_(mirrored.flip(view) if view else mirrored)


def _views(mirror: Sequence[int]) -> list[tuple[int, ...]]:
    """Axes of a batch to flip, for each of the views."""
    return [tuple(axis + 2 for axis in axes) for n in range(len(mirror) + 1) for axes in itertools.combinations(mirror, n)]


def batch_size(task: Task, device: torch.device, memory: float, networks: int) -> int:
    """Windows at once: a window without gradients takes less than a third of what it takes in training; half of the memory is for it.

    Slots of objects of all views and networks are kept, at most all of them.
    """
    plan, most = task.plan, LARGEST_BATCH.get(device.type, 1)
    offered = memory if device.type == "cpu" else machine(str(device)).memory
    per_window = max(plan.memory.training / plan.training.batch_size / 3, 1e-6)
    if device.type == "cpu":
        kept = networks * 2 ** len(plan.inference.mirror)
        numbers = sum(head.numbers(plan.window) * (kept if isinstance(head, ObjectHead) else 1) for head in task.heads)
        most = min(most, LARGEST_OUTPUTS // (4 * numbers))
    return max(1, min(most, int(offered / 2 / per_window)))
