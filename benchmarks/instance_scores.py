"""Scores of objects on two public samples, against what others publish or compute of them.

    python benchmarks/instance_scores.py DATA [--write-tables]

DATA holds `coco_panoptic_sample/` (`sample_data` of github.com/cocodataset/panopticapi at 7bb4655: two images, `panoptic_examples/` and its JSON) and
`ct_mr_samples/spine_instance_metrics/` (`panoptica/spine_seg` of github.com/BrainLesion/tutorials at a2d3fff, flat: `unmatched_instance_ref.nii.gz`,
`semantic_pred.nii.gz`, ...). Which objects share how many voxels is counted from the files, and must equal the tables in
`tests/metrics/instances/published/`, which the tests score without the files (`--write-tables` writes them anew; their expected counts stay). Then
the same files are scored as a user would, by `medseg.evaluation.scoring.evaluate`, and the differences to the expected counts are written down.

panopticapi publishes no prediction of its sample. So the prediction is the truth, changed by a rule of integers alone (`changed`), and what is
expected is what panopticapi's `evaluation.py` (commit 1ad5afa) says of it. Numbers of the spine are those that panoptica's notebooks publish.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hardware import write
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medseg import steps
from medseg.dataset import NUMBER_BITS, LabelClass, Labels
from medseg.evaluation.scoring import evaluate
from medseg.io.images import read_label, write_label

TABLES = Path(__file__).parents[1] / "tests" / "metrics" / "instances" / "published"
COCO, SPINE = Path("coco_panoptic_sample"), Path("ct_mr_samples") / "spine_instance_metrics"
OBJECT = Labels(classes=(LabelClass(name="object", values=(1,)),), things=("object",), objects="numbers")

Ids = NDArray[np.int64]


def changed(truth: Ids, categories: Mapping[int, int]) -> tuple[Ids, dict[int, int]]:
    """A prediction made of the truth: a map `(h, w)` of ids, and the category of each.

    All is moved by 5 rows and 7 columns. Of the segments in the order of their ids each sixth is left out, each ninth takes the category of the
    one before it, each seventh is united with the one before where they are of one category, each fifth is cut into strips of 40 columns;
    what is void in the truth is a segment of the last category.
    """
    ids = sorted(categories)
    moved, told = np.roll(truth, (5, 7), (0, 1)), dict[int, int]()
    found = np.zeros_like(moved)
    strips = np.broadcast_to(np.arange(moved.shape[1]) // 40, moved.shape)
    for k, identity in enumerate(ids):
        here, before = moved == identity, ids[max(k - 1, 0)]
        if k % 6 == 5:
            continue
        number, category = k + 1, categories[before] if k % 9 == 4 else categories[identity]
        if k % 7 == 3 and told.get(k) == category:
            number = k
        numbers = number + (1000 * strips[here] if k % 5 == 0 else 0)
        found[here] = numbers
        told |= dict.fromkeys(np.unique(numbers).tolist(), category)
    found[(truth == 0) & (found == 0)] = 999
    present = set(np.unique(found).tolist())
    told |= {999: categories[ids[-1]]}
    return found, {number: category for number, category in told.items() if number in present}


def joint(truth: NDArray[Any], prediction: NDArray[Any]) -> list[list[int]]:
    """[value of the truth, of the prediction, voxels] of all pairs but background in both."""
    pairs, counts = np.unique(np.stack([truth.ravel(), prediction.ravel()]).astype(np.int64), axis=1, return_counts=True)
    return [[int(t), int(p), int(n)] for (t, p), n in zip(pairs.T, counts, strict=True) if t or p]


def coco_images(root: Path) -> list[dict[str, Any]]:
    """Name, map of ids and segments (id -> category, crowd) of both images; ids are 1, 2, ... in the order of the file's."""
    images = []
    for one in json.loads((root / "panoptic_examples.json").read_text())["annotations"]:
        colours = np.asarray(Image.open(root / "panoptic_examples" / one["file_name"])).astype(np.int64)
        segments = sorted(one["segments_info"], key=lambda s: int(s["id"]))
        ids = np.array([0, *(s["id"] for s in segments)])
        truth = np.searchsorted(ids, colours @ [1, 256, 65536])
        found, categories = changed(truth, {k: s["category_id"] for k, s in enumerate(segments, 1)})
        images.append({"name": Path(one["file_name"]).stem, "truth": truth, "found": found, "segments": segments, "categories": categories})
    return images


