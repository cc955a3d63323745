"""The U-Net (Ronneberger et al. 2015; Çiçek et al. 2016) for windows of one to three axes, plain or with residual blocks."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medseg.device import Machine
from medseg.geometry import Shape
from medseg.models.base import Configured, Head, NetworkFamily, Outputs
from medseg.models.blocks import ConvBlock, ResidualBlock, convolution, memory_format, upsample, upsampling
from medseg.models.topology import CLOSE_SPACING, SMALLEST_MAP, misfit, topology
from medseg.record import Section


class UNetSettings(Section):
    """A U-Net, stage by stage from full resolution to the bottleneck."""

    kind: Literal["unet"] = "unet"
    features: tuple[int, ...] = Field(min_length=1, description="Channels of each stage.")
    strides: tuple[Shape, ...] = Field(description="Stride of each stage's first convolution, per window axis; the first is all ones.")
    kernels: tuple[Shape, ...] = Field(description="Kernel of each stage's convolutions, per window axis.")
    encoder: tuple[int, ...] = Field(description="Blocks of each encoder stage after its first convolution.")
    decoder: tuple[int, ...] = Field(description="Blocks of each decoder stage (one stage fewer), finest first.")
    residual: bool = Field(description="Blocks are two convolutions with a shortcut instead of one convolution.")
    skip: Literal["add", "concat"] = Field(description="How encoder maps join the decoder: summed, or fused by a convolution.")
    deep_supervision: int = Field(ge=0, description="Number of coarser decoder stages that are trained to predict too.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        stages = len(self.features)
        for name, length in (("strides", stages), ("kernels", stages), ("encoder", stages), ("decoder", stages - 1)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; {stages} features ask for {length}")
        axes = len(self.strides[0])
        if axes not in (1, 2, 3) or any(len(s) != axes for s in (*self.strides, *self.kernels)):
            raise ValueError("strides and kernels need the same number of axes (1, 2 or 3) in every stage")
        if any(n < 1 for n in (*self.features, *(s for stride in self.strides for s in stride))):
            raise ValueError("features and strides must be positive")
        if any(n < 0 for n in (*self.encoder, *self.decoder)):
            raise ValueError("numbers of blocks cannot be negative")
        if any(s != 1 for s in self.strides[0]):
            raise ValueError(f"the first stage works at full resolution, so its stride is all ones; found {list(self.strides[0])}")
        if any(k < 1 or k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ValueError(f"kernels must be odd; found {[list(k) for k in self.kernels]}")
        if self.deep_supervision > max(0, stages - 2):
            raise ValueError(f"deep_supervision is at most {max(0, stages - 2)} with {stages} stages; found {self.deep_supervision}")
        return self


class UNet(nn.Module):
    """Maps `(N, channels, *window)` to `(N, head channels, *window)` per head; decoder stages finer than any head's level do not exist."""

    def __init__(self, settings: UNetSettings, channels: int, heads: tuple[Head, ...]) -> None:
        super().__init__()
        widths, kernels, strides = settings.features, settings.kernels, settings.strides
        self.supervised = settings.deep_supervision
        self.concat = settings.skip == "concat"
        self.axes = len(strides[0])
        self.levels = {head.name: head.levels or tuple(range(self.supervised + 1)) for head in heads}
        self.always = {head.name for head in heads if head.levels}
        self.finest = min((level for levels in self.levels.values() for level in levels), default=0)  # decoder stage that anybody looks at
        lower = range(len(widths) - 1)
        self.enter = nn.ModuleList(
            ConvBlock(channels if s == 0 else widths[s - 1], widths[s], kernels[s], strides[s]) for s in range(len(widths))
        )
        self.encoder = nn.ModuleList(_blocks(settings, s, settings.encoder[s]) for s in range(len(widths)))
        used = [s >= self.finest for s in lower]
        self.up = nn.ModuleList(upsampling(widths[s + 1], widths[s], strides[s + 1]) if used[s] else nn.Identity() for s in lower)
        self.fuse = nn.ModuleList(
            ConvBlock(2 * widths[s], widths[s], kernels[s]) if self.concat and used[s] else nn.Identity() for s in lower
        )
        self.decoder = nn.ModuleList(_blocks(settings, s, settings.decoder[s]) if used[s] else nn.Identity() for s in lower)
        self.heads = nn.ModuleDict(
            {head.name: nn.ModuleList(_head(widths[s], head, self.axes) for s in self.levels[head.name]) for head in heads}
        )

    def forward(self, image: Tensor) -> Outputs:
        """`image`: `(N, channels, *window)`. Coarser maps only in training mode, and of heads with levels."""
        x = image.contiguous(memory_format=memory_format(image.device, self.axes))
        skips: list[Tensor] = []
        for enter, blocks in zip(self.enter, self.encoder, strict=True):
            x = blocks(enter(x))
            skips.append(x)
        maps = {len(skips) - 1: skips.pop()}
        for s in reversed(range(self.finest, len(skips))):
            x = upsample(self.up[s], x)
            x = self.fuse[s](torch.cat([skips[s], x], 1)) if self.concat else skips[s] + x
            x = self.decoder[s](x)
            maps[s] = x
        outputs: Outputs = {}
        for name, stages in self.heads.items():
            assert isinstance(stages, nn.ModuleList)
            pairs = list(zip(stages, self.levels[name], strict=True))
            outputs[name] = [stage(maps[s]) for stage, s in (pairs if self.training or name in self.always else pairs[:1])]
        return outputs


