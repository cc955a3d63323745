"""A detector in three dimensions: objects of volumes, from labels that number them to predictions that do."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import tifffile

from medseg import workflow
from medseg.plans import Plan

SHAPE = (20, 32, 32)
CENTRES = [(6, 8, 8), (12, 8, 19), (7, 23, 9), (13, 23, 22)]
SMALL = {
    "window": "[16, 32, 32]",
    "network.features": "[8, 16]",
    "network.strides": "[[1, 1, 1], [2, 2, 2]]",
    "network.kernels": "[[3, 3, 3], [3, 3, 3]]",
    "network.encoder": "[0, 0]",
    "network.decoder": "[1]",
    "training.steps": "20",
    "training.batch_size": "2",
    "training.folds": "2",
    "target.head.smallest": "20",
}


def volumes(root: Path, count: int = 4) -> Path:
    """Bright balls, whose places differ a little."""
    rng = np.random.default_rng(0)
    grid = np.indices(SHAPE)
    for k in range(count):
        label = np.zeros(SHAPE, np.uint16)
        for number, centre in enumerate(CENTRES, 1):
            moved = np.array(centre) + rng.integers(-1, 2, 3)
            label[((grid - moved[:, None, None, None]) ** 2).sum(0) <= 20] = number
        image = np.where(label > 0, 180, 40) + rng.normal(0, 6, SHAPE)
        for name, array in (("images", image.clip(0, 255).astype(np.uint8)), ("labels", label)):
            (root / name).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / name / f"v{k}.tif", array, imagej=True, metadata={"axes": "ZYX"})
    return root


def test_a_detector_of_volumes(tmp_path):
    data, run, out = volumes(tmp_path / "data"), tmp_path / "run", tmp_path / "out"
    workflow.plan(
        data,
        tmp_path / "plans",
        task="instance",
        network="mask-rcnn",
        edits={f"3d.{field}": value for field, value in SMALL.items()},
        device="cpu",
        memory=4,
        workers=1,
    )
    workflow.train(tmp_path / "plans" / "3d.json", run, fold=0, epochs=2, workers=1, device="cpu")
    plan = Plan.load(run / "plan.json")
    assert (plan.target.head.kind, len(plan.window), len(plan.target.head.anchors[0][0])) == ("mask-rcnn", 3, 3)
    workflow.predict(run, [data / "images"], out, device="cpu", formats=("labels", "table", "detections"))
    with (out / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    for case in ("v0", "v3"):
        found = tifffile.imread(out / f"{case}.tif")
        assert found.shape == SHAPE
        listed = {int(row["number"]): int(row["voxels"]) for row in rows if row["case"] == case}
        assert listed == {int(n): int(np.count_nonzero(found == n)) for n in np.unique(found) if n}
    scores = workflow.evaluate(out, data, tmp_path / "report", run=run, workers=1).objects
    assert scores is not None
    assert scores.counts["object"].matched + scores.counts["object"].missed == 16
    assert scores.left_out == {}
    assert scores.classes["object"]["pq"].value > 0.3
    assert scores.classes["object"]["ap@0.5"].value > 0.3
    assert scores.froc["object"]
