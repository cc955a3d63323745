"""Label maps of other formats find the images they were drawn on, and lie on their voxels whatever the order of their axes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg.errors import ImageError, MedsegError, UsageError
from medseg.geometry import Array, Grid, Reorient
from medseg.io.dicom.conversion import convert
from medseg.io.dicom.reading.reader import scan
from medseg.io.dicom.reading.segments import read_segmentation
from medseg.io.dicom.volume import Source
from medseg.io.dicom.writing.masks import same_voxels, write_mask
from medseg.io.dicom.writing.segmentation import Seg
from medseg.io.images import read_label
from medseg.io.nifti import Nifti
from tests.io.dicom.predicted import grid_along, letter, predicted, series


def nifti(file: Path, labels: Array, grid: Grid) -> Path:
    Nifti().write(file, labels[None], grid, None)
    return file


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True), (False, True, False), (True, True, True)])
def test_axes_are_undone(tmp_path: Path, axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    volume = series(tmp_path / "in", shape=(5, 9, 9), grid=grid_along((5, 9, 9), "oblique"))
    labels = letter(volume.grid.shape)
    step = Reorient(axes=axes, flips=flips)
    mask = nifti(tmp_path / "mask.nii.gz", step.apply(labels), step.grid(volume.grid))
    assert write_mask(mask, tmp_path / "in", tmp_path / "seg.dcm", classes={"liver": (1,), "spleen": (2,), "left kidney": (3,)}) == ()
    found = read_segmentation(Source(tmp_path / "seg.dcm"), volume)
    assert np.array_equal(found.maps[0], labels)
    assert found.names == {1: "liver", 2: "spleen", 3: "left kidney"}


def test_the_images_are_found_among_others(tmp_path: Path) -> None:
    series(tmp_path / "in" / "a", series="1")
    wanted = series(tmp_path / "in" / "b", grid=grid_along((5, 10, 9), "coronal"), series="2")
    mask = nifti(tmp_path / "mask.nii.gz", letter(wanted.grid.shape), wanted.grid)
    (problem,) = write_mask(mask, tmp_path / "in", tmp_path / "out.dcm", "labelmap")
    assert "label 1" in problem.where
    data = pydicom.dcmread(tmp_path / "out.dcm")
    assert data.ReferencedSeriesSequence[0].SeriesInstanceUID == wanted.series.uid
    assert [item.SegmentAlgorithmType for item in data.SegmentSequence] == ["SEMIAUTOMATIC"] * 4


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    labels = letter(volume.grid.shape)
    moved = volume.grid.affine.copy()
    moved[0, 3] += 0.3
    elsewhere = nifti(tmp_path / "moved.nii.gz", labels, Grid(labels.shape, moved))
    out = tmp_path / "out.dcm"
    with pytest.raises(ImageError, match=r"lies on the voxels of none of the images; found 5 x 10 x 9 voxels of 3 x 0\.8 x 0\.7 mm"):
        write_mask(elsewhere, tmp_path / "in", out)
    mask = nifti(tmp_path / "mask.nii.gz", labels, volume.grid)
    with pytest.raises(UsageError, match=r"holds values that belong to no class; found 2, 3"):
        write_mask(mask, tmp_path / "in", out, classes={"liver": (1,)})
    with pytest.raises(UsageError, match="writes several files"):
        write_mask(mask, tmp_path / "in", out, "sr")
    with pytest.raises(MedsegError, match="unknown name"):
        write_mask(mask, tmp_path / "in", out, "png")
    with pytest.raises(MedsegError, match="value 0 is background"):
        write_mask(mask, tmp_path / "in", out, classes={"air": (0,), "all": (1, 2, 3)})
    series(tmp_path / "in" / "again", series="2")
    with pytest.raises(UsageError, match="several volumes lie on the voxels of the mask"):
        write_mask(mask, tmp_path / "in", out)
    empty = nifti(tmp_path / "empty.nii.gz", np.zeros_like(labels), volume.grid)
    with pytest.raises(UsageError, match="holds no label"):
        write_mask(empty, tmp_path / "in", out)
    assert not out.exists()


def test_grids_of_other_voxels_are_not_the_same() -> None:
    grid = grid_along((5, 10, 9), "oblique")
    assert same_voxels(grid, grid) == Reorient(axes=(0, 1, 2), flips=(False, False, False))
    assert same_voxels(Grid((5, 10, 8), grid.affine), grid) is None
    assert same_voxels(grid_along((5, 10, 9), "axial"), grid) is None
    flat = Grid.plain((10, 9), (2.0, 2.0))
    assert same_voxels(Grid.plain((10, 9)), flat) is not None
    assert same_voxels(Grid.plain((9, 10)), flat) is None


def test_segmentations_become_label_maps_on_their_images(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    labels = letter(volume.grid.shape)
    Seg().write(predicted(volume, labels), tmp_path / "in")
    other = series(tmp_path / "other", series="3")
    Seg().write(predicted(other, labels), tmp_path / "lost")
    (tmp_path / "lost" / "case.seg.dcm").rename(tmp_path / "in" / "lost.dcm")
    done = convert(scan(tmp_path / "in"), tmp_path / "out")
    ((_, file),) = done.labels
    assert np.array_equal(read_label(file).array[0], labels)
    assert read_label(file).grid.distance(volume.grid) < 1e-4
    assert '"2": "left kidney"' in file.with_name(file.name.replace(".nii.gz", ".json")).read_text()
    ((_, (problem,)),) = done.left
    assert "the images that it is about are not among these files" in problem.what
