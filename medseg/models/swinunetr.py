"""MONAI's SwinUNETR (Hatamizadeh et al. 2022) as a network family, for `medseg plan --network swinunetr`."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.device import Machine
from medseg.geometry import Shape
from medseg.models.base import Configured, Head, NetworkFamily, Outputs
from medseg.record import Section

STRIDE = 32  # the patches of 2 voxels and four mergings halve every axis five times
HEADS = (3, 6, 12, 24)  # of attention per stage, in the paper and in MONAI
WIDTHS = {"cpu": 12, "mps": 24, "cuda": 48}  # channels of the first stage; 48 is the paper's
BLOCKS = (2, 2, 2, 2)
ATTENTION = 7


class SwinUNETRSettings(Section):
    """A Swin transformer as the encoder of a U-Net of convolutions. Every stage halves every axis; there are five halvings."""

    kind: Literal["swinunetr"] = "swinunetr"
    axes: int = Field(ge=2, le=3, description="Axes of a window.")
    width: int = Field(ge=12, multiple_of=12, description="Channels of the first stage, doubled at every merging.")
    blocks: tuple[int, int, int, int] = Field(description="Transformer blocks of each stage; every second one shifts its windows.")
    attention: int = Field(ge=2, description="Edge, in tokens, of the windows within which tokens attend to each other.")


class _SwinUNETR(nn.Module):
    """MONAI's network behind medseg's outputs: one map per head."""

    def __init__(self, settings: SwinUNETRSettings, channels: int, heads: tuple[Head, ...]) -> None:
        super().__init__()
        from monai.networks.nets.swin_unetr import SwinUNETR  # takes seconds to import, so only where it is used

        self.names = [head.name for head in heads]
        self.sizes = [head.channels for head in heads]
        self.network = SwinUNETR(
            in_channels=channels,
            out_channels=sum(self.sizes),
            depths=settings.blocks,
            num_heads=HEADS,
            window_size=settings.attention,
            feature_size=settings.width,
            spatial_dims=settings.axes,
        )
        with torch.no_grad():
            prior = [value for head in heads for value in head.prior or (0.0,) * head.channels]
            self.network.out.conv.conv.bias.copy_(torch.tensor(prior))

    def forward(self, image: Tensor) -> Outputs:
        """`image`: `(N, channels, *window)`."""
        parts = self.network(image).split(self.sizes, dim=1)
        return {name: [part] for name, part in zip(self.names, parts, strict=True)}


class SwinUNETRFamily(NetworkFamily):
    """MONAI's SwinUNETR: a transformer that attends within shifted windows, and a decoder of convolutions; isotropic pooling."""

    Settings = SwinUNETRSettings

    @staticmethod
    def configure(window: Shape, spacing: tuple[float, ...], machine: Machine) -> Configured:
        """The published network; the window is rounded up to multiples of 32, of which there must be more than one."""
        rounded = [-(-n // STRIDE) * STRIDE for n in window]
        if all(n == STRIDE for n in rounded):
            largest = max(range(len(window)), key=lambda a: (window[a] * spacing[a], a))
            rounded[largest] *= 2
        width = WIDTHS[machine.kind]
        settings = SwinUNETRSettings(axes=len(window), width=width, blocks=BLOCKS, attention=ATTENTION)
        reasons = {
            "kind": "Asked for by name.",
            "axes": f"The window has {len(window)} axes.",
            "width": f"{width} channels, as in the paper."
            if machine.kind == "cuda"
            else f"{width} channels: a {'half' if width == 24 else 'quarter'} of the paper's {WIDTHS['cuda']}, because maps at full resolution "
            "have as many, and this kind of device computes less than the paper's GPUs.",
            "blocks": f"{BLOCKS[0]} blocks per stage, the second with shifted windows (the paper's, and MONAI's).",
            "attention": f"Windows of {ATTENTION} tokens per axis (the paper's, and MONAI's).",
        }
        return Configured(settings, tuple(rounded), reasons)

    @staticmethod
    def check(settings: Any, window: Shape) -> str:
        """Windows must be multiples of 32, and more than one voxel must be left at the bottleneck."""
        if len(window) != settings.axes:
            return f"the window has {len(window)} axes but the network has {settings.axes}"
        if any(n % STRIDE for n in window):
            return f"window {list(window)} is not a multiple of the network's total stride {STRIDE}"
        if math.prod(window) == STRIDE ** len(window):
            return f"window {list(window)} leaves one voxel at the bottleneck, which cannot be normalised; use a larger one"
        return ""

    @staticmethod
    def build(settings: Any, channels: int, heads: tuple[Head, ...]) -> nn.Module:
        """See `NetworkFamily.build`."""
        return _SwinUNETR(settings, channels, heads)
