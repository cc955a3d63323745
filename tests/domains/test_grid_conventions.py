"""Orientation, interpolation and blending that a plan may choose; plans without them stay as they were."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.case import Case
from medseg.domains.grid.prepare import prepare_case, restore_array
from medseg.domains.grid.settings import Blending, GridSettings, Interpolation, Normalization, Orientation, Scheme
from medseg.geometry import Grid, Reorient, Resample
from medseg.imaging.resample import resample_image, thick_axis
from medseg.imaging.windows import gaussian_weights

AS_IS = Normalization(scheme=Scheme.fixed, mean=0, std=1)


def space(**changes: object) -> GridSettings:
    base: dict[str, object] = {"axes": (0, 1, 2), "spacing": (None,) * 3, "crop": False, "channels": (AS_IS,)}
    return GridSettings.model_validate(base | changes)


@pytest.mark.parametrize(("orientation", "axes"), [("canonical", (0, 1, 2)), ("ras", (1, 0, 2)), ("file", (2, 0, 1))])
def test_orientations(orientation: str, axes: tuple[int, ...]) -> None:
    values = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    turn = Reorient(axes=(2, 0, 1), flips=(True, False, True))
    plain = Case("c", values, None, Grid.plain((2, 3, 4)))
    turned = Case("c", turn.apply(values), turn.apply(values[0]).astype(np.int16), turn.grid(plain.grid))
    prepared = prepare_case(turned, space(orientation=orientation, axes=axes))
    signs = {"canonical": (1, 1, 1), "ras": (1, -1, -1)}.get(orientation)
    if signs is None:
        expected = turned.image.transpose(0, *(a + 1 for a in axes))
    else:
        expected = values[:, ::1, :: signs[1], :: signs[2]].transpose(0, *(a + 1 for a in axes))
    np.testing.assert_array_equal(prepared.image, expected)
    assert prepared.label is not None
    np.testing.assert_array_equal(restore_array(prepared.label, prepared.trail), turned.label)


def test_plans_without_these_choices_are_written_as_before() -> None:
    """Digests of plans and of prepared cases that exist must not change; what is chosen is written, read and counted."""
    plain = space()
    assert not {"orientation", "interpolation", "blending"} & set(plain.model_dump())
    chosen = space(orientation="file", interpolation="nnunet", blending="nnunet")
    assert GridSettings.model_validate(chosen.model_dump(mode="json")) == chosen
    assert (chosen.orientation, chosen.interpolation, chosen.blending) == (Orientation.file, Interpolation.nnunet, Blending.nnunet)
    assert len({s.preparation_key() for s in (plain, space(orientation="file"), space(interpolation="nnunet"))}) == 3
    assert plain.preparation_key() == space(blending="nnunet").preparation_key()


@pytest.mark.parametrize(
    ("spacings", "axis"),
    [
        (((1, 1, 1), (2, 2, 2)), None),
        (((4, 1, 1), (1, 1, 1)), 0),
        (((1, 1, 1), (1, 1, 4)), 2),
        (((4, 2, 1),), 0),  # more than 3 times the finest, though not the middle one
        (((0.3, 1.25, 1.2500001), (4, 1, 1)), None),  # two axes are coarse; the second spacing no longer counts
        (((3, 1, 1),), None),
        (((9, 1),), None),
    ],
)
def test_thick_axis(spacings: tuple[tuple[float, ...], ...], axis: int | None) -> None:
    assert thick_axis(*spacings) == axis


@pytest.mark.parametrize("apart", [None, 0, 1, 2])
def test_clipped_splines_stay_in_range(apart: int | None) -> None:
    rng = np.random.default_rng(0)
    image = np.where(rng.random((2, 6, 7, 8)) < 0.5, 0, 100).astype(np.float32)
    image *= 1 + np.arange(6, dtype=np.float32)[:, None, None] * (apart == 0)
    free, kept = (resample_image(image, (9, 10, 11), apart, clip=clip) for clip in (False, True))
    assert free.max() > image.max()
    assert (kept.min(), kept.max()) == (0, image.max())
    np.testing.assert_allclose(kept, np.clip(free, 0, kept.max(axis=(2, 3), keepdims=True) if apart == 0 else image.max()), atol=1e-4)


def test_thick_slices_go_back_by_their_nearest_neighbour() -> None:
    case = Case("c", np.ones((1, 4, 9, 9), np.float32), None, Grid.plain((4, 9, 9), (5.0, 1.0, 1.0)))
    steps = {name: prepare_case(case, space(spacing=(2.5, 1.5, 1.5), interpolation=name)).trail[-1] for name in ("smooth", "nnunet")}
    assert steps == {
        "smooth": Resample(source=(4, 9, 9), shape=(8, 6, 6)),
        "nnunet": Resample(source=(4, 9, 9), shape=(8, 6, 6), thick=0),
    }


def test_range_and_plain_channels() -> None:
    image = np.random.default_rng(0).normal(50, 9, (2, 4, 5, 6)).astype(np.float32)
    case = Case("c", image, None, Grid.plain((4, 5, 6)))
    prepared = prepare_case(case, space(channels=(Normalization(scheme=Scheme.range), AS_IS)))
    assert (prepared.image[0].min(), prepared.image[0].max()) == (0, 1)
    np.testing.assert_array_equal(prepared.image[1], image[1])
    with pytest.raises(ValueError, match="low and high or neither"):
        Normalization(scheme=Scheme.fixed, mean=0, std=1, low=3)


def test_peak_of_the_blending_weights() -> None:
    assert gaussian_weights(8).argmax() in (3, 4)
    assert gaussian_weights(8)[3] == gaussian_weights(8)[4]
    assert gaussian_weights(8, centred=False)[4] == 1
    np.testing.assert_array_equal(gaussian_weights(7), gaussian_weights(7, centred=False))
