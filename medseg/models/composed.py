"""A transposed convolution and the convolution that follows it as one, for inference: fewer multiplications, no concatenation.

Nothing lies between the two in a U-Net with concatenated skips: `conv(cat(up(x), skip))` is `conv_x(up(x)) + conv_skip(skip)`, and `conv_x(up(x))` is a
transposed convolution of `x` whose kernel is the composition of both. With kernels of 3 and strides of 2 it has 8 taps per output voxel instead of 27.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

from medseg.geometry import Shape
from medseg.models.blocks import memory_format

WORTH = 0.8  # of the multiplications that are left; with more of them memory decides, not arithmetic
CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SPREAD: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def worth(up: Tensor, conv: Tensor) -> bool:
    """Whether composing the weights of `up`, whose kernel is its stride, with those of `conv`, which takes its output first, saves enough."""
    wide, narrow, *stride = up.shape
    out, both, *kernel = conv.shape
    composed = wide * out * math.prod((s + k - 1) / s for s, k in zip(stride, kernel, strict=True))
    skip = math.prod(kernel) * (both - narrow) * out
    return skip + composed <= WORTH * (math.prod(kernel) * both * out + wide * narrow)


class Composed(nn.Module):
    """`conv(cat(up(x), skip))` but for a constant per channel, which the normalisation after it removes."""

    def __init__(self, up: Tensor, bias: Tensor, conv: Tensor, dtype: torch.dtype) -> None:
        """From weights, composed in float32 and rounded to `dtype`.

        Args:
            up: of the transposed convolution, `(wide, narrow, *stride)`.
            bias: its bias, `(narrow,)`.
            conv: of the convolution, `(out, narrow + skip, *kernel)`, with odd kernels.
        """
        super().__init__()
        narrow, self.stride = up.shape[1], tuple(up.shape[2:])
        axes = len(self.stride)
        self.layout = memory_format(up.device, axes)
        self.padding: Shape = tuple((k - 1) // 2 for k in conv.shape[2:])
        with torch.no_grad(), torch.autocast(up.device.type, enabled=False):
            above, skip = conv[:, :narrow].float(), conv[:, narrow:].float()
            kernel = SPREAD[axes](up.float(), above.transpose(0, 1).flip(*range(2, 2 + axes)))
            self.taps = nn.Buffer(torch.einsum("oi...,i->o...", above, bias.float()).unsqueeze(1), persistent=False)
        self.kernel = nn.Buffer(kernel.to(dtype).contiguous(memory_format=self.layout), persistent=False)
        self.skip = nn.Buffer(skip.to(dtype).contiguous(memory_format=self.layout), persistent=False)
        self._rims: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`x`: `(N, wide, *spatial)`; `skip`: `(N, narrow, *spatial times stride)`."""
        axes = len(self.stride)
        y = SPREAD[axes](x, self.kernel, None, self.stride, self.padding)
        return y.add_(CONVOLVE[axes](skip, self.skip, padding=self.padding)).add_(self._rim(y.shape[2:]))

    def _rim(self, shape: torch.Size) -> Tensor:
        """What the bias of `up` adds, `(1, C, *shape)`, less what it adds far from the rim; windows are all of one shape.

        The bias ends with the volume, and zeros follow: so it differs within half a kernel of either end of each axis.
        """
        if shape not in self._rims:
            sizes = [min(size, k) for size, k in zip(shape, self.taps.shape[2:], strict=True)]  # of the middle of an axis one voxel will do
            with torch.autocast(self.taps.device.type, enabled=False):
                rim = CONVOLVE[len(sizes)](self.taps.new_ones(1, 1, *sizes), self.taps, padding=self.padding)
                rim = (rim - self.taps.flatten(1).sum(1).view(1, -1, *(1,) * len(sizes))).to(self.kernel.dtype)
            for axis, (size, pad) in enumerate(zip(shape, self.padding, strict=True), 2):
                places = torch.arange(size, device=rim.device)
                rim = rim.index_select(axis, torch.maximum(places.clamp(max=pad), places - (size - rim.shape[axis])))
            self._rims = {shape: rim.contiguous(memory_format=self.layout)}
        return self._rims[shape]