class UNetFamily(NetworkFamily):
    """U-Nets, plain or residual, with anisotropic pooling by nnU-Net's rule."""

    Settings = UNetSettings

    @staticmethod
    def configure(window: Shape, spacing: tuple[float, ...], machine: Machine) -> Configured:
        """nnU-Net's topology; width and depth by kind of device."""
        widths = CPU_FEATURES if machine.kind == "cpu" else GPU_FEATURES[len(window)]
        top = topology(window, spacing, len(widths))
        stages = len(top.strides)
        small = machine.kind == "cpu"
        settings = UNetSettings(
            features=widths[:stages],
            strides=top.strides,
            kernels=top.kernels,
            encoder=(0,) + (1,) * (stages - 1) if small else (1,) * stages,
            decoder=(1,) * (stages - 1),
            residual=False,
            skip="add" if small else "concat",
            deep_supervision=0 if small else max(0, min(stages - 2, 3)),
        )
        return Configured(settings, top.window, _reasons(settings, window, spacing, top.window, machine))

    @staticmethod
    def levels(settings: Any) -> tuple[Shape, ...]:
        """See `NetworkFamily.levels`: all stages, the bottleneck too."""
        total = tuple(1 for _ in settings.strides[0])
        found = []
        for stride in settings.strides:
            total = tuple(a * b for a, b in zip(total, stride, strict=True))
            found.append(total)
        return tuple(found)

    @staticmethod
    def check(settings: Any, window: Shape) -> str:
        """See `topology.misfit`."""
        return misfit(window, settings.strides)

    @staticmethod
    def build(settings: Any, channels: int, heads: tuple[Head, ...]) -> nn.Module:
        """See `NetworkFamily.build`."""
        return UNet(settings, channels, heads)


CPU_FEATURES = (32, 64, 128, 192, 192, 192)
GPU_FEATURES: dict[int, tuple[int, ...]] = {
    1: (32, 64, 128, 256, 320, 320),
    2: (32, 64, 128, 256, 512, 512, 512, 512),
    3: (32, 64, 128, 256, 320, 320),
}


def _blocks(settings: UNetSettings, stage: int, count: int) -> nn.Sequential:
    width, kernel = settings.features[stage], settings.kernels[stage]
    if settings.residual:
        return nn.Sequential(*(ResidualBlock(width, kernel) for _ in range(count)))
    return nn.Sequential(*(ConvBlock(width, width, kernel) for _ in range(count)))


def _head(width: int, head: Head, axes: int) -> nn.Module:
    """A 1x1 convolution that starts at the classes' frequencies, plus opinions of size 1.

    Without the prior, the first hundreds of steps only teach that most voxels are background.
    """
    layer = convolution(width, head.channels, (1,) * axes, bias=True)
    nn.init.normal_(layer.weight, std=width**-0.5)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(head.prior or (0.0,) * head.channels))  # type: ignore[operator]
    return layer


def _reasons(settings: UNetSettings, asked: Shape, spacing: tuple[float, ...], window: Shape, machine: Machine) -> dict[str, str]:
    size, final = ("x".join(map(str, w)) for w in (asked, window))
    mm = "x".join(f"{s:.3g}" for s in spacing)
    pools = len(settings.strides) - 1
    kind = {
        "kind": "The U-Net is the strongest general choice in medical segmentation challenges (Isensee et al. 2021, 2024).",
        "strides": f"Window {size} at {mm} mm: an axis is halved while at least {SMALLEST_MAP} voxels are left and its spacing is within a "
        f"factor of {CLOSE_SPACING:g} of the finest (nnU-Net's rule); after {pools} such steps the window must be {final}.",
        "kernels": f"At {mm} mm: 1 along an axis until its spacing is within a factor of {CLOSE_SPACING:g} of the finest (nnU-Net's rule).",
        "residual": "At this depth plain blocks train as well as residual ones and cost less memory.",
    }
    if machine.kind == "cpu":
        return kind | {
            "features": f"{settings.features[0]} channels at full resolution: with fewer, a CPU's convolutions are hardly faster; doubled "
            f"below, up to {CPU_FEATURES[-1]}.",
            "encoder": "One convolution at full resolution, where it costs most, and two in every lower stage.",
            "decoder": "One convolution per stage after the skip connection.",
            "skip": "Summed: fusing concatenated maps at full resolution would cost a third of the step.",
            "deep_supervision": "Off: with summed skips and few stages the gradient reaches every stage anyway.",
        }
    return kind | {
        "features": f"nnU-Net's widths: {settings.features[0]} channels at full resolution, doubled below, up to {settings.features[-1]}.",
        "encoder": "Two convolutions per stage (nnU-Net).",
        "decoder": "Two convolutions per stage, the first of which fuses the skip connection (nnU-Net).",
        "skip": "Concatenated (nnU-Net): the decoder weighs both sources.",
        "deep_supervision": "Coarser decoder stages predict too, so that the gradient reaches deep stages early (nnU-Net)."
        if settings.deep_supervision
        else "Off: there are too few stages.",
    }
