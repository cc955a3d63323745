"""DICOM objects over the images that they refer to, drawn without medseg: what a viewer would show.

    python benchmarks/dicom_overlay.py STUDY OBJECT... -o overlay.png

STUDY is a folder with the image series; each OBJECT is a DICOM SEG (read by highdicom) or an RTSTRUCT (read by pydicom). One row per object:
the three slices of which most is segmented, at 25, 50 and 75 % of its extent, with real proportions. Slices find their images by SOP Instance
UID, and contours their place by the images' own positions, so a flipped or shifted object looks flipped or shifted. Fails where an object
belongs to another patient, study or frame of reference than its images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import highdicom as hd
import numpy as np
from PIL import Image, ImageDraw
from pydicom import Dataset, dcmread

SIZE = 360  # pixels along the longer side of a slice
SHARED = ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "FrameOfReferenceUID")
COLOURS = ((255, 80, 60), (60, 160, 255), (90, 220, 90), (240, 200, 40), (220, 90, 220))


def images(study: Path) -> dict[str, Dataset]:
    """The images below a folder by SOP Instance UID."""
    found = {}
    for path in sorted(study.rglob("*")):
        if path.is_file():
            data = dcmread(path, force=True)
            if "ImagePositionPatient" in data and "PixelData" in data:
                found[str(data.SOPInstanceUID)] = data
    return found


def masks_of_segmentation(path: Path, study: dict[str, Dataset]) -> tuple[dict[str, dict[str, np.ndarray]], Dataset]:
    """Image -> name of the segment -> mask."""
    data = hd.seg.segread(path)
    frames = data.get_source_image_uids()
    uids = [str(uid) for _, _, uid in frames]
    pixels = data.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    names = [str(data.get_segment_description(n).segment_label) for n in data.segment_numbers]
    return {uid: {name: pixels[i, ..., k] > 0 for k, name in enumerate(names)} for i, uid in enumerate(uids)}, data


def masks_of_contours(path: Path, study: dict[str, Dataset]) -> tuple[dict[str, dict[str, np.ndarray]], Dataset]:
    """Image -> name of the ROI -> mask; contours of one ROI in one image are combined by exclusive or."""
    data = dcmread(path)
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in data.StructureSetROISequence}
    found: dict[str, dict[str, np.ndarray]] = {}
    for roi in data.ROIContourSequence:
        for contour in roi.get("ContourSequence", []):
            uid = str(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
            image = study[uid]
            along_row, along_column = np.reshape(np.asarray(image.ImageOrientationPatient, float), (2, 3))
            offset = np.reshape(np.asarray(contour.ContourData, float), (-1, 3)) - np.asarray(image.ImagePositionPatient, float)
            rows, columns = offset @ along_column / float(image.PixelSpacing[0]), offset @ along_row / float(image.PixelSpacing[1])
            fine = Image.new("1", (image.Columns * 8, image.Rows * 8))
            ImageDraw.Draw(fine).polygon([(8 * c + 3.5, 8 * r + 3.5) for r, c in zip(rows, columns, strict=True)], fill=1)
            mask = np.asarray(fine)[4::8, 4::8]
            here = found.setdefault(uid, {}).setdefault(names[int(roi.ReferencedROINumber)], np.zeros(mask.shape, bool))
            here ^= mask
    return found, data


def drawn(image: Dataset, masks: dict[str, np.ndarray], names: list[str]) -> Image.Image:
    """One slice with the outlines of its masks."""
    pixels = image.pixel_array.astype(float)
    low, high = np.percentile(pixels, [1, 99.5])
    gray = (np.clip((pixels - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)
    height, width = pixels.shape[0] * float(image.PixelSpacing[0]), pixels.shape[1] * float(image.PixelSpacing[1])
    size = (round(SIZE * width / max(height, width)), round(SIZE * height / max(height, width)))
    colour = np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BICUBIC).convert("RGB")).copy()
    for name, mask in masks.items():
        large = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        inner = large & np.roll(large, 1, 0) & np.roll(large, -1, 0) & np.roll(large, 1, 1) & np.roll(large, -1, 1)
        shade = np.asarray(COLOURS[names.index(name) % len(COLOURS)])
        colour[large] = (0.75 * colour[large] + 0.25 * shade).astype(np.uint8)
        colour[large & ~inner] = shade
    return Image.fromarray(colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("objects", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = images(arguments.study)
    rows = []
    for path in arguments.objects:
        kind = str(dcmread(path, stop_before_pixels=True).Modality)
        masks, data = (masks_of_contours if kind == "RTSTRUCT" else masks_of_segmentation)(path, study)
        some = study[next(iter(masks))]
        for keyword in SHARED:
            ours = data.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID if keyword not in data else data[keyword].value
            assert str(ours or "") == str(some.get(keyword, "")), f"{path.name}: {keyword} differs from the images'"
        names = sorted({name for several in masks.values() for name in several})
        normal = np.cross(*np.reshape(np.asarray(some.ImageOrientationPatient, float), (2, 3)))
        order = sorted(
            (uid for uid, several in masks.items() if any(mask.any() for mask in several.values())),
            key=lambda uid: float(np.asarray(study[uid].ImagePositionPatient, float) @ normal),
        )
        voxels = {name: sum(int(several[name].sum()) for several in masks.values() if name in several) for name in names}
        print(f"{path.name}: {kind}, {len(order)} slices, {', '.join(f'{name} {count} voxels' for name, count in voxels.items())}")
        rows.append([drawn(study[uid], masks[uid], names) for uid in (order[len(order) * k // 4] for k in (1, 2, 3))])
    sheet = Image.new("RGB", (sum(one.width + 6 for one in rows[0]), sum(row[0].height + 6 for row in rows)))
    top = 0
    for row in rows:
        left = 0
        for one in row:
            sheet.paste(one, (left, top))
            left += one.width + 6
        top += row[0].height + 6
    sheet.save(arguments.out)


if __name__ == "__main__":
    main()
