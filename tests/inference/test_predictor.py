"""Resuming, failing, refusing, averaging, and staying small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file
from thresholding import Threshold, blobs, thresholding, write_nifti

import medseg.imaging.resample
import medseg.scratch
from medseg.case import Batch
from medseg.dataset import LabelClass
from medseg.errors import ImageError, ModelError, ResourceError, UsageError
from medseg.inference.ensemble import Ensemble
from medseg.inference.predictor import Predictor
from medseg.io.images import read_image
from medseg.io.raster import _png_kind
from medseg.progress import Silent
from medseg.tasks.base import find_task


def scans(folder: Path, count: int, shape=(8, 9, 10)) -> Path:
    for i in range(count):
        write_nifti(folder / f"scan{i}.nii.gz", np.where(blobs(shape, i), 70, 10).astype(np.int16))
    return folder


def save_run(run: Path, plan, folds=(0,)) -> Path:
    plan.save(run / "plan.json")
    for fold in folds:
        torch.manual_seed(fold)
        (run / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in find_task(plan.task)(plan).network().state_dict().items()}
        save_file(state, run / f"fold_{fold}" / "network_0.safetensors", metadata={"plan": plan.trained_digest()})
    return run


def test_finished_cases_are_kept(plan3d, tmp_path):
    folder, out = scans(tmp_path / "in", 3), tmp_path / "out"
    model = thresholding(plan3d)
    first = model.predict(folder, out)
    assert (len(first.cases), first.skipped, first.failures) == (3, 0, ())
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    (out / "scan1.nii.gz").write_bytes(b"damaged")
    write_nifti(folder / "scan2.nii.gz", np.where(blobs((8, 9, 10), 7), 70, 10).astype(np.int16))
    again = model.predict(folder, out)
    assert again.skipped == 1
    assert [case.id for case in again.cases] == ["scan0", "scan1", "scan2"]
    assert (out / "scan0.nii.gz").stat().st_mtime_ns == times["scan0.nii.gz"]
    assert np.array_equal(read_image(out / "scan2.nii.gz").array[0], read_image(folder / "scan2.nii.gz").array[0] > 50)
    assert model.predict(folder, out, overwrite=True).skipped == 0
    assert model.predict(folder, out, probabilities=True).skipped == 0
    assert Predictor(plan3d, (Threshold(),), torch.device("cpu"), key="other weights").predict(folder, out).skipped == 0


def test_cases_of_another_version_are_predicted_again(plan3d, tmp_path, monkeypatch):
    folder, out = scans(tmp_path / "in", 2), tmp_path / "out"
    model = thresholding(plan3d)
    assert model.predict(folder, out).skipped == 0
    assert model.predict(folder, out).skipped == 2
    with monkeypatch.context() as patch:
        patch.setattr("medseg.inference.predictor.version", lambda name: f"another version of {name}")
        assert model.predict(folder, out).skipped == 0
        assert model.predict(folder, out).skipped == 2
    assert model.predict(folder, out).skipped == 0


def test_one_failure_does_not_stop_the_others(plan3d, tmp_path):
    folder, out = scans(tmp_path / "in", 4), tmp_path / "out"
    (folder / "scan1.nii.gz").write_bytes((folder / "scan1.nii.gz").read_bytes()[:60])
    broken = np.full((8, 9, 10), 5.0, np.float32)
    write_nifti(folder / "scan2.nii.gz", broken)
    broken[3, 3, 3] = np.nan
    write_nifti(folder / "scan3.nii.gz", broken)
    result = thresholding(plan3d).predict(folder, out)
    assert [case.id for case in result.cases] == ["scan0"]
    texts = {failure.id: str(failure) for failure in result.failures}
    assert "scan1.nii.gz" in texts["scan1"]
    assert "truncated or damaged" in texts["scan1"]
    assert "case 'scan2', channel 0: is constant: there is nothing to see; found 5 everywhere" in texts["scan2"]
    assert "holds NaN or infinite voxels; found 1 of 720, expected finite intensities" in texts["scan3"]
    assert sorted(path.name for path in out.iterdir()) == ["predictions.json", "scan0.nii.gz"]


def test_an_empty_field_has_no_object(plan2d, tmp_path):
    """Where all classes are things, an image without anything to see is a prediction without objects; of others it stays an error."""

    class Told(Silent):
        def say(self, message):
            said.append(message)

    def of(**told):
        labels = plan2d.data.labels.model_copy(update=told)
        return thresholding(plan2d.model_copy(update={"data": plan2d.data.model_copy(update={"labels": labels})}))

    said = []
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Pillow.fromarray(np.full((24, 20), 7, np.uint8)).save(folder / "field.png")
    names = plan2d.data.labels.names
    done = of(things=names, objects="numbers").predict(folder, out, formats=(), uncertainty=True, progress=Told())
    assert done.failures == ()
    assert done.cases[0].uncertainty is None
    (warning,) = (text for text in said if text.startswith("warning"))
    assert warning.startswith("warning: case 'field' is constant: no object is predicted")
    assert not read_image(out / "field.png").array.any()
    assert _png_kind(out / "field.png") == (16, 0)
    assert (out / "objects.csv").read_text(encoding="utf-8").splitlines() == (out / "objects" / "field.csv").read_text("utf-8").splitlines()
    assert len((out / "objects.csv").read_text(encoding="utf-8").splitlines()) == 1
    two = (*plan2d.data.labels.classes, LabelClass(name="stuff", values=(9,)))
    for other in (of(), of(classes=two, things=names)):
        (failure,) = other.predict(folder, tmp_path / "other").failures
        assert "is constant: there is nothing to see; found 7 everywhere" in str(failure)
    found = of(things=names, objects="numbers").predict_array(np.full((1, 24, 20), 7.0), probabilities=True)
    assert found.probabilities.shape == (2, 24, 20)
    assert (found.probabilities[0] == 1).all()


def test_what_does_not_fit_is_refused_from_the_header(plan3d, plan2d, plan_channels, tmp_path):
    scan = write_nifti(tmp_path / "scan.nii.gz", blobs((8, 9, 10)).astype(np.int16))
    flat = write_nifti(tmp_path / "flat.nii.gz", blobs((8, 9)).astype(np.int16))
    many = write_nifti(tmp_path / "many.nii.gz", np.zeros((8, 9, 10, 3), np.int16))
    for plan, path, text in (
        (plan3d, flat, "has the wrong number of dimensions; found 2D, shape (9, 8), expected 3D"),
        (plan2d, scan, "has the wrong number of dimensions; found 3D, shape (10, 9, 8), expected 2D"),
        (plan3d, many, "has the wrong number of channels; found 3, expected 1"),
        (plan_channels, scan, "has the wrong number of channels; found 1, expected 2"),
    ):
        (failure,) = thresholding(plan).predict(path, tmp_path / "out").failures
        assert text in str(failure)
        assert path.name in str(failure)
    with pytest.raises(ImageError, match="wrong number of channels"):
        thresholding(plan3d).predict_array(np.zeros((2, 8, 8, 8)))


def test_inputs(plan_channels, tmp_path):
    model = thresholding(plan_channels)
    mask = blobs((8, 9, 10))
    for name in ("a_0000", "a_0001", "b_0000", "b_0001", "c_0000"):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", np.where(mask, 70, 10).astype(np.int16))
    with pytest.raises(UsageError, match=r"c_0000\.nii\.gz: has the wrong number of channel files"):
        model.predict(tmp_path / "in", tmp_path / "out")
    result = model.predict([tmp_path / "in" / "a_0001.nii.gz", tmp_path / "in" / "b_0000.nii.gz"], tmp_path / "out")
    assert [case.file for case in result.cases] == [Path("a.nii.gz"), Path("b.nii.gz")]
    for case in ("x", "y"):
        for channel in plan_channels.data.channels:
            write_nifti(tmp_path / "folders" / case / f"scan_{channel.name}.nii.gz", np.where(mask, 70, 10).astype(np.int16))
    assert [case.id for case in model.predict(tmp_path / "folders", tmp_path / "out2").cases] == ["x", "y"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"(?s)nowhere.*holds no image"):
        model.predict([tmp_path / "nowhere", tmp_path / "empty"], tmp_path / "out")
    (tmp_path / "other").mkdir()
    write_nifti(tmp_path / "other" / "a_0000.nii.gz", mask.astype(np.int16))
    write_nifti(tmp_path / "other" / "a_0001.nii.gz", mask.astype(np.int16))
    with pytest.raises(UsageError, match="two inputs have the same case id"):
        model.predict([tmp_path / "in" / "a_0000.nii.gz", tmp_path / "other"], tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_read_only_output(plan3d, tmp_path):
    scans(tmp_path / "in", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"file/out: cannot be written.*Choose another folder"):
        thresholding(plan3d).predict(tmp_path / "in", tmp_path / "file" / "out")


def test_all_networks_of_a_fold_are_averaged(plan3d, tmp_path):
    run = save_run(tmp_path / "run", plan3d, (0, 1, 2))
    (run / "fold_1" / "network_0.safetensors").rename(run / "fold_0" / "network_1.safetensors")
    windows = torch.randn(1, 1, *plan3d.window)

    def output(folds):
        return Predictor.load(run, "cpu", folds=folds).ensemble.runner(())(Batch(windows))["segmentation"]

    (run / "fold_2" / "network_0.safetensors").rename(run / "kept")
    both = output([0])
    assert len(Predictor.load(run, "cpu").ensemble.networks) == 2
    (run / "fold_0" / "network_1.safetensors").rename(run / "fold_2" / "network_0.safetensors")
    assert torch.allclose(both, (output([0]) + output([2])) / 2, atol=1e-6)
    assert not torch.allclose(both, output([0]), atol=1e-3)


def test_a_network_that_is_missing_is_named(plan3d, tmp_path):
    run = save_run(tmp_path / "run", plan3d, (0, 1))
    state = run / "fold_1" / "state"
    state.mkdir()
    (state / "finished.json").write_text('{"networks": 2}')
    with pytest.raises(ModelError) as caught:
        Predictor.load(run, "cpu")
    assert str(caught.value) == (
        f"{run / 'fold_1' / 'network_1.safetensors'}: a trained network is missing. "
        "Restore the file, or remove its fold's folder and train the fold again."
    )
    (run / "fold_1" / "network_0.safetensors").unlink()
    with pytest.raises(ModelError, match=r"2 problems|network_0\.safetensors: a trained network is missing"):
        Predictor.load(run, "cpu")
    (state / "finished.json").write_text("{")
    with pytest.raises(ModelError, match=r"finished\.json: cannot be read"):
        Predictor.load(run, "cpu")
    (state / "finished.json").unlink()
    (run / "fold_0" / "network_0.safetensors").rename(run / "fold_0" / "network_1.safetensors")
    with pytest.raises(ModelError, match=r"fold_0.network_0\.safetensors: a trained network is missing"):
        Predictor.load(run, "cpu")


def test_load(plan3d, tmp_path):
    run = save_run(tmp_path / "run", plan3d, (0, 1))
    image = np.random.default_rng(0).normal(size=(1, 9, 12, 11)).astype(np.float32)
    both = Predictor.load(run, "cpu")
    singles = [Predictor.load(run, "cpu", folds=[fold]) for fold in (0, 1)]
    windows = torch.randn(2, 1, *plan3d.window)
    outputs = [model.ensemble.runner(())(Batch(windows))["segmentation"] for model in (both, *singles)]
    assert torch.allclose(outputs[0], (outputs[1] + outputs[2]) / 2, atol=1e-6)
    assert both.key != singles[0].key
    assert both.predict_array(image, mirror=False).labels.shape == (9, 12, 11)
    with pytest.raises(ModelError, match="fold_4: this fold has not been trained; expected one of fold_0, fold_1"):
        Predictor.load(run, "cpu", folds=[4])
    plan3d.edited({"training.seed": "77"}).save(run / "plan.json")
    with pytest.raises(ModelError, match="this weights file belongs to another plan"):
        Predictor.load(run, "cpu")
    plan3d.save(run / "plan.json")
    weights = run / "fold_1" / "network_0.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"network_0\.safetensors: cannot be read as a weights file"):
        Predictor.load(run, "cpu")
    with pytest.raises(ModelError, match="is not a trained model"):
        Predictor.load(tmp_path / "nothing", "cpu")


class Sloped(torch.nn.Module):
    """Not symmetric: adds a ramp along the first axis."""

    def forward(self, image):
        ramp = torch.arange(image.shape[2], dtype=image.dtype).view(1, 1, -1, 1, 1)
        return {"segmentation": [torch.cat([image + ramp, -image], 1)]}


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_mirrored_views_are_averaged(plan3d, batch):
    ensemble = Ensemble(find_task(plan3d.task)(plan3d), (Sloped(),), torch.device("cpu"), batch)
    ensemble.dtype = None
    windows = torch.randn(3, 1, 6, 5, 4)
    plain, mirrored = (ensemble.runner(axes)(Batch(windows))["segmentation"] for axes in ((), (0, 2)))
    assert torch.allclose(plain[:, 0, 5] - plain[:, 0, 0], windows[:, 0, 5] - windows[:, 0, 0] + 5, atol=1e-5)
    assert torch.allclose(mirrored[:, :1], windows + 2.5, atol=1e-5)
    assert torch.allclose(mirrored[:, 1:], -windows, atol=1e-5)


class Greedy(torch.nn.Module):
    """Runs out of memory above a number of windows."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, image):
        if len(image) > self.most:
            raise torch.OutOfMemoryError("too many")
        return {"segmentation": [torch.cat([image, -image], 1)]}