def coco_table(root: Path) -> list[dict[str, Any]]:
    return [
        {
            "name": one["name"],
            "truth": [[k, s["category_id"], s["iscrowd"]] for k, s in enumerate(one["segments"], 1)],
            "prediction": [[number, category] for number, category in sorted(one["categories"].items())],
            "pixels": joint(one["truth"], one["found"]),
        }
        for one in coco_images(root)
    ]


def coco_scores(root: Path, expected: Mapping[str, list[float]]) -> dict[str, Any]:
    """Scored as COCO's files are: crowds are voxels that excuse any class."""
    with TemporaryDirectory() as name:
        data, out = Path(name) / "data", Path(name) / "out"
        shutil.copytree(root / "input_images", data / "images")
        shutil.copytree(root / "panoptic_examples", data / "panoptic_examples")
        shutil.copyfile(root / "panoptic_examples.json", data / "panoptic_examples.json")
        dataset = steps.opened(data, None, None, "panoptic")
        out.mkdir()
        values = {c["id"]: c["name"] for c in json.loads((data / "panoptic_examples.json").read_text())["categories"]}
        for one in coco_images(root):
            codes = np.zeros(one["found"].shape, np.int32)
            for n, (number, category) in enumerate(sorted(one["categories"].items()), 1):
                thing = values[category] in dataset.labels.things
                codes[one["found"] == number] = (category << NUMBER_BITS) + (n if thing else 0)
            case = next(c for c in dataset.cases if c.id.endswith(one["name"]))
            write_label(out / f"{case.id}.png", codes, case.images[0], colours=True)
        objects = evaluate(out, dataset, dataset.labels, predicted="codes", workers=1).objects
    assert objects is not None
    rows = {}
    for value, (tp, fp, fn, iou) in ((int(k), v) for k, v in expected.items()):
        found = objects.counts[values[value]]
        told = [found.matched, found.invented, found.missed, round(found.iou, 6)]
        rows[values[value]] = {"panopticapi": [tp, fp, fn, round(iou, 6)], "medseg": told}
    return rows


def components(values: NDArray[Any]) -> NDArray[np.int64]:
    """Components of each value that touch at corners at least, numbered."""
    found, count = np.zeros(values.shape, np.int64), 0
    for value in np.unique(values[values > 0]):
        parts, here = ndimage.label(values == value, np.ones((3, 3, 3)))
        found[parts > 0] = parts[parts > 0] + count
        count += here
    return found


def spine_maps(root: Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    read = {path.name: read_label(path).array[0] for path in root.glob("*.nii.gz")}
    pairs = {name: (read[f"{name}_ref.nii.gz"], read[f"{name}_pred.nii.gz"]) for name in ("unmatched_instance", "semantic")}
    return {name: (components(a), components(b)) if name == "semantic" else (a, b) for name, (a, b) in pairs.items()}


def spine_scores(root: Path) -> dict[str, list[float]]:
    """The files of numbered objects, scored as they are."""
    with TemporaryDirectory() as name:
        for side in ("ref", "pred"):
            (Path(name) / side).mkdir()
            shutil.copyfile(root / f"unmatched_instance_{side}.nii.gz", Path(name) / side / "spine.nii.gz")
        objects = evaluate(Path(name) / "pred", Path(name) / "ref", OBJECT, predicted="numbers", workers=1).objects
    assert objects is not None
    counts, scores = objects.counts["object"], objects.classes["object"]
    return {"unmatched_instance": [counts.matched, counts.invented, counts.missed, *(scores[m].value or 0.0 for m in ("rq", "sq", "pq"))]}


def settled(name: str, rows: object, anew: bool) -> dict[str, Any]:
    """The committed table, which these rows must equal."""
    file = TABLES / f"{name}.json"
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if anew:
        table["rows"] = rows
        file.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
    elif table["rows"] != rows:
        raise SystemExit(f"{file}: the data hold something else")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--write-tables", action="store_true")
    given = parser.parse_args()
    coco, spine = given.data / COCO, given.data / SPINE
    of_coco = settled("coco_panoptic_sample", coco_table(coco), given.write_tables)
    of_spine = settled("spine", {name: joint(*maps) for name, maps in spine_maps(spine).items()}, given.write_tables)
    result = {
        "coco_panoptic_sample": coco_scores(coco, of_coco["expected"]),
        "spine": {"panoptica": of_spine["expected"], "medseg": spine_scores(spine)},
    }
    note = (
        "coco_panoptic_sample: TP, FP, FN and sum of IoU of each class; spine: TP, FP, FN, RQ, SQ, PQ as published, and of medseg evaluate; segments of "
        "stuff that the prediction cuts into several are one each in label maps (tree-merged, grass-merged), and crowds are ignored voxels there"
    )
    print(write("instance_scores", result, note))


if __name__ == "__main__":
    main()
