"""A training that runs out of memory goes on with fewer windows at once, and learns the same."""

from __future__ import annotations

import pytest
import torch
from tiny_training import Talk, Tiny
from torch import nn

from medseg.case import Batch
from medseg.device import out_of_memory
from medseg.errors import ResourceError
from medseg.models.unet import UNet
from medseg.tasks.base import find_task
from medseg.training.module import Learner
from medseg.training.portions import Portions, independent
from medseg.training.trainer import memory_told

WINDOWS = 5
EDITS = {
    "training.batch_size": "4",
    "network.features": "[16, 16, 16]",
    "network.strides": "[[1, 1, 1], [2, 2, 2], [2, 2, 2]]",
    "network.kernels": "[[3, 3, 3], [3, 3, 3], [3, 3, 3]]",
    "network.encoder": "[0, 0, 0]",
    "network.decoder": "[1, 1]",
    "network.deep_supervision": "1",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("portions"), tuple(EDITS.items()))


@pytest.fixture
def weights(tiny, monkeypatch):
    """How far the weights of two runs are apart, which train in float32: rounding to 16 bits differs with the number of windows."""
    monkeypatch.setattr("medseg.training.trainer.autocast_dtype", lambda _: None)
    monkeypatch.setattr("medseg.training.optim.autocast_dtype", lambda _: None)

    def apart(first, second):
        from safetensors.torch import load

        a, b = load(tiny.weights(first)), load(tiny.weights(second))
        return max(float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp_min(1e-3)) for name in a)

    return apart


@pytest.fixture
def full(monkeypatch):
    """`full(windows, first)` makes the network run out of memory with more windows at once, from a call on; counts what is raised."""
    real = UNet.forward

    def begin(windows, first=0, error=torch.OutOfMemoryError, text="CUDA out of memory. Tried to allocate 2.00 GiB."):
        calls, raised = [], []

        def forward(self, image):
            calls.append(len(image))
            if self.training and len(calls) > first and len(image) > windows:
                raised.append(len(image))
                raise error(text)
            return real(self, image)

        monkeypatch.setattr(UNet, "forward", forward)
        return raised

    return begin


def problem(plan, seed=0):
    torch.manual_seed(seed)
    task = find_task(plan.task)(plan)
    label = torch.randint(0, 3, (WINDOWS, *plan.window), dtype=torch.int16)
    label[0] = 0  # Dice over the whole batch is not the mean of Dice over portions, least of all where one shows nothing
    return task, task.network().train(), torch.randn(WINDOWS, 1, *plan.window), task.targets(Batch(torch.empty(0), label))


def gradients(network):
    found = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    return found


def total(terms):
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_portions_have_the_gradient_of_the_whole_batch(tiny, size):
    torch.set_num_threads(1)
    task, network, image, targets = problem(tiny.plan)
    whole = total(task.loss(network(image), targets))
    whole.backward()
    expected = gradients(network)
    portions = Portions(lambda rows: network(image[rows]), len(image), size, 0)
    loss = total(task.loss(portions.forward(), targets))
    assert all(p.grad is None for p in network.parameters())
    loss.backward()
    portions.backward()
    assert float(loss.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    found = gradients(network)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_smaller_batches_would_have_another_gradient(tiny):
    """Why the network runs twice."""
    task, network, image, targets = problem(tiny.plan)
    total(task.loss(network(image), targets)).backward()
    expected = gradients(network)
    for n in range(WINDOWS):
        part = {name: values[n : n + 1] for name, values in targets.items()}
        (total(task.loss(network(image[n : n + 1]), part)) / WINDOWS).backward()
    found = gradients(network)
    assert max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)) > 0.02


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, image):
        return {"out": [nn.functional.dropout(image * self.scale, 0.5)]}


def test_what_is_drawn_is_drawn_alike_in_both_passes():
    network = Dropping().train()
    portions = Portions(lambda rows: network(torch.ones(4, 8)[rows]), 4, 2, 7)
    out = portions.forward()["out"][0]
    assert 0 < int((out == 0).sum()) < out.numel()
    out.sum().backward()
    portions.backward()
    assert torch.equal(network.scale.grad, out.sum(0))


def test_networks_that_normalise_over_the_batch_are_known():
    assert independent(nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), nn.GroupNorm(1, 2)))
    assert not independent(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))