def test_smaller_batches_when_the_device_is_full(plan3d):
    windows = torch.randn(5, 1, 6, 5, 4)
    task = find_task(plan3d.task)(plan3d)
    ensemble = Ensemble(task, (Greedy(2),), torch.device("cpu"), 16)
    assert torch.equal(ensemble.runner((0,))(Batch(windows))["segmentation"][:, 1:], -windows)
    with pytest.raises(torch.OutOfMemoryError):
        Ensemble(task, (Greedy(0),), torch.device("cpu"), 16).runner((0,))(Batch(windows))


def test_a_case_larger_than_memory_is_streamed(plan3d, tmp_path, monkeypatch):
    """Same files out, and memory that is a fraction of the image's."""
    monkeypatch.setattr(medseg.scratch, "CHUNK", 2**15)
    monkeypatch.setattr(medseg.imaging.resample, "SLAB", 2**15)
    monkeypatch.setattr("medseg.domains.grid.maps.SLAB", 2**15)
    monkeypatch.setattr("medseg.io.nifti.PIECE", 2**15)
    plan = plan3d.edited({"space.spacing": "[1.1, 1.0, 1.0]", "inference.overlap": "0", "inference.mirror": "[]", "space.crop": "true"})
    shape = (90, 80, 150)
    path = write_nifti(tmp_path / "big.nii.gz", np.where(blobs(shape), 70, 10).astype(np.int16), np.diag([-1.0, 1, 1, 1]))
    peaks, digests = [], []
    for memory in (8.0, 1e-4):
        model = thresholding(plan, memory)
        model.ensemble.batch_size = 4
        tracemalloc.start()
        (case,) = model.predict(path, tmp_path / f"out{memory}", probabilities=True).cases
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        digests.append(case.content)
    voxels = int(np.prod(shape))
    assert digests[0] == digests[1]
    assert peaks[0] > 12 * voxels  # maps, probabilities, and what they are made from
    assert peaks[1] < 4 * voxels  # less than the image alone as float32


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import torch
from thresholding import Threshold, thresholding
from medseg.plans import Plan
class Slow(Threshold):
    def forward(self, image):
        time.sleep(0.15)
        return super().forward(image)
from medseg.inference.predictor import Predictor
model = Predictor(Plan.load(Path(sys.argv[1])), (Slow(),), torch.device("cpu"))
model.predict(Path(sys.argv[2]), Path(sys.argv[3]), mirror=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_killed_and_continued(plan3d, tmp_path):
    folder, out = scans(tmp_path / "in", 30), tmp_path / "out"
    plan3d.save(tmp_path / "plan.json")
    command = [sys.executable, "-c", SCRIPT, *map(str, (tmp_path / "plan.json", folder, out, Path(__file__).parent))]
    process = subprocess.Popen(command)
    for _ in range(600):
        if (out / "predictions.json").is_file() and len(json.loads((out / "predictions.json").read_text())["cases"]) > 2:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(out.glob("*.nii.gz"))) < 30
    for path in out.glob("scan*.nii.gz"):
        read_image(path)  # whole
    result = thresholding(plan3d).predict(folder, out, mirror=False)
    assert result.skipped > 2
    assert len(result.cases) == 30
    assert not list(out.glob(".*partial*"))
    for path in folder.iterdir():
        assert np.array_equal(read_image(out / path.name).array, read_image(path).array > 50)
