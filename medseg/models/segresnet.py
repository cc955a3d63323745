"""MONAI's SegResNet (Myronenko 2018, without the autoencoder branch) as a network family, for `medseg plan --network segresnet`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.device import Machine
from medseg.geometry import Shape
from medseg.models.base import Configured, Head, NetworkFamily, Outputs
from medseg.record import Section

BLOCKS = (1, 2, 2, 4)  # residual blocks per stage in the paper and in MONAI
SMALLEST_MAP = 4  # voxels that every axis of the coarsest stage keeps
WIDTHS = {"cpu": 16, "mps": 32, "cuda": 32}  # channels at full resolution
GROUPS = 8  # of its group normalisation; widths must be multiples


class SegResNetSettings(Section):
    """A SegResNet: every stage halves every axis."""

    kind: Literal["segresnet"] = "segresnet"
    axes: int = Field(ge=2, le=3, description="Axes of a window.")
    width: int = Field(ge=GROUPS, multiple_of=GROUPS, description="Channels at full resolution, doubled at every stage.")
    blocks: tuple[int, ...] = Field(min_length=1, description="Residual blocks of each stage, full resolution first.")


class _SegResNet(nn.Module):
    """MONAI's network behind medseg's outputs: one map per head."""

    def __init__(self, settings: SegResNetSettings, channels: int, heads: tuple[Head, ...]) -> None:
        super().__init__()
        from monai.networks.nets import SegResNet  # takes seconds to import, so only where it is used

        self.names = [head.name for head in heads]
        self.sizes = [head.channels for head in heads]
        self.network = SegResNet(
            spatial_dims=settings.axes,
            init_filters=settings.width,
            in_channels=channels,
            out_channels=sum(self.sizes),
            blocks_down=settings.blocks,
            blocks_up=(1,) * (len(settings.blocks) - 1),
        )
        last = [module for module in self.network.conv_final.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))][-1]
        with torch.no_grad():
            last.bias.copy_(torch.tensor([value for head in heads for value in head.prior or (0.0,) * head.channels]))  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Outputs:
        """`image`: `(N, channels, *window)`."""
        parts = self.network(image).split(self.sizes, dim=1)
        return {name: [part] for name, part in zip(self.names, parts, strict=True)}


class SegResNetFamily(NetworkFamily):
    """MONAI's SegResNet: residual blocks, group normalisation, isotropic pooling."""

    Settings = SegResNetSettings

    @staticmethod
    def configure(window: Shape, spacing: tuple[float, ...], machine: Machine) -> Configured:
        """As many stages as the smallest axis allows; the window is rounded up to what they halve evenly."""
        stages = 1
        while stages < len(BLOCKS) and min(window) >= SMALLEST_MAP * 2**stages:
            stages += 1
        stride = 2 ** (stages - 1)
        rounded = tuple(-(-n // stride) * stride for n in window)
        width = WIDTHS[machine.kind]
        settings = SegResNetSettings(axes=len(window), width=width, blocks=BLOCKS[:stages])
        reasons = {
            "kind": "Asked for by name.",
            "axes": f"The window has {len(window)} axes.",
            "width": f"{width} channels: half of the U-Net's on a CPU, because the blocks at full resolution take most of the time."
            if machine.kind == "cpu"
            else f"{width} channels, as the U-Net has at full resolution; doubled below.",
            "blocks": f"{stages} stages: the smallest axis of {'x'.join(map(str, window))} keeps at least {SMALLEST_MAP} voxels.",
        }
        return Configured(settings, rounded, reasons)

    @staticmethod
    def check(settings: Any, window: Shape) -> str:
        """Windows must be divisible by the total stride."""
        stride = 2 ** (len(settings.blocks) - 1)
        if len(window) != settings.axes:
            return f"the window has {len(window)} axes but the network has {settings.axes}"
        if any(n % stride for n in window):
            return f"window {list(window)} is not a multiple of the network's total stride {stride}"
        return ""

    @staticmethod
    def build(settings: Any, channels: int, heads: tuple[Head, ...]) -> nn.Module:
        """See `NetworkFamily.build`."""
        return _SegResNet(settings, channels, heads)
