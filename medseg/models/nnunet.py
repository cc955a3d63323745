"""nnU-Net's networks as a family: the plain convolutional U-Net and the U-Net with a residual encoder.

The mathematics is that of `PlainConvUNet` and `ResidualEncoderUNet` of dynamic-network-architectures 0.4 (Apache-2.0,
https://github.com/MIC-DKFZ/dynamic-network-architectures) with the layers that nnU-Net's planners choose, written anew in the layers of
`medseg.models.blocks`: weights of nnU-Net give the same outputs, and channels-last memory stays as it is.

Sources: Isensee et al., nnU-Net, Nature Methods 18 (2021); Isensee et al., nnU-Net Revisited, MICCAI 2024 (residual encoder); He et al., Bag
of Tricks, CVPR 2019 (the shortcut of its blocks).
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

from medseg.device import Machine
from medseg.geometry import Shape
from medseg.models.base import Configured, Head, NetworkFamily, Outputs
from medseg.models.blocks import SLOPE, ConvBlock, InstanceNorm, convolution, memory_format, pointwise, upsample, upsampling
from medseg.models.composed import Composed, worth
from medseg.models.topology import CLOSE_SPACING, SMALLEST_MAP, misfit, topology
from medseg.record import Section

POOLING = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
FEATURES: dict[int, tuple[int, ...]] = {
    1: (32, 64, 128, 256, 320, 320),
    2: (32, 64, 128, 256, 512, 512, 512, 512),
    3: (32, 64, 128, 256, 320, 320),
}
CONVOLUTIONS_PER_STAGE = 2


class NnUNetSettings(Section):
    """nnU-Net's U-Net, stage by stage from full resolution to the bottleneck."""

    kind: Literal["nnunet"] = "nnunet"
    features: tuple[int, ...] = Field(min_length=2, description="Channels of each stage.")
    strides: tuple[Shape, ...] = Field(description="Stride of each stage's first convolution, per window axis; the first is all ones.")
    kernels: tuple[Shape, ...] = Field(description="Kernel of each stage's convolutions, per window axis; odd.")
    residual: bool = Field(description="The encoder has a stem and residual blocks instead of single convolutions.")
    encoder: tuple[int, ...] = Field(description="Convolutions (residual: blocks of two) of each encoder stage, at least one.")
    decoder: tuple[int, ...] = Field(description="Convolutions of each decoder stage (one stage fewer), finest first, at least one.")
    deep_supervision: int = Field(ge=0, description="Number of coarser decoder stages that are trained to predict too.")
    precision: Literal["full", "half"] = Field(
        description="Arithmetic of predictions: 32 bits, as nnU-Net's on a CPU, or 16 bits where the device is faster with them. Training "
        "takes what the device offers.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        stages = len(self.features)
        for name, length in (("strides", stages), ("kernels", stages), ("encoder", stages), ("decoder", stages - 1)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; {stages} features ask for {length}")
        axes = len(self.strides[0])
        if axes not in POOLING or any(len(s) != axes for s in (*self.strides, *self.kernels)):
            raise ValueError("strides and kernels need the same number of axes (1, 2 or 3) in every stage")
        if min(*self.features, *self.encoder, *self.decoder, *(s for stride in self.strides for s in stride)) < 1:
            raise ValueError("features, strides and numbers of convolutions must be positive")
        if any(s != 1 for s in self.strides[0]):
            raise ValueError(f"the first stage works at full resolution, so its stride is all ones; found {list(self.strides[0])}")
        if any(k < 1 or k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ValueError(f"kernels must be odd; found {[list(k) for k in self.kernels]}")
        if self.deep_supervision > stages - 2:
            raise ValueError(f"deep_supervision is at most {stages - 2} with {stages} stages; found {self.deep_supervision}")
        return self


class ShortcutBlock(nn.Module):
    """Two convolutions with a shortcut that is averaged down where the block is strided, and projected where it changes the width."""

    def __init__(self, channels: int, out: int, kernel: Shape, stride: Shape) -> None:
        super().__init__()
        self.first = ConvBlock(channels, out, kernel, stride, bias=True)
        self.second = nn.ModuleDict({"conv": convolution(out, out, kernel, bias=True), "norm": InstanceNorm(out)})
        nn.init.zeros_(self.second["norm"].weight)  # type: ignore[arg-type]  # the block starts as its shortcut (nnU-Net)
        self.pool = POOLING[len(stride)](stride, stride) if any(s != 1 for s in stride) else nn.Identity()
        self.project = (
            nn.ModuleDict({"conv": convolution(channels, out, (1,) * len(kernel)), "norm": InstanceNorm(out)})
            if channels != out
            else nn.ModuleDict()
        )

    def forward(self, x: Tensor) -> Tensor:
        """`x`: `(N, channels, *spatial)`."""
        y = self.second["norm"](self.second["conv"](self.first(x)))
        x = self.pool(x)
        if self.project:
            x = self.project["norm"](self.project["conv"](x))
        return F.leaky_relu(y + x, SLOPE, inplace=True)


class NnUNet(nn.Module):
    """Maps `(N, channels, *window)` to `(N, head channels, *window)` per head."""

    def __init__(self, settings: NnUNetSettings, channels: int, heads: tuple[Head, ...]) -> None:
        super().__init__()
        widths, kernels, strides = settings.features, settings.kernels, settings.strides
        self.axes = len(strides[0])
        self.supervised = settings.deep_supervision
        self.full = settings.precision == "full"
        lower = range(len(widths) - 1)
        self.stem = ConvBlock(channels, widths[0], kernels[0], bias=True) if settings.residual else nn.Identity()
        before = (widths[0] if settings.residual else channels, *widths)
        block = ShortcutBlock if settings.residual else _biased
        self.encoder = nn.ModuleList(
            nn.Sequential(
                *(
                    block(before[s], widths[s], kernels[s], strides[s])
                    if i == 0
                    else block(widths[s], widths[s], kernels[s], (1,) * self.axes)
                    for i in range(count)
                )
            )
            for s, count in enumerate(settings.encoder)
        )
        self.up = nn.ModuleList(upsampling(widths[s + 1], widths[s], strides[s + 1], bias=True) for s in lower)
        self.decoder = nn.ModuleList(
            nn.Sequential(*(_biased((2 if i == 0 else 1) * widths[s], widths[s], kernels[s]) for i in range(settings.decoder[s])))
            for s in lower
        )
        self.composed = nn.ModuleDict()  # see `freeze`
        self.heads = nn.ModuleDict(
            {head.name: nn.ModuleList(_head(widths[s], head, self.axes) for s in range(self.supervised + 1)) for head in heads}
        )

    def forward(self, image: Tensor) -> Outputs:
        """`image`: `(N, channels, *window)`. Coarser maps only in training mode."""
        if self.full and not self.training:
            with torch.autocast(image.device.type, enabled=False):
                return self._outputs(image)
        return self._outputs(image)

    def _outputs(self, image: Tensor) -> Outputs:
        x = self.stem(image.contiguous(memory_format=memory_format(image.device, self.axes)))
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        maps: dict[int, Tensor] = {}
        for s in reversed(range(len(skips))):
            x = self._joined(s, x, skips.pop())
            maps[s] = x
        levels = self.supervised + 1 if self.training else 1
        outputs: Outputs = {}
        for name, stages in self.heads.items():
            assert isinstance(stages, nn.ModuleList)
            outputs[name] = [stages[s](maps[s]) if self.training else pointwise(stages[s], maps[s]) for s in range(levels)]
        return outputs

    def _joined(self, s: int, x: Tensor, skip: Tensor) -> Tensor:
        """Decoder stage `s`: from the stage below and the skip connection."""
        if str(s) not in self.composed:
            joined: Tensor = self.decoder[s](torch.cat([upsample(self.up[s], x), skip], 1))
            return joined
        stage = self.decoder[s]
        assert isinstance(stage, nn.Sequential)
        first, rest = stage[0], stage[1:]
        assert isinstance(first, ConvBlock)
        y: Tensor = rest(F.leaky_relu(first.norm(self.composed[str(s)](x, skip)), SLOPE, inplace=True))
        return y

    def freeze(self, dtype: torch.dtype) -> None:
        """Compose upsampling with the convolution after it where that saves a lot: for weights that change no more."""
        for s, (up, stage) in enumerate(zip(self.up, self.decoder, strict=True)):
            assert isinstance(stage, nn.Sequential)
            weights = (up.weight, up.bias, stage[0].conv.weight)  # type: ignore[union-attr]
            if worth(weights[0], weights[2]):  # type: ignore[arg-type]
                self.composed[str(s)] = Composed(*weights, dtype)  # type: ignore[arg-type]


class NnUNetFamily(NetworkFamily):
    """nnU-Net's own U-Nets, plain or with a residual encoder: for its trained models, and to train what it can run."""

    Settings = NnUNetSettings

    @staticmethod
    def configure(window: Shape, spacing: tuple[float, ...], machine: Machine) -> Configured:
        """nnU-Net's default: its topology and widths, two convolutions per stage, on every device."""
        widths = FEATURES[len(window)]
        top = topology(window, spacing, len(widths))
        stages = max(2, len(top.strides))
        settings = NnUNetSettings(
            features=widths[:stages],
            strides=_padded(top.strides, stages),
            kernels=_padded(top.kernels, stages),
            residual=False,
            encoder=(CONVOLUTIONS_PER_STAGE,) * stages,
            decoder=(CONVOLUTIONS_PER_STAGE,) * (stages - 1),
            deep_supervision=max(0, stages - 3),
            precision="full",
        )
        size, mm = "x".join(map(str, window)), "x".join(f"{s:.3g}" for s in spacing)
        reasons = {
            "kind": "Asked for by name.",
            "features": f"nnU-Net's widths: {widths[0]} channels at full resolution, doubled below, up to {settings.features[-1]}.",
            "strides": f"Window {size} at {mm} mm: an axis is halved while at least {SMALLEST_MAP} voxels are left and its spacing is within a "
            f"factor of {CLOSE_SPACING:g} of the finest (nnU-Net's rule).",
            "kernels": f"At {mm} mm: 1 along an axis until its spacing is within a factor of {CLOSE_SPACING:g} of the finest (nnU-Net's rule).",
            "residual": "nnU-Net's default planner takes the plain encoder.",
            "encoder": "Two convolutions per stage (nnU-Net).",
            "decoder": "Two convolutions per stage, the first of which fuses the skip connection (nnU-Net).",
            "precision": "Exported to nnU-Net, the model predicts the same: 16 bits decide some voxels in 100 000 otherwise.",
            "deep_supervision": "All decoder stages but the coarsest predict too, as in nnU-Net's training.",
        }
        return Configured(settings, top.window, reasons)

    @staticmethod
    def check(settings: Any, window: Shape) -> str:
        """See `topology.misfit`."""
        return misfit(window, settings.strides)

    @staticmethod
    def build(settings: Any, channels: int, heads: tuple[Head, ...]) -> nn.Module:
        """See `NetworkFamily.build`."""
        return NnUNet(settings, channels, heads)

    @staticmethod
    def freeze(network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        """See `NetworkFamily.freeze`. Sums are rounded elsewhere, so 32 bits, which equal nnU-Net's, are left alone; GPUs gain nothing."""
        assert isinstance(network, NnUNet)
        if device.type == "cpu" and dtype is not None and not network.full:
            network.freeze(dtype)


def _biased(channels: int, out: int, kernel: Shape, stride: Shape | None = None) -> ConvBlock:
    return ConvBlock(channels, out, kernel, stride, bias=True)


def _padded(stages: tuple[Shape, ...], count: int) -> tuple[Shape, ...]:
    """Windows too small to pool have one stage, but a U-Net has at least two."""
    return stages + stages[-1:] * (count - len(stages))


def _head(width: int, head: Head, axes: int) -> nn.Module:
    layer = convolution(width, head.channels, (1,) * axes, bias=True)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(head.prior or (0.0,) * head.channels))  # type: ignore[operator]
    return layer