def test_a_training_goes_on_with_what_fits(tiny, full, weights):
    expected = tiny.run("plain", epochs=2)
    raised, talk = full(1, first=4), Talk()
    result = tiny.run("full", epochs=2, progress=talk)
    assert raised == [4, 2]
    told = [line for line in talk.lines if "out of memory" in line]
    assert [line.partition(". ")[0] for line in told] == [
        "warning: out of memory on cpu with 4 windows at once: from now on the 4 of a step go through the network 2 at a time",
        "warning: out of memory on cpu with 2 windows at once: from now on the 4 of a step go through the network 1 at a time",
    ]
    assert (result.steps, result.epochs, result.finished) == (6, 2, True)
    assert result.score == pytest.approx(expected.score, abs=1e-3)
    assert weights("plain", "full") < 2e-3
    assert losses(tiny, "full") == pytest.approx(losses(tiny, "plain"), rel=1e-3)


def losses(tiny, name):
    import csv

    with (tiny.root / name / "fold_0" / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_memory_that_runs_out_in_the_backward_pass(tiny, weights, monkeypatch):
    tiny.run("before", epochs=1)
    real, calls = Learner.backward, []

    def backward(self, loss, *arguments, **named):
        calls.append(self.portion)
        if len(calls) == 2:
            real(self, loss, *arguments, **named)  # gradients are there already: they must not count twice
            raise RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)")
        return real(self, loss, *arguments, **named)

    monkeypatch.setattr(Learner, "backward", backward)
    tiny.run("after", epochs=1)
    assert calls == [None, None, 2, 2]
    assert weights("before", "after") < 2e-3
    assert losses(tiny, "after") == pytest.approx(losses(tiny, "before"), rel=1e-3)


def test_a_resumed_training_goes_on_in_portions(tiny, full, monkeypatch):
    full(2, first=2)
    tiny.run("whole", epochs=3)
    full(2, first=2)

    class Stopping(Talk):
        def update(self, what, done, total, note="", seconds=False):
            import os
            import signal

            if done >= 1:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("medseg.training.supervisor.TELL_EVERY", 0)
    assert tiny.run("parts", epochs=3, progress=Stopping()).interrupted == "SIGTERM"
    raised, talk = full(2), Talk()
    assert tiny.run("parts", epochs=3, progress=talk, resume=True).finished
    assert raised == []
    assert "as before, 2 of 4 windows go through the network at once, for want of memory" in talk.lines
    assert tiny.weights("whole") == tiny.weights("parts")


@pytest.mark.parametrize(("error", "text"), [(torch.OutOfMemoryError, "CUDA out of memory.\nmore"), (MemoryError, "")])
def test_one_window_that_does_not_fit_is_an_error(tiny, full, error, text):
    full(0, error=error, text=text)
    with pytest.raises(ResourceError) as failed:
        tiny.run(f"nothing_{error.__name__}", epochs=1)
    said = "CUDA out of memory." if text else "MemoryError"
    assert str(failed.value) == (
        f"cpu: one window at a time does not fit into memory; found {said}. Close other programs that use the device, plan again with a smaller "
        "--memory, or use a smaller window (--edit window=...)."
    )


def test_other_errors_are_not_taken_for_it(tiny, full):
    raised = full(0, error=RuntimeError, text="mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tiny.run("wrong", epochs=1)
    assert raised == [4]


def test_a_network_that_normalises_over_the_batch_is_not_taken_in_portions(tiny, full, monkeypatch):
    monkeypatch.setattr("medseg.training.module.independent", lambda _: False)
    raised = full(2)
    with pytest.raises(
        ResourceError, match=r"cpu: the device ran out of memory; found CUDA out of memory. Tried to allocate 2.00 GiB.. Plan again"
    ):
        tiny.run("normalised", epochs=1)
    assert raised == [4]


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("anything"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("itk::ERROR: Failed to allocate memory for image."), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (ValueError("out of memory"), False),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error, known):
    assert out_of_memory(error) is known


@pytest.mark.parametrize(
    ("devices", "end"),
    [
        (1, "(--set training.batch_size=N)."),
        (2, "(--set training.batch_size=N), or on one device, where a step that does not fit is taken in portions."),
    ],
)
def test_what_to_do_where_there_are_no_portions(devices, end):
    with pytest.raises(ResourceError) as failed, memory_told(torch.device("cpu"), devices):
        raise MemoryError
    assert str(failed.value).startswith("cpu: the device ran out of memory; found MemoryError. Plan again with a smaller --memory")
    assert str(failed.value).endswith(end)
    with pytest.raises(RuntimeError, match="another"), memory_told(torch.device("cpu"), devices):
        raise RuntimeError("another")
