"""Training is watched: what a step spends its time on, and nothing is kept."""

from __future__ import annotations

import os
import signal
import tempfile
import time

import pytest
import torch
from tiny_training import EDITS, Talk, Tiny

from medseg.errors import ResourceError
from medseg.models.unet import UNet
from medseg.progress import Silent
from medseg.training import probe
from medseg.training.data import TrainingData, Windows
from medseg.training.probe import FEWEST, WARM, Watch, cutting_pace, product_rate, train_pace
from medseg.training.signals import StopRequest

IDS = ("case_00", "case_01")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    return Tiny(tmp_path_factory.mktemp("probe"))


def paced(tiny, steps=4, progress=None, **more):
    return train_pace(tiny.plan, tiny.store.folder, tiny.store.ids(), CPU, 60.0, steps, None, progress or Silent(), **more)


class Trainer:
    should_stop = False


@pytest.fixture
def clock(monkeypatch):
    class Time:
        now = 100.0

        def perf_counter(self):
            return self.now

    found = Time()
    monkeypatch.setattr(probe, "time", found)
    return found


def step(watch, trainer, clock, data, augmentation, network, optimiser):
    clock.now += data
    watch.on_train_batch_start(trainer, None, None, 0)
    watch.augmentation(True)
    clock.now += augmentation
    watch.augmentation(False)
    clock.now += network
    watch.on_before_optimizer_step(trainer, None, None)
    clock.now += optimiser
    watch.on_train_batch_end(trainer, None, None, None, 0)


def test_phases_add_up_to_steps_after_those_that_are_not_typical(clock):
    watch, trainer = Watch(60.0, 2, None, StopRequest(), Silent()), Trainer()
    watch._since = watch._mark = clock.now
    for _ in range(WARM):
        step(watch, trainer, clock, 5.0, 5.0, 5.0, 5.0)
    for data in (1.0, 3.0):
        assert not trainer.should_stop
        step(watch, trainer, clock, data, 0.5, 4.0, 0.25)
    assert trainer.should_stop
    assert watch.spent == {"data": 4.0, "augmentation": 1.0, "network": 8.0, "optimiser": 0.5}
    assert (watch.timed, watch.pace) == (2, 6.75)
    assert watch.each == [5.75, 7.75]
    assert watch.taken is not None


def test_on_a_gpu_the_pace_is_that_of_steps_which_nobody_waits_for(clock):
    """Half of the time goes to steps that run freely; a device is waited for at their beginning and end only, then at every phase."""
    waits = []

    def synchronise():
        waits.append(clock.now)
        if free:
            clock.now += 1.0  # the device is behind

    free = True
    watch, trainer = Watch(8.0, None, synchronise, StopRequest(), Silent()), Trainer()
    watch._since = watch._mark = clock.now
    for _ in range(WARM):
        step(watch, trainer, clock, 0.0, 0.0, 0.1, 0.0)
    assert len(waits) == 1
    count = 0
    while watch.timed == 0 and watch._free:
        step(watch, trainer, clock, 0.5, 0.25, 0.125, 0.125)
        count += 1
    assert count == 4  # of a second each: half of 8 seconds
    assert watch.pace == pytest.approx(1.25)  # four seconds, and the one that the device was behind
    free = False
    del waits[:]
    for _ in range(4):
        step(watch, trainer, clock, 0.5, 0.25, 0.125, 0.125)
    assert trainer.should_stop
    assert len(waits) == 4 * 5
    assert watch.spent == {"data": 2.0, "augmentation": 1.0, "network": 0.5, "optimiser": 0.5}
    assert watch.each == [1.0] * 4


@pytest.mark.parametrize("fewest", [1, FEWEST])
def test_a_few_steps_are_measured_however_long_they_take(clock, fewest):
    """And one before them, where that takes longer than all measured ones shall."""
    watch, trainer = Watch(1.0, None, None, StopRequest(), Silent(), fewest), Trainer()
    watch._since = watch._mark = clock.now
    for _ in range(1 + fewest - 1):
        step(watch, trainer, clock, 0, 0, 100.0, 0)
    assert not trainer.should_stop
    step(watch, trainer, clock, 0, 0, 100.0, 0)
    assert trainer.should_stop


