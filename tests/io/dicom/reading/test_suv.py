"""PET becomes SUV by body weight as QIBA says, or says what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medseg.errors import ImageError
from medseg.io.dicom.reading.reader import read_voxels, scan
from tests.io.dicom.phantoms import grid_of, write_enhanced, write_series

SHAPE = (2, 4, 3)
STORED = np.arange(24, dtype=np.int16).reshape(SHAPE) * 100
LIFE = 6586.2  # seconds, 18F


def _write(folder: Path, tracer: dict[str, Any] | None = None, **tags: Any) -> None:
    injected = Dataset()
    described = {
        "RadionuclideTotalDose": "3.7e8",
        "RadionuclideHalfLife": str(LIFE),
        "RadiopharmaceuticalStartTime": "090000",
        **(tracer or {}),
    }
    for keyword, value in described.items():
        if value is not None:
            setattr(injected, keyword, value)
    told = {"Units": "BQML", "DecayCorrection": "START", "PatientWeight": "70", "SeriesTime": "100000", "AcquisitionDate": "20200102",
            "AcquisitionTime": "100000", "RescaleSlope": "2.5", "RadiopharmaceuticalInformationSequence": [injected], **tags}  # fmt: skip
    write_series(folder, STORED, grid_of(SHAPE), "PT", **told)


def _read(folder: Path, suv: bool = True) -> Any:
    return read_voxels(scan(folder).volumes[0], suv=suv)[0]


def _expected(wait: float) -> Any:
    return STORED * 2.5 * 70000 / (3.7e8 * 2 ** (-wait / LIFE))


def test_decay_from_injection_to_the_start_of_the_scan(tmp_path: Path) -> None:
    _write(tmp_path)
    assert np.allclose(_read(tmp_path), _expected(3600))
    assert np.array_equal(_read(tmp_path, suv=False), STORED * 2.5)


def test_date_and_time_of_injection_count_before_the_time_alone(tmp_path: Path) -> None:
    _write(tmp_path, {"RadiopharmaceuticalStartDateTime": "20200102093000.00"})
    assert np.allclose(_read(tmp_path), _expected(1800))


def test_long_lived_tracer_is_injected_days_before(tmp_path: Path) -> None:
    _write(tmp_path, {"RadiopharmaceuticalStartDateTime": "20191230100000", "RadionuclideHalfLife": "282276"})
    expected = STORED * 2.5 * 70000 / (3.7e8 * 2 ** (-3 * 86400 / 282276))
    assert np.allclose(_read(tmp_path), expected)


def test_acquisition_without_a_date_is_of_the_day_of_the_series(tmp_path: Path) -> None:
    _write(tmp_path, AcquisitionDate=None, AcquisitionTime="100130")
    assert np.allclose(_read(tmp_path), _expected(3600))


def test_injection_before_midnight(tmp_path: Path) -> None:
    _write(tmp_path, {"RadiopharmaceuticalStartTime": "233000"}, SeriesTime="003000", AcquisitionTime="003000")
    assert np.allclose(_read(tmp_path), _expected(3600))


def test_series_made_after_the_scan_counts_from_the_frames(tmp_path: Path) -> None:
    """A workstation's series: the scan began where the frame's reference time says, 1/rate weighted within the frame."""
    _write(tmp_path, SeriesTime="150000", AcquisitionTime="101000", FrameReferenceTime="690000", ActualFrameDuration="180000")
    rate = np.log(2) / LIFE
    average = np.log(rate * 180 / (1 - np.exp(-rate * 180))) / rate
    assert np.allclose(_read(tmp_path), _expected(3600 + 600 - 690 + average))


def test_private_scan_time_of_ge(tmp_path: Path) -> None:
    from pydicom import dcmread

    _write(tmp_path, SeriesTime="150000", AcquisitionTime="101000")
    for file in tmp_path.iterdir():
        data = dcmread(file)
        data.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200102100500.00")
        data.save_as(file)
    assert np.allclose(_read(tmp_path), _expected(3900))


def test_admin_correction_takes_the_dose_as_injected(tmp_path: Path) -> None:
    _write(tmp_path, DecayCorrection="ADMIN")
    assert np.allclose(_read(tmp_path), _expected(0))


def test_grams_per_millilitre_are_suv_already(tmp_path: Path) -> None:
    _write(tmp_path, Units="GML", PatientWeight=None)
    assert np.allclose(_read(tmp_path), STORED * 2.5)


def test_counts_of_philips(tmp_path: Path) -> None:
    from pydicom import dcmread

    _write(tmp_path, Units="CNTS")
    with pytest.raises(ImageError, match=r"the factor from counts to SUV, private element \(7053,1000\) of Philips"):
        _read(tmp_path)
    for file in tmp_path.iterdir():
        data = dcmread(file)
        data.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0.002")
        data.save_as(file)
    assert np.allclose(_read(tmp_path), STORED * 2.5 * 0.002)


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    _write(tmp_path, {"RadionuclideTotalDose": None}, PatientWeight=None, DecayCorrection="NONE")
    (volume,) = scan(tmp_path).volumes
    assert "PET cannot become SUV" in str(volume.warnings[0])
    with pytest.raises(ImageError) as told:
        read_voxels(volume)
    assert "not stated: PatientWeight, RadionuclideTotalDose, DecayCorrection START or ADMIN (is 'NONE')" in str(told.value)
    assert "--pet raw" in str(told.value)
    assert np.array_equal(read_voxels(volume, suv=False)[0], STORED * 2.5)


@pytest.mark.parametrize("series", ["100000", "100500", "150000"])
def test_beds_have_one_start(tmp_path: Path, series: str) -> None:
    """Beds at 10:00 and 10:15 are corrected to one moment, also where the series was made between them or later."""
    _write(tmp_path, SeriesTime=series, AcquisitionTime=lambda z: ("100000", "101500")[z])
    assert np.allclose(_read(tmp_path), _expected(3600))


@pytest.mark.parametrize("kind", ["LBM", "BSA", "IBW", "LBMJANMA"])
def test_other_kinds_of_suv_are_not_taken_for_body_weight(tmp_path: Path, kind: str) -> None:
    _write(tmp_path, Units="GML", SUVType=kind)
    (volume,) = scan(tmp_path).volumes
    assert f"PET is SUV, but not by body weight; found SUV Type {kind}, expected BW" in str(volume.warnings[0])
    with pytest.raises(ImageError, match="not by body weight"):
        read_voxels(volume)
    assert np.array_equal(read_voxels(volume, suv=False)[0], STORED * 2.5)


def test_suv_that_says_by_body_weight(tmp_path: Path) -> None:
    _write(tmp_path, Units="GML", SUVType="BW")
    assert np.allclose(_read(tmp_path), STORED * 2.5)


@pytest.mark.parametrize(("tags", "found"), [({"Units": "CM2ML"}, "units CM2ML"), ({"Units": None}, "no units")])
def test_pet_that_is_left_as_stored_says_so(tmp_path: Path, tags: dict[str, Any], found: str) -> None:
    _write(tmp_path, **tags)
    (volume,) = scan(tmp_path).volumes
    assert f"is PET whose values do not become SUV; they are read as stored; found {found}" in str(volume.warnings[0])
    assert np.array_equal(_read(tmp_path), STORED * 2.5)


def test_enhanced_pet_says_so(tmp_path: Path) -> None:
    grid = grid_of(SHAPE)
    write_enhanced(tmp_path / "pet.dcm", STORED[None], grid, Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.130")
    (volume,) = scan(tmp_path).volumes
    assert any("is PET whose values do not become SUV" in str(warning) for warning in volume.warnings)
