"""Convolution blocks for one, two and three dimensions that stay fast in channels-last memory on CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

from medseg.geometry import Shape

CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Callable[..., nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
EPSILON = 1e-5
SLOPE = 0.01  # of the leaky ReLU, as in nnU-Net


def memory_format(device: torch.device, axes: int) -> torch.memory_format:
    """How weights and windows with this many axes lie in memory: channels last, with which oneDNN and cuDNN use their fast kernels.

    Apple's backend has no such format for volumes and gains nothing from it for images; neither has a sequence one.
    """
    if device.type == "mps":
        return torch.contiguous_format
    return {2: torch.channels_last, 3: torch.channels_last_3d}.get(axes, torch.contiguous_format)


class InstanceNorm(nn.Module):
    """Instance normalisation with scale and shift (Ulyanov et al. 2016) that keeps channels-last memory.

    `nn.InstanceNorm3d` returns contiguous memory, which makes the next convolution convert back; batch normalisation of one sample at a
    time is the same arithmetic without the two copies (3 times as fast on CPU).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: `(N, C, *spatial)`; in inference on a CPU it is overwritten."""
        if x.device.type == "mps":
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=EPSILON)
        if torch.is_inference_mode_enabled() and x.device.type == "cpu":
            return self._in_place(x)
        parts = [F.batch_norm(one, None, None, self.weight, self.bias, True, 0.0, EPSILON) for one in torch.split(x, 1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _in_place(self, x: Tensor) -> Tensor:
        """The same to the bit, overwriting `x`: without concatenation and new pages 5 times as fast in float32."""
        mean, scale = (torch.empty(len(self.weight)) for _ in range(2))
        for one in torch.split(x, 1):
            torch.native_batch_norm(one, self.weight, self.bias, None, None, True, 0.0, EPSILON, out=(one, mean, scale))
        return x


class ConvBlock(nn.Module):
    """Convolution, instance normalisation, leaky ReLU."""

    def __init__(self, channels: int, out: int, kernel: Shape, stride: Shape | None = None, bias: bool = False) -> None:
        super().__init__()
        self.conv = convolution(channels, out, kernel, stride, bias)
        self.norm = InstanceNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: `(N, channels, *spatial)`."""
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE, inplace=True)


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut (He et al. 2016); the second normalisation starts at zero, so the block starts as identity."""

    def __init__(self, channels: int, kernel: Shape) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels, kernel)
        self.conv = convolution(channels, channels, kernel)
        self.norm = InstanceNorm(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: `(N, channels, *spatial)`."""
        return F.leaky_relu(x + self.norm(self.conv(self.first(x))), SLOPE, inplace=True)


def convolution(channels: int, out: int, kernel: Shape, stride: Shape | None = None, bias: bool = False) -> nn.Module:
    """A convolution that keeps the size (divided by `stride`), He-initialised."""
    layer = CONVOLUTIONS[len(kernel)](channels, out, kernel, stride or (1,) * len(kernel), padding=tuple(k // 2 for k in kernel), bias=bias)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)  # type: ignore[arg-type]
    return layer


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution `layer` with kernel 1 as a matrix product: torch's own takes 10 times as long for volumes in float32 on CPUs.

    It is computed in float32: outputs of 16 bits would decide close calls by rounding.
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.movedim(1, -1).float(), weight.flatten(1), bias).movedim(-1, 1)


def upsampling(channels: int, out: int, stride: Shape, bias: bool = False) -> nn.Module:
    """A transposed convolution whose kernel is its stride: every input voxel becomes a block of output voxels. Applied by `upsample`."""
    layer = TRANSPOSED[len(stride)](channels, out, stride, stride, bias=bias)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE, mode="fan_out")  # type: ignore[arg-type]
    return layer


def upsample(layer: nn.Module, x: Tensor) -> Tensor:
    """A transposed convolution `layer` whose kernel is its stride, `(N, C, *spatial)` to `(N, out, *larger)`.

    Where a CPU trains, as a matrix product: torch's own takes 3 times as long for the gradients, 4 times where it must first copy the
    gradient of a concatenation. The same to rounding.
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        larger: Tensor = layer(x)
        return larger
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    stride, spatial, axes = weight.shape[2:], x.shape[2:], weight.ndim - 2
    blocks = F.linear(x.movedim(1, -1), weight.movedim(1, -1).flatten(1).mT, None if bias is None else bias.repeat(stride.numel()))
    blocks = blocks.view(len(x), *spatial, *stride, -1)
    turns = [place for axis in range(1, axes + 1) for place in (axis, axis + axes)]
    return blocks.permute(0, *turns, -1).reshape(len(x), *(n * s for n, s in zip(spatial, stride, strict=True)), -1).movedim(-1, 1)
