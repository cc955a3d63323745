"""Memory: told before prediction begins, kept within what is free, and given up step by step where it runs out."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from thresholding import Threshold, blobs, thresholding, write_nifti

from medseg.case import Batch
from medseg.dataset import CaseFiles
from medseg.errors import ResourceError
from medseg.inference import estimate
from medseg.inference.ensemble import Ensemble
from medseg.inference.estimate import Estimate, estimated, largest
from medseg.inference.predictor import Predictor
from medseg.peak import own_memory
from medseg.planning.shadows import LiveStorage
from medseg.progress import Silent
from medseg.tasks.base import find_task


class Heard(Silent):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.fixture
def scan(tmp_path):
    return write_nifti(tmp_path / "scan.nii.gz", np.where(blobs((30, 40, 50)), 70, 10).astype(np.int16), np.diag([-1.0, 1, 1, 1]))


def test_the_estimate_is_said_once_before_the_first_case(plan3d, scan, tmp_path):
    heard = Heard()
    model = thresholding(plan3d, 4.0)
    model.predict(scan, tmp_path / "out", progress=heard)
    (said,) = heard.said
    assert said.startswith("the largest case takes about ")
    assert said.endswith("at once")
    heard.said.clear()
    assert model.predict(scan, tmp_path / "out", progress=heard).skipped == 1
    assert heard.said == []  # nothing is left to be predicted


def test_more_than_was_allowed_is_the_least_possible_and_said(plan3d, scan, tmp_path):
    expected = thresholding(plan3d, 4.0).predict(scan, tmp_path / "plenty").cases[0].content
    heard = Heard()
    (case,) = thresholding(plan3d, 0.01).predict(scan, tmp_path / "little", progress=heard).cases
    (said,) = heard.said
    assert said.endswith("1 window at once; more than the 0.0 GiB allowed: the least possible")
    assert case.content == expected


def test_less_is_taken_where_that_keeps_within_what_was_allowed(plan3d, scan, monkeypatch):
    files = CaseFiles(id="scan", images=(scan,), group="scan")
    monkeypatch.setattr(estimate, "estimated", lambda model, files: Estimate(1.0 + model.memory / 2, 0.0, 0.0, 1))
    for allowed, taken, said in (
        (4.0, 4.0, "the largest case takes about 3.0 GiB of memory; 1 window at once"),
        (1.5, 0.75, "the largest case takes about 1.4 GiB of memory; 1 window at once"),
        (
            0.5,
            0.5 / 64,
            "the largest case takes about 1.0 GiB of memory; 1 window at once; more than the 0.5 GiB allowed: the least possible",
        ),
    ):
        heard = Heard()
        assert estimate.ready(thresholding(plan3d, allowed), [files], heard).memory == taken
        assert heard.said == [said]


def test_text_of_an_estimate():
    assert str(Estimate(2.04, 0.0, 0.0, 1)) == "about 2.0 GiB of memory; 1 window at once"
    assert (
        str(Estimate(2.0, 6.2, 3.0, 4)) == "about 2.0 GiB of memory, 3.0 GiB on the device, 6.2 GiB in temporary files; 4 windows at once"
    )


def test_estimates_know_what_lies_in_files(plan3d, scan):
    files = CaseFiles(id="scan", images=(scan,), group="scan")
    plain, tight = (estimated(thresholding(plan3d, memory), files) for memory in (4.0, 1e-5))
    assert plain is not None
    assert tight is not None
    assert plain.files == 0
    voxels = 30 * 40 * 50
    channels = thresholding(plan3d, 4.0).task.heads[0].channels
    assert tight.files * 2**30 == pytest.approx(voxels * (2 + 4 + 1 + 4 + 4 * channels))  # as read, normalised, labels, prepared, sums
    assert tight.windows == 1
    assert tight.memory < plain.memory + 0.01  # maps in files are resident as far as they go


def test_the_largest_case_is_that_with_the_largest_files(tmp_path):
    for name, size in (("a", 10), ("b", 30), ("c", 20)):
        (tmp_path / name).write_bytes(bytes(size))
    cases = [CaseFiles(id=name, images=(tmp_path / name,), group=name) for name in "abc"]
    assert largest(cases).id == "b"


def test_no_more_than_what_is_free(plan3d, scan, tmp_path, monkeypatch):
    expected = thresholding(plan3d, 4.0).predict(scan, tmp_path / "plenty").cases[0].content
    monkeypatch.setattr(estimate, "free_memory", lambda: 0.001)
    heard = Heard()
    (case,) = thresholding(plan3d, 4.0).predict(scan, tmp_path / "little", progress=heard).cases
    assert heard.said[0] == "only 0.0 of 4.0 GiB of memory are free: fewer windows at once, larger maps in temporary files"
    assert "1 window at once" in heard.said[1]
    assert case.content == expected


def test_a_case_that_ran_out_of_memory_is_predicted_again_with_less(plan3d, scan, tmp_path, monkeypatch, caplog):
    model = thresholding(plan3d, 4.0)
    expected = model.predict(scan, tmp_path / "first").cases[0].content
    limits = []
    stitch = type(model.domain).stitch

    def full(self, case, run, heads, batch_size, memory):
        limits.append(memory)
        if memory > 0.1 * 2**30:
            raise MemoryError
        return stitch(self, case, run, heads, batch_size, memory)

    monkeypatch.setattr(type(model.domain), "stitch", full)
    with caplog.at_level(logging.WARNING):
        (case,) = model.predict(scan, tmp_path / "again").cases
    assert limits == [2**29, 2**28, 2**26]
    assert case.content == expected
    assert [record.message.partition(" with maps")[0] for record in caplog.records] == [
        "out of memory: the case is predicted again within 1 GiB,",
        "out of memory: the case is predicted again within 0.25 GiB,",
    ]


def test_a_case_that_fits_nowhere_fails_and_says_so(plan3d, scan, tmp_path, monkeypatch):
    model = thresholding(plan3d, 4.0)
    monkeypatch.setattr(type(model.domain), "stitch", lambda *_: (_ for _ in ()).throw(MemoryError))
    (failure,) = model.predict(scan, tmp_path / "out").failures
    assert "does not fit into memory" in str(failure)
    assert "shape (50, 40, 30)" in str(failure)


class Small(torch.nn.Module):
    def forward(self, image):
        if len(image) > 2:
            raise torch.OutOfMemoryError("too many")
        return {"segmentation": [torch.cat([image, -image], 1)]}


def test_smaller_batches_are_told(plan3d, caplog):
    ensemble = Ensemble(find_task(plan3d.task)(plan3d), (Small(),), torch.device("cpu"), 8)
    with caplog.at_level(logging.WARNING):
        ensemble.runner(())(Batch(torch.randn(8, 1, 4, 4, 4)))
    assert [record.message for record in caplog.records] == [
        "out of memory on cpu with 8 windows at once: 4 from now on",
        "out of memory on cpu with 4 windows at once: 2 from now on",
    ]


def test_batches_of_many_classes_are_bounded_by_their_outputs(plan3d, monkeypatch):
    model = thresholding(plan3d, 4.0)
    outputs = 4 * int(np.prod(plan3d.window)) * model.task.heads[0].channels
    monkeypatch.setattr("medseg.inference.ensemble.LARGEST_OUTPUTS", 2 * outputs)
    assert thresholding(plan3d, 4.0).ensemble.batch_size == min(2, model.ensemble.batch_size)


CHANNELS, SIDE = 96, 16


class Simple(torch.nn.Module):
    """Takes no memory but its outputs'."""

    def forward(self, image):
        return {"segmentation": [image.expand(-1, CHANNELS, -1, -1, -1).clone()]}


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("views", [(), (0,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize(("windows", "batch"), [(1, 1), (2, 2), (1, 4), (2, 4)])
def test_outputs_of_a_window_exist_once_and_their_sum(plan3d, networks, views, windows, batch):
    ensemble = Ensemble(find_task(plan3d.task)(plan3d), [Simple() for _ in range(networks)], torch.device("cpu"), batch)
    run, image = ensemble.runner(views), torch.randn(windows, 1, SIDE, SIDE, SIDE)
    with LiveStorage() as live:
        found = run(Batch(image))["segmentation"]
        least = windows * CHANNELS * SIDE**3 * 4
        assert live.now < 1.1 * least
    together = min(2 ** len(views), batch // windows)  # views that a network sees at once
    summed = networks > 1 or views
    assert live.peak <= (together + (1 if summed else 0) + 0.3) * least  # images, and a piece that is mirrored
    torch.testing.assert_close(found, image.expand(-1, CHANNELS, -1, -1, -1))


def test_mirrored_outputs_are_added_to_the_bit(plan3d):
    """Pieces of them, where the axis is no multiple of these, too."""
    torch.manual_seed(0)

    class Convolution(torch.nn.Conv3d):
        def forward(self, image):
            return {"segmentation": [super().forward(image)]}

    networks = [Convolution(1, 3, 3, padding=1) for _ in range(2)]
    image = torch.randn(2, 1, 19, 6, 5)
    ensemble = Ensemble(find_task(plan3d.task)(plan3d), networks, torch.device("cpu"), 2)
    expected = torch.zeros(2, 3, 19, 6, 5)
    with torch.inference_mode(), torch.autocast("cpu", ensemble.dtype or torch.bfloat16, enabled=ensemble.dtype is not None):
        for view in ((), (2,), (4,), (2, 4)):
            for network in networks:
                expected += network(image.flip(view))["segmentation"][0].float().flip(view)
    assert torch.equal(ensemble.runner((0, 2))(Batch(image))["segmentation"], expected / 8)


def test_estimates_count_networks_and_views(plan3d, scan):
    """Per window: its outputs for the views that a network sees at once, and their sum where there is more than one."""
    files = CaseFiles(id="scan", images=(scan,), group="scan")

    def extra(mirror, networks, batch):
        plan = plan3d.edited({"inference.mirror": mirror, "space.augmentation.mirror": mirror})
        model = Predictor(plan, [Threshold() for _ in range(networks)], torch.device("cpu"), 4.0)
        model.ensemble.batch_size = batch
        activations = plan.memory.training / plan.training.batch_size / 3 * 2**30
        outputs = 4 * int(np.prod(plan.window)) * model.task.heads[0].channels
        found = estimated(model, files)
        assert found is not None
        assert found.windows == batch
        return (found.memory - own_memory() / 2**30) * 2**30, activations, outputs

    alone, activations, outputs = extra("[]", 1, 1)
    near = pytest.approx(0, abs=2**20)  # what the process holds changes meanwhile
    assert extra("[]", 3, 1)[0] - alone - outputs == near
    assert extra("[0, 1]", 1, 1)[0] - alone - outputs == near
    assert extra("[0, 1]", 3, 2)[0] - alone - (activations + 3 * outputs) == near


class Tight(torch.nn.Module):
    """Runs out of memory on a device while something else of a window's outputs lies there, and now and then anyway."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error, self.seen = most, error, []

    def forward(self, image):
        self.seen.append(len(image))
        if len(image) > self.most:
            raise self.error
        return {"segmentation": [torch.cat([image, -image], 1)]}


@pytest.fixture
def gpu(monkeypatch, plan3d):
    """`gpu(network, batch)`: an ensemble on what it takes for a GPU."""

    def made(network, batch):
        ensemble = Ensemble(find_task(plan3d.task)(plan3d), (network,), torch.device("cpu"), batch)
        ensemble.device, ensemble.dtype = torch.device("cuda", 0), None
        return ensemble

    monkeypatch.setattr(Batch, "to", lambda self, device: self)
    monkeypatch.setattr("medseg.inference.ensemble.release_cache", lambda device: None)
    return made


@pytest.mark.parametrize("views", [(), (0,), (0, 2)])
def test_sums_go_to_main_memory_where_one_window_does_not_fit_with_them(gpu, views, caplog):
    class Once(Tight):
        """Holds one window when it is asked for the third time that it is alone."""

        def forward(self, image):
            self.most = 1 if self.seen.count(1) >= 1 else 0
            return super().forward(image)

    network = Once(0, torch.OutOfMemoryError("CUDA out of memory"))
    ensemble, windows = gpu(network, 4), torch.randn(2, 1, 6, 5, 4)
    with caplog.at_level(logging.WARNING):
        found = ensemble.runner(views)(Batch(windows))["segmentation"]
    torch.testing.assert_close(found, torch.cat([windows, -windows], 1))
    assert caplog.records[-1].message == "out of memory on cuda:0 with one window: outputs are summed up in main memory"
    assert caplog.records[0].message == "out of memory on cuda:0 with 2 windows at once: 1 from now on"
    assert (ensemble.summed_on_device, ensemble.batch_size) == (False, 1)


def test_a_window_that_no_gpu_holds_says_what_to_do(gpu):
    with pytest.raises(ResourceError) as failed:
        gpu(Tight(0, RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")), 4).runner((0,))(Batch(torch.randn(3, 1, 6, 5, 4)))
    assert str(failed.value) == (
        "cuda:0: one window does not fit on the device; found window 6 x 5 x 4. Close other programs that use it, or predict on another device "
        "(--device cpu)."
    )


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_on_a_cpu_a_window_that_does_not_fit_makes_the_maps_give_way(plan3d, scan, tmp_path, monkeypatch, error, caplog):
    """The window fits once the case's maps are in files."""
    expected = thresholding(plan3d, 4.0).predict(scan, tmp_path / "first").cases[0].content
    model, real = thresholding(plan3d, 4.0), Threshold.forward
    limits, stitch = [], type(model.domain).stitch

    def watched(self, case, run, heads, batch_size, memory):
        limits.append(memory)
        return stitch(self, case, run, heads, batch_size, memory)

    def forward(self, image):
        if limits[-1] > 2**28:
            raise error
        return real(self, image)

    monkeypatch.setattr(type(model.domain), "stitch", watched)
    monkeypatch.setattr(Threshold, "forward", forward)
    with caplog.at_level(logging.WARNING):
        (case,) = model.predict(scan, tmp_path / "again").cases
    assert limits == [2**29, 2**28]
    assert case.content == expected
    assert "out of memory: the case is predicted again within 1 GiB" in caplog.text
