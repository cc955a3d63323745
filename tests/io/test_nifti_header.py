"""The fields of a header and what they say are nibabel's, to the bit."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.io.nifti_header import FIELDS, SIZES, RawHeader

KINDS = {1: nib.Nifti1Header, 2: nib.Nifti2Header}
both = pytest.mark.parametrize("version", [1, 2])


def foreign(version: int, order: str, rng: np.random.Generator) -> nib.Nifti1Header:
    made = KINDS[version](endianness=order, check=False)
    made["dim"] = [3, *rng.integers(1, 200, 3), 1, 1, 1, 1]
    made["pixdim"] = [rng.choice([-1, 1]), *rng.uniform(0.1, 5, 3), 1, 1, 1, 1]
    quaternion = rng.normal(size=4)
    quaternion /= np.linalg.norm(quaternion) * np.sign(quaternion[0])
    for name, value in zip(("b", "c", "d"), quaternion[1:], strict=True):
        made[f"quatern_{name}"] = value
    for name, row in zip(("x", "y", "z"), rng.normal(size=(3, 4)), strict=True):
        made[f"qoffset_{name}"] = 100 * row[0]
        made[f"srow_{name}"] = row
    made["scl_slope"], made["scl_inter"] = rng.normal(size=2)
    made["qform_code"], made["sform_code"], made["xyzt_units"] = rng.integers(0, 5, 3)
    return made


@both
@pytest.mark.parametrize("order", ["<", ">"])
@given(seed=st.integers(0, 2**32 - 1))
def test_affines_and_fields_are_nibabels_to_the_bit(version: int, order: str, seed: int) -> None:
    theirs = foreign(version, order, np.random.default_rng(seed))
    ours = RawHeader(theirs.binaryblock, version, order)
    assert ours.block == theirs.binaryblock
    for name in set(FIELDS[version].names) - {"quatern", "qoffset", "srow"}:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert ours.sform().tobytes() == theirs.get_sform().tobytes()
    assert ours.qform(ours["pixdim"]).tobytes() == theirs.get_qform().tobytes()
    assert ours.plain(ours["pixdim"]).tobytes() == theirs.get_base_affine().tobytes()
    assert ours.scale == theirs.get_slope_inter()


@both
def test_a_half_turn_and_an_impossible_quaternion(version: int) -> None:
    theirs = KINDS[version]()
    theirs["quatern_b"] = 1
    theirs["pixdim"][:4] = (1, 2, 3, 4)
    ours = RawHeader(theirs.binaryblock, version, theirs.endianness)
    assert ours.qform(ours["pixdim"]).tobytes() == theirs.get_qform().tobytes()
    ours["quatern"] = (1, 1, 0)
    with pytest.raises(ValueError, match=r"w2 should be positive, but is -1\.0+e\+00"):
        ours.qform(ours["pixdim"])


@both
@pytest.mark.parametrize("dim", [(1, 9), (2, 9, 7), (4, 9, 7, 5, 3)])
def test_without_an_affine_the_origin_is_in_the_middle(version: int, dim: tuple[int, ...]) -> None:
    theirs = KINDS[version](check=False)
    theirs["dim"][: len(dim)] = dim
    theirs["pixdim"][1:5] = (0.5, 2, 3, 4)
    ours = RawHeader(theirs.binaryblock, version, theirs.endianness)
    np.testing.assert_array_equal(ours.plain(ours["pixdim"]), theirs.get_base_affine())


@both
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", [2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1792, 2304])
def test_types_are_nibabels(version: int, order: str, code: int) -> None:
    theirs = KINDS[version](endianness=order, check=False)
    theirs["datatype"] = code
    assert RawHeader(theirs.binaryblock, version, order).dtype == theirs.get_data_dtype()


@both
@pytest.mark.parametrize("code", [0, 1, 255, 3, 9999, -4])
def test_types_without_meaning(version: int, code: int) -> None:
    header = RawHeader(bytes(SIZES[version]), version, "<")
    header["datatype"] = code
    assert header.dtype is None


@pytest.mark.parametrize("name", ["uint8", "int16", "uint16", "int32", "int64", "float32"])
def test_a_type_that_is_set(name: str) -> None:
    theirs = nib.Nifti1Header(endianness=">")
    ours = RawHeader(theirs.binaryblock, 1, ">")
    ours.dtype = np.dtype(name)
    theirs.set_data_dtype(name)
    assert ours.block == theirs.binaryblock


def test_an_intercept_that_is_no_number() -> None:
    header = RawHeader(bytes(348), 1, "<")
    assert header.scale is None
    header["scl_slope"], header["scl_inter"] = 2, np.inf
    with pytest.raises(ValueError, match="intercept inf"):
        _ = header.scale
    header["scl_slope"] = np.nan
    assert header.scale is None
