"""Things and stuff of COCO's panoptic files, from annotations to panoptic predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg import workflow
from medseg.evaluation.records import Evaluation
from medseg.plans import Plan
from tests.e2e.test_instances import SMALL

CATEGORIES = {1: ("disk", 1, 170), 2: ("block", 1, 235), 4: ("upper", 0, 20), 7: ("lower", 0, 90)}  # value: name, isthing, grey
OBJECTS = [(1, 10, 12), (1, 11, 23), (2, 12, 44), (2, 36, 10), (1, 36, 32), (2, 35, 45)]


def scenes(root: Path, count: int = 6) -> Path:
    """Disks, two of which touch, and blocks, on two kinds of ground; a strip that nobody annotated; the last image has no block."""
    rng, images, annotations = np.random.default_rng(0), [], []
    (root / "images").mkdir(parents=True)
    (root / "panoptic").mkdir()
    rows, columns = np.mgrid[:48, :56]
    for k in range(count):
        category, number = np.where(rows < 24, 4, 7), np.where(rows < 24, 1, 2)
        for n, (value, y, x) in enumerate(OBJECTS, 3):
            y, x = y + k % 2, x - k % 3
            inside = (rows - y) ** 2 + (columns - x) ** 2 <= 25 if value == 1 else (abs(rows - y) <= 5) & (abs(columns - x) <= 4)
            if value == 1 or k + 1 < count:
                category[inside], number[inside] = value, n
        image = np.vectorize(lambda value: CATEGORIES[value][2])(category) + rng.normal(0, 6, category.shape)
        ids = number + 256 * k
        ids[:, :2] = 0
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"s{k}.png")
        Image.fromarray(np.stack([ids & 255, ids >> 8, ids * 0], -1).astype(np.uint8)).save(root / "panoptic" / f"s{k}.png")
        segments = [{"id": int(i), "category_id": int(category[ids == i][0]), "iscrowd": 0} for i in np.unique(ids) if i]
        images.append({"id": k + 11, "file_name": f"s{k}.png", "height": 48, "width": 56})
        annotations.append({"image_id": k + 11, "file_name": f"s{k}.png", "segments_info": segments})
    categories = [{"id": value, "name": name, "isthing": thing} for value, (name, thing, _) in CATEGORIES.items()]
    (root / "panoptic.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


@pytest.mark.parametrize("network", ["dense", "mask-rcnn"])
def test_things_and_stuff(tmp_path, network):
    data, run, out = scenes(tmp_path / "data"), tmp_path / "run", tmp_path / "out"
    workflow.run(data, run, task="panoptic", network=network, epochs=2, edits=SMALL, device="cpu", memory=4, workers=1)
    plan = Plan.load(run / "plan.json")
    assert (plan.task, plan.target.head.kind, plan.data.labels.things) == ("panoptic", network, ("disk", "block"))

    held_out = Evaluation.open(run / "report")
    assert held_out.objects is not None
    assert held_out.objects.left_out == {}
    assert set(held_out.objects.means) == {"all", "things", "stuff"}
    counts = held_out.objects.counts
    assert {name: one.matched + one.missed for name, one in counts.items()}["upper"] == len(held_out.cases) == 3
    for group, least in (("things", 0.3), ("stuff", 0.7)):
        assert held_out.objects.means[group]["pq"].value > least, group

    workflow.predict(run, [data / "images"], out, formats=("labels", "table", "detections", "panoptic"), device="cpu")
    written = json.loads((out / "panoptic.json").read_text(encoding="utf-8"))
    assert {(one["id"], one["name"], one["isthing"]) for one in written["categories"]} == {
        (value, name, thing) for value, (name, thing, _) in CATEGORIES.items()
    }
    assert len(written["annotations"]) == 6
    for one in written["annotations"]:
        colours = np.asarray(Image.open(out / "panoptic" / one["file_name"])).astype(int)
        assert colours.shape == (48, 56, 3)
        ids, areas = np.unique(colours @ [1, 256, 65536], return_counts=True)
        assert {s["id"]: s["area"] for s in one["segments_info"]} == {int(i): int(n) for i, n in zip(ids, areas, strict=True) if i}
        stuff = [s["category_id"] for s in one["segments_info"] if s["category_id"] in (4, 7)]
        assert sorted(stuff) == sorted(set(stuff))  # each is one segment
    found = workflow.evaluate(out, data, tmp_path / "report", run=run, workers=1)
    assert len(found.cases) == 6
    assert {name: one.matched + one.missed for name, one in found.objects.counts.items()} == {
        "disk": 18, "block": 15, "upper": 6, "lower": 6
    }  # fmt: skip
    assert found.objects.painted == 0
