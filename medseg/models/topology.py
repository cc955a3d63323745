"""How deep a U-Net pools, along which axes, and with which kernels: nnU-Net's rule, a pure function of window and spacing.

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature Methods 18
(2021), supplementary note 2. An axis is pooled while its spacing is within a factor of two of the finest one that can still be pooled,
so that voxels become isotropic on the way down; a kernel is 1 along an axis until that happens.
"""

from __future__ import annotations

from dataclasses import dataclass

from medseg.geometry import Shape

SMALLEST_MAP = 4  # voxels that are left along each axis at the bottleneck
CLOSE_SPACING = 2.0  # axes whose spacings differ by less than this factor are treated alike


@dataclass(frozen=True)
class Topology:
    """Stages of a U-Net from full resolution to the bottleneck.

    Attributes:
        strides: of each stage's first convolution; the first is all ones.
        kernels: of each stage's convolutions.
        window: the window with every axis rounded up to a multiple of the product of its strides.
    """

    strides: tuple[Shape, ...]
    kernels: tuple[Shape, ...]
    window: Shape


def topology(window: Shape, spacing: tuple[float, ...], most_stages: int) -> Topology:
    """Strides and kernels for windows of `window` voxels with `spacing` mm, at most `most_stages` stages."""
    axes = range(len(window))
    size, mm = list(window), list(spacing)
    kernel = [1] * len(window)
    strides: list[Shape] = [(1,) * len(window)]
    kernels: list[Shape] = []
    while len(strides) < most_stages:
        large = [a for a in axes if size[a] >= 2 * SMALLEST_MAP]
        if not large:
            break
        finest = min(mm[a] for a in large)
        pooled = [a for a in large if mm[a] / finest < CLOSE_SPACING]
        if len(pooled) == 1 and size[pooled[0]] < 3 * SMALLEST_MAP:
            break
        kernel = _widened(kernel, mm)
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if a in pooled else 1 for a in axes))
        for a in pooled:
            mm[a] *= 2
            size[a] = -(-size[a] // 2)
    kernels.append(tuple(_widened(kernel, mm)) if len(strides) == 1 else (3,) * len(window))
    # An axis of one voxel holds nothing for a wide kernel to see.
    kernels = [tuple(1 if window[a] == 1 else k[a] for a in axes) for k in kernels]
    return Topology(tuple(strides), tuple(kernels), rounded(window, tuple(strides)))


def total_stride(strides: tuple[Shape, ...]) -> Shape:
    """Voxels of the window per voxel of the bottleneck, along each axis."""
    total = [1] * len(strides[0])
    for stride in strides:
        total = [t * s for t, s in zip(total, stride, strict=True)]
    return tuple(total)


def misfit(window: Shape, strides: tuple[Shape, ...]) -> str:
    """What keeps a U-Net with these strides from taking windows of this size; empty when nothing does.

    Windows must be divisible by the strides and leave more than one voxel at the bottleneck.
    """
    total = total_stride(strides)
    if len(window) != len(total):
        return f"the window has {len(window)} axes but the network has {len(total)}"
    if any(n % t for n, t in zip(window, total, strict=True)):
        low, high = ([t * (n // t + more) for n, t in zip(window, total, strict=True)] for more in (0, 1))
        near = [max(a, t) if n % t else n for n, a, t in zip(window, low, total, strict=True)]
        far = [b if n % t else n for n, b, t in zip(window, high, total, strict=True)]
        return f"window {list(window)} is not a multiple of the network's total stride {list(total)}; " + (
            f"{far} is" if near == far else f"{near} and {far} are"
        )
    if all(n == t for n, t in zip(window, total, strict=True)):
        return f"window {list(window)} leaves one voxel at the bottleneck, which cannot be normalised; use a larger one"
    return ""


def rounded(window: Shape, strides: tuple[Shape, ...]) -> Shape:
    """The window with every axis rounded up to a multiple of its total stride."""
    return tuple(-(-n // t) * t for n, t in zip(window, total_stride(strides), strict=True))


def _widened(kernel: list[int], mm: list[float]) -> list[int]:
    """Kernels that were 1 become 3 along axes whose spacing has come close to the finest; 3 stays 3."""
    return [3 if k == 3 or s / min(mm) < CLOSE_SPACING else 1 for k, s in zip(kernel, mm, strict=True)]
