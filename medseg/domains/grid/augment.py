"""Random changes of training windows: all parameters are drawn first, then applied to the whole batch on its device."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from medseg.case import Batch
from medseg.domains.grid.settings import Augmentation, PriorChanges
from medseg.geometry import Shape
from medseg.imaging.disturb import disturb
from medseg.imaging.intensity import blur, change_contrast, change_gamma, coarsen, mix_channels, spread
from medseg.imaging.warp import rotation_matrices, sampling_grid, smooth_field, warp


def augment_batch(
    batch: Batch,
    window: Shape,
    how: Augmentation,
    proportions: tuple[float, ...],
    values: tuple[int, ...],
    generator: Generator,
    prior: PriorChanges | None = None,
    coded: bool = False,
) -> Batch:
    """Windows with a margin to augmented windows of exactly `window`.

    Args:
        proportions: relative spacing of the window axes.
        values: every value that labels and priors may hold, but for codes.
        coded: labels hold codes of things, which are moved by nearest neighbour: there are too many to weigh them one by one.
        generator: on the CPU; the same state gives the same parameters on every device.
        prior: damage to priors, after they have moved with image and label.
    """
    with torch.no_grad():
        image, maps = _spatial(
            batch.image.float(), (batch.label, batch.prior), window, how, proportions, (() if coded else values, values), generator
        )
        image = _intensity(image, how, generator)
        label, earlier = maps
        if earlier is not None and prior is not None:
            flat = how.in_plane and len(window) == 3
            earlier = disturb(earlier, values, prior.change, prior.change_size, prior.lose, prior.lose_size, flat, generator)
    return Batch(image=image, label=label, prior=earlier, extra=batch.extra)


def _spatial(
    image: Tensor,
    maps: tuple[Tensor | None, ...],
    window: Shape,
    how: Augmentation,
    proportions: tuple[float, ...],
    values: tuple[tuple[int, ...], ...],
    generator: Generator,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    n, d, device = len(image), len(window), image.device
    angle = math.radians(how.rotation)
    turns = _uniform(generator, (n, 1 if d == 2 else 3), -angle, angle, how.spatial)
    if d == 3 and how.in_plane:
        turns[:, 1:] = 0
    zoom = _uniform(generator, (n, 1), -how.scale, how.scale, how.spatial) + _uniform(
        generator, (n, d), -how.stretch, how.stretch, how.spatial
    )
    flips = torch.ones(n, d)
    for axis in how.mirror:
        flips[:, axis] = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = _uniform(generator, (n, d), -how.shift, how.shift, 1.0)
    bend = _elastic(n, window, how, generator)
    if bend is None and not turns.any() and not zoom.any() and not shift.any():
        still = [None if one is None else _flip(_middle(one, window), flips) for one in (image, *maps)]
        assert still[0] is not None
        return still[0], tuple(still[1:])

    # Offsets in samples -> millimetres -> rotated and scaled -> samples.
    size = torch.tensor(proportions)
    matrix = rotation_matrices(turns, d) * size / size[:, None] * (torch.exp(zoom) * flips)[:, None, :]
    field = None if bend is None else smooth_field(bend.to(device), window)
    grid = sampling_grid(tuple(image.shape[2:]), window, matrix.to(device), shift.to(device), field)
    return warp(image, maps, values, grid)


def _elastic(n: int, window: Shape, how: Augmentation, generator: Generator) -> Tensor | None:
    """Random displacements `(n, d, *cells)` of control points, or None where no window deforms."""
    if not how.elastic or not how.elastic_size:
        return None
    cells = tuple(max(3, round(size / how.elastic_cell)) for size in window)
    strength = _uniform(generator, (n,), 0, how.elastic_size, how.elastic)
    noise = torch.randn((n, len(window), *cells), generator=generator)
    if how.in_plane and len(window) == 3:
        noise[:, 0] = 0
    return noise * spread(strength, noise) if strength.any() else None


def _intensity(image: Tensor, how: Augmentation, generator: Generator) -> Tensor:
    n, device = len(image), image.device
    sigma = _uniform(generator, (n,), *how.blur_size, how.blur)
    resolution = _uniform(generator, (n,), *how.coarse_size, how.coarse, neutral=1)
    factor = torch.exp(_uniform(generator, (n,), -how.contrast_size, how.contrast_size, how.contrast))
    offset = _uniform(generator, (n,), -how.brightness_size, how.brightness_size, how.brightness)
    exponent = torch.exp(_uniform(generator, (n,), -how.gamma_size, how.gamma_size, how.gamma))
    noise = _uniform(generator, (n,), 0, how.noise_size, how.noise)
    seed = int(torch.randint(2**62, (1,), generator=generator))

    if how.colour:
        image = mix_channels(image, _mixtures(n, image.shape[1], how, generator))
    chosen = torch.nonzero(sigma)[:, 0]
    if len(chosen):
        image = image.index_copy(0, chosen.to(device), blur(image[chosen.to(device)], sigma[chosen].to(device)))
    for index in torch.nonzero(resolution < 1)[:, 0].tolist():
        image[index : index + 1] = coarsen(image[index : index + 1], float(resolution[index]))
    if (factor != 1).any() or offset.any():
        image = change_contrast(image, factor.to(device), offset.to(device))
    if (exponent != 1).any():
        image = change_gamma(image, exponent.to(device))
    if noise.any():
        # Large noise is drawn where it is needed: copying it to a GPU costs more than drawing it there.
        local = torch.Generator(device).manual_seed(seed)
        image = image + torch.randn(image.shape, generator=local, device=device) * spread(noise.to(device), image)
    return image


def _mixtures(n: int, channels: int, how: Augmentation, generator: Generator) -> Tensor:
    """Weights `(n, channels, channels)` whose rows sum up to 1: between those that change nothing and random ones."""
    share = _uniform(generator, (n, 1, 1), 0, how.colour_size, how.colour)
    others = -torch.rand((n, channels, channels), generator=generator).clamp_min(1e-6).log()
    return torch.lerp(torch.eye(channels).expand_as(others), others / others.sum(-1, keepdim=True), share)


def _uniform(generator: Generator, shape: tuple[int, ...], low: float, high: float, probability: float, neutral: float = 0) -> Tensor:
    """Uniform numbers, each replaced by `neutral` with probability `1 - probability`; always consumes the same random numbers."""
    values = torch.rand(shape, generator=generator) * (high - low) + low
    return torch.where(torch.rand(shape, generator=generator) < probability, values, torch.full_like(values, neutral))


def _middle(values: Tensor, window: Shape) -> Tensor:
    """The window in the middle of a window with margin; a copy."""
    for axis, size in enumerate(window):
        dim = values.ndim - len(window) + axis
        values = values.narrow(dim, (values.shape[dim] - size) // 2, size)
    return values.clone()


def _flip(values: Tensor, flips: Tensor) -> Tensor:
    axes = flips.shape[1]
    for index in torch.nonzero((flips < 0).any(1))[:, 0].tolist():
        dims = [values.ndim - 1 - axes + int(a) for a in torch.nonzero(flips[index] < 0)[:, 0]]
        values[index] = values[index].flip(dims)
    return values
