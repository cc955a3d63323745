"""Predictions replace nothing but earlier predictions."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from thresholding import Threshold, blobs, thresholding, write_nifti

from medseg.dataset import CaseFiles
from medseg.errors import UsageError
from medseg.inference.ledger import Ledger
from medseg.inference.output import Output
from medseg.inference.predictor import Predictor


def scan(path, seed=0):
    return write_nifti(path, np.where(blobs((8, 9, 10), seed), 70, 10).astype(np.int16))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_inputs_are_never_overwritten(plan3d, tmp_path, overwrite):
    for i in range(7):
        scan(tmp_path / f"scan{i}.nii.gz", i)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"overwrite their own inputs; found scan0\.nii\.gz, .* and 2 more, expected .* another folder"):
        thresholding(plan3d).predict(tmp_path, tmp_path / ".." / tmp_path.name, overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_inputs_under_other_names(plan3d, tmp_path):
    path = scan(tmp_path / "data" / "scan.nii.gz")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "data")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "scan.nii.gz").symlink_to(path)
    model = thresholding(plan3d)
    for given, out in (
        (path, tmp_path / "elsewhere"),
        (tmp_path / "elsewhere" / "scan.nii.gz", path.parent),
        (tmp_path / "links", path.parent),
        (tmp_path / "links", tmp_path / "links"),
        (path, tmp_path / "links"),
    ):
        with pytest.raises(UsageError, match="overwrite their own inputs"):
            model.predict(given, out, overwrite=True)
    assert list(contents(tmp_path / "data")) == [path]


def test_labels_of_a_dataset_are_inputs(plan3d, tmp_path):
    image, label = scan(tmp_path / "images" / "a.nii.gz"), scan(tmp_path / "labels" / "a.nii.gz", 1)
    case = CaseFiles(id="a", images=(image,), label=label, group="a")
    model = thresholding(plan3d)
    for given in (case, tmp_path):
        with pytest.raises(UsageError, match="overwrite their own inputs"):
            model.predict(given, tmp_path / "labels", overwrite=True)


def test_files_of_others_are_refused_before_anything_is_written(plan3d, tmp_path):
    scan(tmp_path / "in" / "a.nii.gz")
    scan(tmp_path / "in" / "b.nii.gz")
    out = tmp_path / "labels"
    drawn = scan(out / "b.nii.gz", 3)
    maps = scan(out / "probabilities" / "a.nii.gz", 4)
    (out / "predictions.json").write_text('{"whose": "others"}')
    before = contents(out)
    model = thresholding(plan3d)
    with pytest.raises(UsageError, match=r"files that medseg did not write; found b\.nii\.gz, expected new files.*--overwrite"):
        model.predict(tmp_path / "in", out)
    with pytest.raises(UsageError, match=r"found a\.nii\.gz, b\.nii\.gz"):
        model.predict(tmp_path / "in", out, probabilities=True)
    assert contents(out) == before
    result = model.predict(tmp_path / "in", out, probabilities=True, overwrite=True)
    assert len(result.cases) == 2
    assert drawn.read_bytes() != before[drawn]
    assert maps.read_bytes() != before[maps]
    assert (out / "predictions.damaged.json").read_bytes() == before[out / "predictions.json"]
    assert model.predict(tmp_path / "in", out, probabilities=True).skipped == 2


def test_files_of_other_options_stay_known(plan3d, tmp_path):
    path, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    model = thresholding(plan3d)
    for probabilities in (True, False, False, True):
        assert len(model.predict(path, out, probabilities=probabilities).cases) == 1
    assert json.loads((out / "predictions.json").read_text())["claimed"] == []


class Failing(Threshold):
    """Fails as devices and bugs do."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, image):
        raise self.error


def failing(plan, error):
    return Predictor(plan, (Failing(error),), torch.device("cpu"))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED\nException raised from here"),
            "found RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED. Check this case's files",
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "a.nii.gz: does not fit into memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "a.nii.gz: does not fit into memory"),
        (ZeroDivisionError(), "could not be predicted; found ZeroDivisionError. Check"),
        (MemoryError(), "a.nii.gz: does not fit into memory"),
    ],
)
def test_any_failure_is_recorded_and_the_batch_goes_on(plan3d, tmp_path, error, text):
    for name in ("a", "b"):
        scan(tmp_path / "in" / f"{name}.nii.gz")
    out = tmp_path / "out"
    result = failing(plan3d, error).predict(tmp_path / "in", out)
    assert [failure.id for failure in result.failures] == ["a", "b"]
    assert text in str(result.failures[0])
    assert "Traceback" not in str(result.failures[0])
    assert "raised from here" not in str(result.failures[0])
    recorded = json.loads((out / "predictions.json").read_text())
    assert recorded["cases"] == recorded["claimed"] == []
    assert [(f["id"], tuple(f["problems"])) for f in recorded["failures"]] == [(f.id, f.problems) for f in result.failures]
    assert not thresholding(plan3d).predict(tmp_path / "in", out).failures
    assert json.loads((out / "predictions.json").read_text())["failures"] == []


def test_the_traceback_is_for_debugging(plan3d, tmp_path, caplog):
    path = scan(tmp_path / "a.nii.gz")
    with caplog.at_level("DEBUG", logger="medseg"):
        failing(plan3d, ZeroDivisionError("once")).predict(path, tmp_path / "out")
    (record,) = caplog.records
    assert record.levelname == "DEBUG"
    assert record.exc_info[0] is ZeroDivisionError


class Watching(Threshold):
    """Looks into a folder's list while the network runs."""

    def __init__(self, out):
        super().__init__()
        self.out = out
        self.seen = []

    def forward(self, image):
        self.seen.append(json.loads((self.out / "predictions.json").read_text())["claimed"])
        return super().forward(image)


def test_files_are_claimed_before_they_are_written(plan3d, tmp_path):
    """So a killed call can be continued: its files are known to be its own."""
    path, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    network = Watching(out)
    Predictor(plan3d, (network,), torch.device("cpu")).predict(path, out)
    assert network.seen[0] == ["a.nii.gz"]
    assert json.loads((out / "predictions.json").read_text())["claimed"] == []


def test_interruption_keeps_the_claim_on_what_was_written(plan3d, tmp_path):
    """Ctrl-C between a file and its entry: the next call knows the file as its own; what was never written is free again."""
    for name in ("a", "b"):
        scan(tmp_path / "in" / f"{name}.nii.gz")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        failing(plan3d, KeyboardInterrupt()).predict(tmp_path / "in", out)
    assert json.loads((out / "predictions.json").read_text())["claimed"] == []
    ledger = Ledger(out)
    ledger.claim(Output(out).check([CaseFiles(id="a", images=(tmp_path / "in" / "a.nii.gz",), group="a")], ledger.files()))
    scan(out / "a.nii.gz")
    scan(out / "b.nii.gz")
    ledger.close()
    with pytest.raises(UsageError, match=r"did not write; found b\.nii\.gz,"):
        thresholding(plan3d).predict(tmp_path / "in", out)
    (out / "b.nii.gz").unlink()
    assert len(thresholding(plan3d).predict(tmp_path / "in", out).cases) == 2
    assert json.loads((out / "predictions.json").read_text())["claimed"] == []