def test_the_training_itself_is_watched_and_nothing_is_left(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert len(tiny.store.ids()) == 6
    files = sorted(tiny.root.rglob("*"))
    seen = []
    real = TrainingData.on_before_batch_transfer
    monkeypatch.setattr(TrainingData, "on_before_batch_transfer", lambda self, *arguments: seen.append(1) or real(self, *arguments))
    talk = Talk()
    pace = paced(tiny, progress=talk)
    assert len(seen) == WARM + 4
    assert 0 < pace.fastest <= pace.step <= pace.slowest
    assert pace.taken.cores >= 0
    assert (pace.steps, pace.portion, pace.workers, pace.compiled) == (4, None, 0, False)
    assert set(pace.phases) == set(probe.PHASES)
    assert all(spent > 0 for spent in pace.phases.values())
    assert sum(pace.phases.values()) == pytest.approx(pace.step, rel=0.3)  # between the steps others may take the core
    assert ("warming up", WARM, WARM, "") in talk.updates
    assert sorted(tiny.root.rglob("*")) == files
    assert list(tmp_path.glob("medseg*")) == []


def test_slow_data_is_seen(tiny, monkeypatch):
    real = Windows.__getitems__

    def slow(self, items):
        time.sleep(0.2)
        return real(self, items)

    monkeypatch.setattr(Windows, "__getitems__", slow)
    pace = paced(tiny, 2)
    assert pace.phases["data"] >= 0.2


def test_float32_is_float32(tiny, monkeypatch):
    types, real = [], UNet.forward

    def forward(self, image):
        outputs = real(self, image)
        types.append(outputs["segmentation"][0].dtype)
        return outputs

    monkeypatch.setattr(UNet, "forward", forward)
    paced(tiny, 1, full_precision=True)
    assert set(types) == {torch.float32}


def test_an_interrupt_ends_it_and_leaves_nothing(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Impatient(Silent):
        def update(self, what, done, total, note="", seconds=False):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        paced(tiny, 1000, Impatient())
    assert signal.getsignal(signal.SIGINT) is before
    assert list(tmp_path.glob("medseg*")) == []


def test_memory_that_does_not_suffice_is_told(tiny, monkeypatch):
    real, most = UNet.forward, [1]

    def forward(self, image):
        if len(image) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, image)

    monkeypatch.setattr(UNet, "forward", forward)
    assert paced(tiny, 1).portion == 1
    most[0] = 0
    with pytest.raises(ResourceError, match="one window at a time does not fit"):
        paced(tiny, 1)


def test_reading_is_told_from_computing(tiny, monkeypatch):
    real, items = Windows.__getitem__, []

    def waiting(self, item):
        items.append(item)
        time.sleep(0.02)
        return real(self, item)

    monkeypatch.setattr(Windows, "__getitem__", waiting)
    cut = cutting_pace(tiny.plan, tiny.store.folder, tiny.store.ids(), 0.2)
    assert cut.seconds >= 0.02
    assert cut.computing < 0.5  # processor time of this thread: what others take of the core is no part of it
    assert len(set(items)) == len(items) <= 12
    assert min(items) >= 10**6  # none that a measured step comes to


def test_the_rate_of_a_product_is_the_best_one(monkeypatch, clock):
    times = iter([1.0, 0.5, 2.0])

    def product(a, b, out):
        assert a.dtype == torch.bfloat16
        clock.now += next(times)

    monkeypatch.setattr(probe, "SIZES", {"cpu": 10})
    monkeypatch.setattr(torch, "mm", product)
    assert product_rate(CPU, torch.bfloat16, 3.0) == 2 * 10**3 / 0.5


def test_workers_cut_windows_for_a_gpu_only(tiny):
    def workers(device, wanted, ranks=1):
        return TrainingData(tiny.plan, tiny.store.folder, IDS, 0, device, 0, ranks, wanted).workers

    assert [workers("cuda", n) for n in (1, 5, 12)] == [1, 5, 12]
    assert workers("cuda", 6, 2) == 3
    assert workers("cuda", 1, 2) == 1
    assert workers("cpu", 5) == 0
    assert EDITS["training.batch_size"] == "2"
