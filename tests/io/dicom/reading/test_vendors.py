"""Real files of several vendors give the values and the geometry of published conversions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg.io.dicom.reading.reader import read_voxels, scan
from medseg.io.images import read_image

FOLDER = Path(__file__).resolve().parents[4] / "datasets" / "dicom"
PUBLISHED = sorted(FOLDER.glob("*_reference.nii*"))


@pytest.mark.parametrize("reference", PUBLISHED, ids=lambda path: path.name.split("_reference")[0])
def test_as_published(reference: Path) -> None:
    found = scan(FOLDER / reference.name.split("_reference")[0])
    (volume,) = found.volumes
    assert not found.others
    assert not volume.errors
    image, expected = read_image(volume.path), read_image(reference)
    own, other = image.grid.canonical(), expected.grid.canonical()
    assert np.abs(own.grid(image.grid).affine - other.grid(expected.grid).affine).max() < 1e-3
    assert own.apply(image.array).shape == other.apply(expected.array).shape
    assert np.allclose(own.apply(image.array), other.apply(expected.array), rtol=1e-6, atol=1e-4)


def test_there_are_published_conversions() -> None:
    assert len(PUBLISHED) == 5


def test_lossless_jpeg_equals_run_lengths() -> None:
    values = [read_voxels(scan(FOLDER / f"generic_compressed_{name}_001").volumes[0]) for name in ("jpeg", "rle")]
    assert np.array_equal(*values)
    assert values[0].std() > 10


def test_time_points_of_mosaics_are_in_seconds() -> None:
    (volume,) = scan(FOLDER / "siemens_epi_nih_mr_0003").volumes
    assert volume.times == pytest.approx((0.0, 2.435), abs=1e-3)
    assert {frame.tile for frame in volume.frames[0]} == set(range(5))


def test_distance_of_a_mosaics_slices_without_the_element_for_it(tmp_path: Path) -> None:
    """Slices of 3 mm, 12 mm apart: the protocol's positions tell; without the protocol the thickness is taken, with a warning."""
    for file in (FOLDER / "siemens_epi_nih_mr_0003").iterdir():
        data = pydicom.dcmread(file)
        del data.SpacingBetweenSlices
        (tmp_path / "protocol").mkdir(exist_ok=True)
        data.save_as(tmp_path / "protocol" / file.name)
        data.private_block(0x0029, "SIEMENS CSA HEADER")[0x20].value = b""
        (tmp_path / "nothing").mkdir(exist_ok=True)
        data.save_as(tmp_path / "nothing" / file.name)
    (told,), (untold,) = scan(tmp_path / "protocol").volumes, scan(tmp_path / "nothing").volumes
    (whole,) = scan(FOLDER / "siemens_epi_nih_mr_0003").volumes
    assert whole.grid.spacing[0] == pytest.approx(12)
    assert np.allclose(told.grid.affine, whole.grid.affine, atol=1e-6)
    assert not any("lie apart" in str(warning) for warning in told.warnings)
    assert untold.grid.spacing[0] == pytest.approx(3)
    assert "the mosaic does not say how far its slices lie apart; found 3 mm" in "".join(map(str, untold.warnings))
