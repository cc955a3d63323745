"""Segmentations of others: frames in any order and orientation, overlaps, fractions, odd encodings, damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medseg.errors import ImageError
from medseg.geometry import Array
from medseg.io.dicom.reading.segments import read_segmentation, segmentation_header
from medseg.io.dicom.volume import Source, Volume
from medseg.io.dicom.writing.segmentation import LabelMap, Seg
from tests.io.dicom.predicted import letter, predicted, series


def written(folder: Path, volume: Volume, change: Callable[[Dataset], None] | None = None, kind: str = "seg") -> Source:
    """A segmentation of the letter, changed and written again."""
    (Seg() if kind == "seg" else LabelMap()).write(predicted(volume, letter(volume.grid.shape)), folder)
    file = folder / f"case.{kind}.dcm"
    if change is not None:
        data = pydicom.dcmread(file)
        change(data)
        syntax = data.file_meta.TransferSyntaxUID
        pydicom.dcmwrite(
            file,
            data,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            force_encoding=True,
        )
    return Source(file)


def made(folder: Path, volume: Volume, pixels: Array, **options: Any) -> Source:
    """A segmentation by highdicom from arrays, with segments along the last axis of `(Z, Y, X, K)`."""
    images = [pydicom.dcmread(frame.source.path) for frame in volume.frames[0]]
    algorithm = highdicom.AlgorithmIdentificationSequence("a", codes.DCM.ArtificialIntelligence, "1")
    count = pixels.shape[-1]
    segments = [
        highdicom.seg.SegmentDescription(
            k + 1, f"part {k + 1}", codes.SCT.Tissue, codes.SCT.Tissue, "AUTOMATIC", algorithm_identification=algorithm
        )
        for k in range(count)
    ]
    given: dict[str, Any] = {"source_images": images, "segmentation_type": "BINARY", "omit_empty_frames": True, **options}
    data = highdicom.seg.Segmentation(
        pixel_array=pixels,
        segment_descriptions=segments,
        series_instance_uid="2.25.1",
        series_number=1,
        sop_instance_uid="2.25.2",
        instance_number=1,
        manufacturer="a",
        manufacturer_model_name="b",
        software_versions="1",
        device_serial_number="1",
        **given,
    )
    folder.mkdir(exist_ok=True)
    data.save_as(folder / "made.dcm")
    return Source(folder / "made.dcm")


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return series(tmp_path / "in")


def test_overlapping_segments_come_in_several_maps(tmp_path: Path, volume: Volume) -> None:
    pixels = np.zeros((*volume.grid.shape, 4), np.uint8)
    pixels[1:4, 2:8, 2:8, 0] = 1
    pixels[2:4, 3:6, 3:6, 1] = 1
    pixels[0, 0, 0, 2] = 1
    pixels[3, 5, 5, 3] = 1
    found = read_segmentation(made(tmp_path, volume, pixels), volume)
    assert found.names == {k: f"part {k}" for k in (1, 2, 3, 4)}
    assert len(found.maps) == 3
    assert [sorted(set(np.unique(one)) - {0}) for one in found.maps] == [[1, 3], [2], [4]]
    for k in range(4):
        assert np.array_equal(np.any([one == k + 1 for one in found.maps], axis=0), pixels[..., k] == 1)


def test_a_subset_of_slices_and_of_pixels(tmp_path: Path, volume: Volume) -> None:
    pixels = np.ones((2, 4, 5, 1), np.uint8)
    positions = [highdicom.PlanePositionSequence("PATIENT", volume.grid.world((z, 3.0, 2.0))) for z in (1, 3)]
    measures = highdicom.PixelMeasuresSequence(volume.grid.spacing[1:], volume.grid.spacing[0])
    source = made(tmp_path, volume, pixels, plane_positions=positions, pixel_measures=measures)
    (found,) = read_segmentation(source, volume).maps
    wanted = np.zeros(volume.grid.shape, np.uint8)
    wanted[[1, 3], 3:7, 2:7] = 1
    assert np.array_equal(found, wanted)


def test_frames_across_the_slices(tmp_path: Path, volume: Volume) -> None:
    """Coronal frames, from below upwards, on axial images."""
    grid, labels = volume.grid, letter(volume.grid.shape)
    coronal = np.flip(labels == 1, 0).transpose(1, 0, 2)[..., None].astype(np.uint8)
    last = grid.shape[0] - 1
    positions = [highdicom.PlanePositionSequence("PATIENT", grid.world((float(last), float(y), 0.0))) for y in range(grid.shape[1])]
    orientation = highdicom.PlaneOrientationSequence("PATIENT", [*grid.direction[:, 2], *-grid.direction[:, 0]])
    measures = highdicom.PixelMeasuresSequence((grid.spacing[0], grid.spacing[2]), grid.spacing[1])
    source = made(tmp_path, volume, coronal, plane_positions=positions, plane_orientation=orientation, pixel_measures=measures)
    (found,) = read_segmentation(source, volume).maps
    assert np.array_equal(found, labels == 1)


def test_fractions_take_a_threshold(tmp_path: Path, volume: Volume) -> None:
    shares = np.random.default_rng(0).random((*volume.grid.shape, 1)).astype(np.float32)
    source = made(tmp_path, volume, shares, segmentation_type="FRACTIONAL", max_fractional_value=200)
    with pytest.raises(ImageError, match=r"holds fractions, not masks; found probability between 0 and 1, expected a threshold"):
        read_segmentation(source, volume)
    (found,) = read_segmentation(source, volume, 0.25).maps
    assert np.array_equal(found, np.rint(shares[..., 0] * 200) >= 50)
    whole = made(tmp_path, volume, (shares > 0.5).astype(np.uint8), segmentation_type="FRACTIONAL")
    assert np.array_equal(read_segmentation(whole, volume).maps[0], shares[..., 0] > 0.5)


@pytest.mark.parametrize("kind", ["seg", "labelmap"])
@pytest.mark.parametrize("big", [False, True])
def test_encodings(tmp_path: Path, volume: Volume, kind: str, big: bool) -> None:
    def encode(data: Dataset) -> None:
        if data.file_meta.TransferSyntaxUID.is_compressed:
            data.decompress()
        if not big:
            data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            return
        data["PixelData"].VR = "OW"
        pixels = data.PixelData + b"\0" * (len(data.PixelData) % 2)
        data.PixelData = np.frombuffer(pixels, np.uint16).byteswap().tobytes()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian

    source = written(tmp_path / "out", volume, encode, kind)
    assert np.array_equal(read_segmentation(source, volume).maps[0], letter(volume.grid.shape))


def test_more_segments_than_a_byte_numbers(tmp_path: Path, volume: Volume) -> None:
    labels = np.arange(volume.grid.shape[0] * 90, dtype=np.uint16).reshape(volume.grid.shape) % 301
    result = predicted(volume, labels, tuple(f"part {k + 1}" for k in range(300)))
    LabelMap().write(result, tmp_path)
    found = read_segmentation(Source(tmp_path / "case.labelmap.dcm"), volume)
    assert np.array_equal(found.maps[0], labels)
    assert found.maps[0].dtype == np.int16


def test_frames_without_a_position_are_placed_by_their_images(tmp_path: Path, volume: Volume) -> None:
    def strip(data: Dataset) -> None:
        for group in data.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence

    source = written(tmp_path / "out", volume, strip)
    assert np.array_equal(read_segmentation(source, volume).maps[0], letter(volume.grid.shape))


def test_padding_of_a_label_map_is_background(tmp_path: Path, volume: Volume) -> None:
    def pad(data: Dataset) -> None:
        data.decompress()
        pixels = np.frombuffer(data.PixelData, np.uint8).copy()
        pixels[pixels == 0] = 99
        data.PixelData = pixels.tobytes()
        data.PixelPaddingValue = 99

    source = written(tmp_path / "out", volume, pad, "labelmap")
    assert np.array_equal(read_segmentation(source, volume).maps[0], letter(volume.grid.shape))


def _shift(millimetres: float) -> Callable[[Dataset], None]:
    def change(data: Dataset) -> None:
        for group in data.PerFrameFunctionalGroupsSequence:
            position = group.PlanePositionSequence[0].ImagePositionPatient
            group.PlanePositionSequence[0].ImagePositionPatient = [float(position[0]) + millimetres, position[1], position[2]]

    return change


def _alien(data: Dataset) -> None:
    data.FrameOfReferenceUID = "2.25.7"
    data.ReferencedSeriesSequence[0].SeriesInstanceUID = "2.25.8"


def _tiled(data: Dataset) -> None:
    data.TotalPixelMatrixRows = 50


def _cut(data: Dataset) -> None:
    data.PixelData = data.PixelData[:20]


def _renumbered(data: Dataset) -> None:
    data.SegmentSequence[1].SegmentNumber = 1


def _fewer(data: Dataset) -> None:
    data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:-1]


def _lost(data: Dataset) -> None:
    data.SegmentSequence = data.SegmentSequence[:1]


def _untyped(data: Dataset) -> None:
    data.SegmentationType = "SURFACE"


def _empty(data: Dataset) -> None:
    data.SegmentSequence = []


def _coarse(data: Dataset) -> None:
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [2, 2]


def _bare(data: Dataset) -> None:
    del data.PixelData


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_shift(0.35), r"lies on other voxels than its images; found frame 1 begins at voxel 3, 0, 0\.5"),
        (_shift(0.7 * 5), r"marks voxels outside of its images"),
        (_coarse, r"lies on other voxels than its images"),
        (_alien, r"annotates other images; found another series and frame of reference"),
        (_tiled, r"is a segmentation of tiled microscopy, which is not read"),
        (_cut, r"is a damaged DICOM segmentation; found 20 bytes of pixels, expected 57 for 5 frames"),
        (_bare, r"is a damaged DICOM segmentation; found no pixels, expected 5 frames"),
        (_renumbered, r"is a damaged DICOM segmentation; found Segment Number '1', expected a number for each segment, once"),
        (_fewer, r"is a damaged DICOM segmentation; found 4 functional groups for 5 frames"),
        (_lost, r"is a damaged DICOM segmentation; found frame 4 of segment '2'"),
        (_untyped, r"found Segmentation Type 'SURFACE', expected BINARY, FRACTIONAL, LABELMAP"),
        (_empty, r"found no segment"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, volume: Volume, change: Callable[[Dataset], None], told: str) -> None:
    source = written(tmp_path / "out", volume, change)
    with pytest.raises(ImageError, match=told):
        read_segmentation(source, volume)


def test_other_things_are_refused(tmp_path: Path, volume: Volume) -> None:
    with pytest.raises(ImageError, match=r"is no DICOM segmentation; found CT Image Storage"):
        segmentation_header(volume.frames[0][0].source)

    def undescribed(data: Dataset) -> None:
        data.SegmentSequence = data.SegmentSequence[:2]

    source = written(tmp_path / "out", volume, undescribed, "labelmap")
    with pytest.raises(ImageError, match=r"found values 2, 3 that no segment describes"):
        read_segmentation(source, volume)
    broken = series(tmp_path / "broken", ImagePositionPatient=lambda z: ["0", "0", str([0, 3, 6, 20, 23][z])])
    with pytest.raises(ImageError):
        read_segmentation(source, broken)


def test_damaged_frames_are_told(tmp_path: Path, volume: Volume) -> None:
    def damage(data: Dataset) -> None:
        data.PixelData = pydicom.encaps.encapsulate([b"\x01\x02" * 4] * 5)

    source = written(tmp_path / "out", volume, damage, "labelmap")
    with pytest.raises(ImageError, match=r"is a damaged DICOM segmentation"):
        read_segmentation(source, volume)
