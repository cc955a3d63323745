"""What the engine knows of a network: how it is planned, built, and what it returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

from medseg import registry
from medseg.device import Machine
from medseg.geometry import Shape
from medseg.record import Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Outputs: TypeAlias = "dict[str, list[Tensor]]"
"""Head name -> maps `(N, C, *spatial)` from full resolution to coarse. More than one only in training mode (deep supervision) and of heads with
levels. Of an `ObjectHead` one tensor of slots, `(N, slots, channels)`."""


@dataclass(frozen=True)
class Head:
    """One output of a network.

    Attributes:
        name: name of the output.
        channels: its channels.
        prior: the logit of each channel before anything is learnt (the head's first bias), or empty for zeros.
        names: what each channel stands for, by which weights find their place in another network (`models.transfer`); or empty.
        levels: decoder stages at which it answers, in training and inference alike, finest first (0 is full resolution); empty: at full
            resolution, in training also at coarser ones where the network is supervised deeply. Heads with levels are a feature pyramid for
            what a task puts on top; nobody stitches them.
        vector: the channels are one displacement, in the order of the window's axes and in proportion to voxels: it turns round where a view is
            mirrored, and grows where maps are resampled to smaller voxels.
    """

    name: str
    channels: int
    prior: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    vector: bool = False
    levels: tuple[int, ...] = ()

    def turned(self, maps: Tensor, axes: Sequence[int]) -> Tensor:
        """Maps `(N, C, *window)` of a view that is mirrored along these window axes, for mirroring them back: displacements turn round."""
        if not self.vector or not axes:
            return maps
        signs = maps.new_tensor([-1.0 if channel in axes else 1.0 for channel in range(self.channels)])
        return maps * signs.reshape(-1, *(1,) * (maps.ndim - 2))

    def numbers(self, window: Shape) -> int:
        """How many numbers it gives for one view of one window."""
        return self.channels * math.prod(window)


@dataclass(frozen=True, kw_only=True)
class ObjectHead(Head):
    """An output that is no map but slots for objects, `(N, slots, channels)` (`models.slots.Slots`). Views and networks are not averaged:
    each adds slots of its own.

    Attributes:
        channels: the numbers in one slot, which follow from the others.
        slots: objects that one view of a window can have, at most.
        mask: cells of an object's mask along each axis.
        axes: axes of windows.
    """

    channels: int = field(init=False)
    slots: int
    mask: int
    axes: int

    def __post_init__(self) -> None:
        from medseg.models.slots import slot_channels

        object.__setattr__(self, "channels", slot_channels(self.axes, self.mask))

    def numbers(self, window: Shape) -> int:
        """See `Head.numbers`; whatever the window."""
        return self.slots * self.channels


@dataclass(frozen=True)
class Configured:
    """A network planned for a window: its settings, the window rounded to what the network can take, and reasons by field name."""

    settings: Section
    window: Shape
    reasons: dict[str, str]


class NetworkFamily(ABC):
    """A family of networks, registered in `medseg.networks`. `build(...)` returns a module with `forward(image) -> Outputs`."""

    Settings: ClassVar[type[Section]]

    @staticmethod
    @abstractmethod
    def configure(window: Shape, spacing: tuple[float, ...], machine: Machine) -> Configured:
        """Plan the network for windows of about this size (voxels) and spacing (mm, one per window axis)."""

    @staticmethod
    @abstractmethod
    def check(settings: Any, window: Shape) -> str:
        """What is wrong with these settings for this window; empty when nothing is."""

    @staticmethod
    @abstractmethod
    def build(settings: Any, channels: int, heads: tuple[Head, ...]) -> nn.Module:
        """The network with `channels` input channels. Weights are initialised with torch's global generator."""

    @staticmethod
    def levels(settings: Any) -> tuple[Shape, ...]:
        """Strides of the decoder stages at which heads may answer (`Head.levels`), against the window, finest first; none: at full resolution only."""
        return ()

    @staticmethod
    def freeze(network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        """Rearrange a trained network that will only predict, on this device in this type (None: float32), so that it does so faster."""
        return  # most families leave it as it is


def find_network(name: str) -> type[NetworkFamily]:
    """The network family registered as `name`."""
    return cast(type[NetworkFamily], registry.networks.get(name))
