"""The configurations that a dataset on a regular grid asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from medseg.device import Machine
from medseg.domains.base import Draft
from medseg.domains.grid import rules
from medseg.domains.grid.rules import Decided
from medseg.domains.grid.settings import Augmentation, GridSettings, PriorChanges
from medseg.fingerprint import Fingerprint
from medseg.geometry import Shape
from medseg.imaging.resample import ANISOTROPY
from medseg.plans import Plan

LARGEST = {"cuda": (2048**2, 256**3), "mps": (1024**2, 160**3), "cpu": (768**2, 128**3)}  # voxels of the first 2D and 3D window
OVERLAP = 0.5


def make_drafts(fingerprint: Fingerprint, machine: Machine) -> tuple[Draft, ...]:
    """2D images give `2d`; volumes give `3d` and `2d`, large ones `3d_low` and `3d_cascade` too; volumes of a few slices give `2d` only."""
    survey = _Survey.of(fingerprint, machine)
    target = rules.target_spacing(survey.spacings, survey.shapes)
    if fingerprint.ndim == 2:
        return (survey.draft("2d", target, 2, "the images are 2D", 2.0),)

    slices = int(np.median([s[0] for s in survey.shapes]))
    if slices < rules.FEW_SLICES:
        because = f"the median case has only {slices} slices (fewer than {rules.FEW_SLICES}), too few for 3D windows to learn from"
        slicewise = survey.draft("2d", target, 2, because, 3.0)
    else:
        slicewise = survey.draft("2d", target, 2, "slices one by one are a quick baseline, best where slices are thick and few", 1.0)
    if slices < rules.FEWEST_SLICES:
        return (slicewise,)
    volume = survey.draft("3d", target, 3, "3D windows see the context of neighbouring slices", 2.0)
    coarse = rules.low_resolution(target.value, volume.shape)
    if coarse is None:
        return (volume, slicewise)
    if machine.kind == "cpu":
        because, preference = f"{coarse.because}, and a CPU reads few windows in the time people give", 2.5
    else:
        because, preference = f"{coarse.because}; detail is lost, so full resolution is better where it can be trained for long", 1.5
    low = survey.draft("3d_low", coarse, 3, because, preference)
    return (volume, low, _cascade(volume, low), slicewise)


def _cascade(volume: Draft, low: Draft) -> Draft:
    """Full resolution, led by what a network of low resolution has predicted."""
    reasons = {
        "previous": f"A window at full resolution sees {math.prod(volume.windows[0]) / math.prod(volume.shape):.0%} of a median case at most: "
        f"the prediction of {low.name} tells it what lies beyond",
        "space.prior": "Predictions on new cases are worse than those that training sees, so these are damaged now and then (nnU-Net)",
    }
    return replace(
        volume,
        name="3d_cascade",
        space=volume.space.model_copy(update={"prior": PriorChanges()}),
        reasons=volume.reasons | {path: f"{why}." for path, why in reasons.items()},
        because=f"Full resolution with the context that {low.name} sees; trained after it, so it takes longest.",
        preference=0.5,
        previous=low.name,
    )


def draft_like(draft: Draft, fingerprint: Fingerprint, machine: Machine, model: Plan, because: str) -> Draft:
    """A draft on the grid, with the window and the intensities of a model's plan (see `Domain.like`).

    Channels are normalised as the model's of the same name, or as its only one if both have one of the same kind. Augmentation and
    mirroring follow the new classes and the model's window.
    """
    space = model.space
    assert isinstance(space, GridSettings)
    survey = _Survey.of(fingerprint, machine, Decided(space.axes, because), Decided(space.crop, because))
    own = rules.target_spacing(survey.spacings, survey.shapes).value
    spacing = tuple(o if s is None else s for s, o in zip(space.spacing, own, strict=True))
    axes = len(model.window)
    made = survey.draft(draft.name, Decided(spacing, because), axes, because, draft.preference)
    assert isinstance(made.space, GridSettings)
    colours = rules.colours(fingerprint.channels, made.space.channels)
    augmentation = plan_augmentation(spacing[-axes:], model.window, made.mirror, rules.zoom(fingerprint), colours)
    reasons = made.reasons | {"window": because, "space.spacing": because, "space.augmentation": _sentence(augmentation.because)}
    named = {c.name.strip().casefold(): how for c, how in zip(model.data.channels, space.channels, strict=True)}
    channels = list(made.space.channels)
    for place, channel in enumerate(fingerprint.channels):
        how = named.get(channel.name.strip().casefold())
        if how is None and len(channels) == len(space.channels) == 1 and channel.modality is model.data.channels[0].modality:
            (how,) = space.channels
        if how is not None:
            channels[place] = how
            reasons[f"space.channels.{place}"] = because
    changed = {"spacing": space.spacing, "channels": tuple(channels), "augmentation": augmentation.value}
    for field in ("orientation", "interpolation"):
        value = getattr(space, field)
        if value is not GridSettings.model_fields[field].default:
            changed[field] = value
            reasons[f"space.{field}"] = because
    return replace(made, space=made.space.model_copy(update=changed), windows=(model.window,), reasons=reasons)


@dataclass(frozen=True)
class _Survey:
    """What all drafts of a dataset share. Shapes and spacings are in the order of prepared axes, after cropping."""

    fingerprint: Fingerprint
    machine: Machine
    order: Decided[tuple[int, ...]]
    crop: Decided[bool]
    shapes: list[Shape]
    spacings: list[tuple[float, ...]]

    @classmethod
    def of(
        cls,
        fingerprint: Fingerprint,
        machine: Machine,
        order: Decided[tuple[int, ...]] | None = None,
        crop: Decided[bool] | None = None,
    ) -> _Survey:
        cases = fingerprint.cases
        order, crop = order or rules.axis_order(cases), crop or rules.crop_to_nonzero(cases)
        shapes = [tuple((c.cropped if crop.value else c.shape)[a] for a in order.value) for c in cases]
        spacings = [tuple(c.spacing[a] for a in order.value) for c in cases]
        return cls(fingerprint, machine, order, crop, shapes, spacings)

    def draft(self, name: str, target: Decided[tuple[float, ...]], window_axes: int, because: str, preference: float) -> Draft:
        seen = self.fingerprint
        lead = seen.ndim - window_axes
        spacing = tuple(None if a < lead else s for a, s in enumerate(target.value))
        prepared = [
            tuple(n if t is None else max(1, round(n * s / t)) for n, s, t in zip(shape, has, spacing, strict=True))
            for shape, has in zip(self.shapes, self.spacings, strict=True)
        ]
        planes = [shape[lead:] for shape in prepared]
        kept = rules.kept_by_crop(seen.cases) if self.crop.value else 1.0
        channels = [
            rules.normalization(c, values, kept, bool(seen.labels.things))
            for c, values in zip(seen.channels, seen.intensities, strict=True)
        ]
        mirror = rules.mirror_axes(seen.labels, self.order.value, window_axes, self.machine.kind)
        windows = rules.window_candidates(planes, target.value[lead:], LARGEST[self.machine.kind][window_axes - 2])
        colours = rules.colours(seen.channels, [c.value for c in channels])
        augmentation = plan_augmentation(target.value[lead:], windows.value[0], mirror.value, rules.zoom(seen), colours)
        reasons = {
            "space.axes": self.order.because,
            "space.spacing": target.because + ("; slices stay where they are" if lead else ""),
            "space.crop": self.crop.because,
            **{f"space.channels.{i}": f"channel '{seen.channels[i].name}': {c.because}" for i, c in enumerate(channels)},
            "space.augmentation": augmentation.because,
            "window": windows.because,
            "inference.overlap": "half a window, so that every voxel is near the middle of some window (nnU-Net)",
            "inference.mirror": mirror.because,
        }
        return Draft(
            name=name,
            space=GridSettings(
                axes=self.order.value,
                spacing=spacing,
                crop=self.crop.value,
                channels=tuple(c.value for c in channels),
                augmentation=augmentation.value,
            ),
            windows=windows.value,
            spacing=target.value[lead:],
            axes=self.order.value[lead:],
            shape=tuple(round(v) for v in rules.median(planes)),
            samples=sum(math.prod(shape) for shape in prepared),
            mirror=mirror.value,
            overlap=OVERLAP,
            reasons={path: _sentence(reason) for path, reason in reasons.items()},
            because=_sentence(because),
            preference=preference,
        )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].removesuffix('.')}."


def plan_augmentation(
    spacing: tuple[float, ...],
    window: Shape,
    mirror: tuple[int, ...],
    zoom: Decided[float] = rules.USUAL_ZOOM,
    colours: Decided[float] = rules.NO_COLOURS,
) -> Decided[Augmentation]:
    """Moderate rotations, zooms and deformations; within the slices where the window is far coarser or flatter along its first axis."""
    how = Augmentation(mirror=mirror, scale=zoom.value, colour=colours.value)
    moves = f"{zoom.because}, deformations, and {colours.because}intensity changes"
    if len(window) == 2:
        return Decided(how.model_copy(update={"rotation": 30.0}), f"rotations to 30 degrees, {moves}")
    if spacing[0] > ANISOTROPY * max(spacing[1:]) or window[0] * ANISOTROPY < max(window[1:]):
        flat = f"slices of {spacing[0]:.4g} mm ({window[0]} in a window) are too coarse to rotate out of their plane"
        because = flat if zoom is rules.USUAL_ZOOM else f"{flat}; {zoom.because}"
        return Decided(how.model_copy(update={"rotation": 30.0, "in_plane": True}), because)
    return Decided(how, f"rotations to 15 degrees about each axis, {moves}")
