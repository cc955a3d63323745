"""What COCO's annotations are as label maps."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from medseg.dataset import NUMBER_BITS, LabelClass, Labels
from medseg.errors import ImageError
from medseg.io.coco.annotations import Picture, read_annotations
from medseg.io.coco.labels import image_id, label_digest, label_path
from medseg.io.digests import image_digest
from medseg.io.images import files_behind, is_present, read_annotation, read_header, read_label, write_label
from medseg.io.rle import Rle
from tests.io.coco.scenes import SHAPE, THINGS, annotation, instances, listed, pictures, segments, square, write


def code(value: int, number: int = 0) -> int:
    return value << NUMBER_BITS | number


def drawn(tmp_path, *annotations):
    file = write(tmp_path / "c.json", listed("a.png"), annotations)
    return read_label(label_path(file, 1))


def test_objects_of_every_form(tmp_path):
    """A polygon, two polygons of one object, run lengths as numbers and as text."""
    bar = np.zeros(SHAPE, bool)
    bar[5] = True
    rle = Rle.encode(bar)
    plus = np.zeros(SHAPE, bool)
    plus[0:2, 6] = True
    found = drawn(
        tmp_path,
        annotation(1, 1, square(0, 0)),
        annotation(2, 1, [*square(0, 3, 1), *square(3, 3, 1)], category=3),
        annotation(3, 1, {"size": list(SHAPE), "counts": rle.counts.tolist()}),
        annotation(4, 1, {"size": list(SHAPE), "counts": Rle.encode(plus).to_string()}, category=3),
    )
    expected = np.zeros(SHAPE, np.int32)
    expected[0:2, 0:2] = code(1, 1)
    expected[0, 3] = expected[3, 3] = code(3, 2)
    expected[5] = code(1, 3)
    expected[0:2, 6] = code(3, 4)
    assert found.array[0].tolist() == expected.tolist()
    assert found.array.dtype == np.int32
    assert found.native.warnings == ()


def test_golden_masks_of_pycocotools(tmp_path):
    """`annToMask` of pycocotools 2.0 for polygons with fractions, beyond the border, and of two parts."""
    found = drawn(tmp_path, annotation(1, 1, [[0.4, 0.6, 5.2, 0.2, 3.1, 3.9], [4.5, 3.5, 8.4, 3.5, 8.4, 5.6, 4.5, 5.6]]))
    assert (found.array[0] != 0).astype(int).tolist() == GOLDEN


GOLDEN = [
    [0, 0, 1, 1, 1, 0, 0, 0],
    [0, 1, 1, 1, 0, 0, 0, 0],
    [0, 0, 1, 1, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 1, 1, 1],
    [0, 0, 0, 0, 0, 1, 1, 1],
]


def test_smaller_objects_lie_on_top_and_crowds_beneath(tmp_path):
    crowd = {"size": list(SHAPE), "counts": [0, SHAPE[0] * SHAPE[1]]}
    found = drawn(
        tmp_path,
        annotation(1, 1, square(0, 0, 1)),
        annotation(2, 1, square(0, 0, 3)),
        annotation(3, 1, square(2, 2, 3)),
        annotation(4, 1, crowd, iscrowd=1),
        annotation(5, 1, square(0, 0, 1), category=3),
    )
    array = found.array[0]
    assert array[0, 0] == code(3, 4)  # of two equal ones the later
    assert array[2, 2] == code(1, 3)
    assert array[0, 1] == code(1, 2)
    assert array[5, 7] == code(5)  # one above the highest category
    assert found.native.warnings == (
        "objects lie wholly beneath smaller ones, and are left out: annotation 1",
        "objects overlap in 3 pixels, where the smaller one lies on top",
    )
    header = read_header(label_path(tmp_path / "c.json", 1), label=True)
    assert (header.shape, header.native.warnings) == (SHAPE, ())


def test_objects_without_a_pixel_and_beyond_the_border_are_told(tmp_path):
    found = drawn(tmp_path, annotation(1, 1, [[2.1, 2.1, 2.2, 2.1, 2.2, 2.2]]), annotation(2, 1, [[-4, 0, 3, 0, 3, 2, -4, 2]]))
    assert found.array[0, 0:2, 0:3].tolist() == [[code(1, 1)] * 3] * 2
    assert np.count_nonzero(found.array) == 6
    assert found.native.warnings == (
        "objects cover no pixel, and are left out: annotation 1",
        "objects reach out of their image, and are cut: annotation 2",
    )


def test_all_damaged_masks_of_an_image_are_told_at_once(tmp_path):
    size = list(SHAPE)
    with pytest.raises(ImageError) as caught:
        drawn(
            tmp_path,
            annotation(1, 1, {"size": size, "counts": Rle.encode(np.ones((3, 3))).to_string()}),
            annotation(2, 1, {"size": size, "counts": "\x01"}),
            annotation(3, 1, square(20, 20)),
        )
    first, second, third = map(str, caught.value.problems)
    assert "c.json, annotation 1 of 'a.png': run lengths do not fill their image; found 9 voxels, expected 48 for 6 x 8" in first
    assert "annotation 2 of 'a.png': not a string of run lengths" in second
    assert "annotation 3 of 'a.png': lies outside its image; expected polygons within 8 x 6 pixels" in third


def test_an_image_without_objects(tmp_path):
    instances(tmp_path)
    label = read_label(label_path(tmp_path / "annotations.json", 2))
    assert not label.array.any()
    assert label.grid.shape == SHAPE


def test_category_ids_become_class_values_where_they_fit(tmp_path):
    high = [{"id": 0, "name": "a"}, {"id": 9000, "name": "b"}]
    file = write(tmp_path / "h.json", listed("a.png"), [annotation(1, 1, square(0, 0), 9000), annotation(2, 1, square(4, 4), 0)], high)
    assert read_annotations(file).values == {0: 1, 9000: 2}
    found = read_label(label_path(file, 1)).array[0]
    assert (found[0, 0], found[4, 4]) == (code(2, 1), code(1, 2))
    assert read_annotations(instances(tmp_path / "i")).values == {1: 1, 3: 3, 4: 4}


def test_a_file_is_remembered_as_text(tmp_path):
    """Workers hold little more than the file, and give its numbers as they stand there."""
    outline = [[k / 7 % 8 for k in range(2000)]]
    given = [annotation(k, 1, outline) for k in range(1, 41)]
    file = write(tmp_path / "large.json", listed("a.png"), given)
    tracemalloc.start()
    found = read_annotations(file)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.2 * file.stat().st_size
    assert found.of(found.pictures[1]) == given
    assert read_annotations(instances(tmp_path / "i")).of(Picture(2, "b.png", SHAPE)) == []


def test_names_and_digests(tmp_path):
    file = instances(tmp_path)
    one, other = label_path(file, 1), label_path(file, 2)
    assert image_id(one) == 1
    assert is_present(one)
    assert files_behind(one) == (file,)
    before = image_digest(one), image_digest(other)
    assert before[0] != before[1]
    data = [annotation(7, 1, square(0, 1)), annotation(8, 1, square(3, 4), category=3)]
    write(file, listed("a.png", "b.png"), data, info={"version": "2, so that the size differs"})
    assert image_digest(one) != before[0]  # a mask has moved
    assert label_digest(other) == before[1]  # of this image nothing has
    for wrong in (file / "x.coco", file / "1.png", file / "-1.coco"):
        with pytest.raises(ImageError, match="no name of a label map in COCO"):
            image_id(wrong)
    with pytest.raises(ImageError, match=r"an image is missing; found no image 9. Plan again"):
        read_label(label_path(file, 9))
    with pytest.raises(ImageError, match="an annotation is not written"):
        write_label(tmp_path / "1.coco", np.zeros(SHAPE, np.uint8), tmp_path / "images" / "a.png")


def test_panoptic_segments(tmp_path):
    """Stuff has no numbers, void and crowds are ignored, ids take three bytes; segments without a pixel are told."""
    ids = np.array([[0, 5, 5], [70_000, 70_000, 9], [300, 300, 9]])
    infos = [
        {"id": 9, "category_id": 2},
        {"id": 70_000, "category_id": 1},
        {"id": 5, "category_id": 1, "iscrowd": 0},
        {"id": 300, "category_id": 1, "iscrowd": 1},
        {"id": 4, "category_id": 1},
    ]
    file = segments(tmp_path, ids, infos)
    path = label_path(file, 1)
    pictures(tmp_path / "images", "a.png", shape=(3, 3))
    write(
        file,
        [{"id": 1, "file_name": "a.png", "height": 3, "width": 3}],
        [{"image_id": 1, "file_name": "a.png", "segments_info": infos}],
        THINGS,
    )
    found = read_label(path)
    ignored, stuff, one, two = code(3), code(2), code(1, 1), code(1, 2)
    assert found.array[0].tolist() == [[ignored, two, two], [one, one, stuff], [ignored, ignored, stuff]]
    assert found.native.warnings == ("segments have no pixel, and are left out: ids 4",)
    assert files_behind(path) == (file, tmp_path / "panoptic" / "a.png")
    before = label_digest(path)
    (tmp_path / "panoptic" / "a.png").write_bytes(b"another")
    assert label_digest(path) != before


def test_panoptic_maps_that_are_none(tmp_path):
    file = segments(tmp_path, np.full(SHAPE, 7), [{"id": 6, "category_id": 1}])
    png = tmp_path / "panoptic" / "a.png"
    with pytest.raises(ImageError, match=r"segments that the JSON does not list; found ids 7, expected those of 'a.png' in panoptic.json"):
        read_label(label_path(file, 1))
    png.unlink()
    with pytest.raises(ImageError, match="does not exist"):
        read_label(label_path(file, 1))
    pictures(tmp_path / "panoptic", "a.png")
    with pytest.raises(ImageError, match=r"is no panoptic map; found 1 channel of uint8"):
        read_label(label_path(file, 1))
    png.write_bytes(flat_png(6, 8, 8, bytes(6)))
    with pytest.raises(ImageError, match=r"is truncated or damaged"):
        read_label(label_path(file, 1))
    png.write_bytes(flat_png(50_000, 50_000, 8, bytes(6)))  # nothing is unpacked
    with pytest.raises(ImageError, match=r"another size than its image; found 50000 x 50000, expected 6 x 8"):
        read_label(label_path(file, 1))
    segments(tmp_path / "other", np.full((3, 3), 6), [{"id": 6, "category_id": 1}])
    png.write_bytes((tmp_path / "other" / "panoptic" / "a.png").read_bytes())
    with pytest.raises(ImageError, match=r"another size than its image; found 3 x 3, expected 6 x 8 \(rows, columns\), as panoptic.json"):
        read_label(label_path(file, 1))


def flat_png(height, width, depth, data):
    """A PNG in colour whose header promises a size, whatever follows."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_codes_in_pictures_are_colours(tmp_path):
    """PNG, BMP and TIFF hold codes of several classes; PNG as COCO's panoptic maps do."""
    labels = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(255,))), things=("a", "b"))
    codes = np.zeros(SHAPE, np.int32)
    codes[0], codes[1], codes[2, 3] = code(1, 1), code(255, 65535), code(1, 257)
    for suffix in (".png", ".bmp", ".tif"):
        pictures(tmp_path, f"image{suffix}")
        write_label(tmp_path / f"label{suffix}", codes, tmp_path / f"image{suffix}", colours=True)
        found = read_annotation(tmp_path / f"label{suffix}", labels).array[0]
        assert found.tolist() == codes.tolist()
        write_label(tmp_path / f"empty{suffix}", codes * 0, tmp_path / f"image{suffix}", colours=True)
        assert not read_annotation(tmp_path / f"empty{suffix}", labels).array.any()
    with pytest.raises(ImageError, match="several channels"):
        read_label(tmp_path / "label.png")
    with pytest.raises(ImageError, match="expected 2D, values 0 to 65535"):
        write_label(tmp_path / "label.png", codes, tmp_path / "image.png")
