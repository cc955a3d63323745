"""What is said of measured speeds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from medseg import verdict
from medseg.verdict import TrainingSpeed, judge, lasting


def speed(data=0.01, augmentation=0.05, network=0.9, optimiser=0.04, **more):
    phases = {"data": data, "augmentation": augmentation, "network": network, "optimiser": optimiser}
    total = sum(phases.values())
    values = {
        "steps": 10,
        "steps_per_second": 1 / total,
        "windows_per_second": 2 / total,
        "fastest": 0.9 * total,
        "slowest": 1.3 * total,
        "cores": 1.0,
        "others": 0.02,
        "phases": phases,
        "waiting": data / total,
        "memory": 3.1,
        "memory_predicted": 3.5,
        "portion": None,
        "flops": 10**12,
        "rate": 1e12,
        "peak_rate": 2e12,
        "utilisation": 0.5,
        "workers": 3,
        "window_seconds": 0.06,
        "window_computing": 1.0,
        "compiled": False,
        "float32_steps_per_second": None,
        "epoch_seconds": 1.0,
        "plan_seconds": 1.0,
    }
    return TrainingSpeed(**(values | more))


def judged(found, kind="cuda", cores=16, prepared=None, budget=23.0, precision="bfloat16"):
    said = judge(found, 2, budget, kind, cores, prepared, precision)
    sentence, _, steps = said.sentence.rpartition("; ")
    assert steps == f"10 steps of {lasting(found.fastest, found.slowest)}"
    return said.limit, sentence, said.advice


def test_the_network():
    sentence = "limited by the network (waiting 1%): 90% of the step, at 50% of a large matrix product's rate"
    assert judged(speed()) == ("network", sentence, ())


def test_a_gpu_that_is_not_filled():
    _, _, (advice,) = judged(speed(utilisation=0.16))
    assert advice == "3.1 of 23 GiB are used: a larger batch may fill the device better (--set training.batch_size=4)"
    assert judged(speed(utilisation=0.16, memory=20.0))[2] == ()
    assert judged(speed(utilisation=0.16, memory=None))[2] == ()


def test_memory_that_holds_no_batch():
    _, _, (advice,) = judged(speed(portion=1, utilisation=0.16))
    assert advice == "memory did not hold a whole batch, so each step runs the network twice: plan for less (`medseg plan --memory`)"


def test_a_cpu_without_bfloat16():
    _, _, (advice,) = judged(speed(), kind="cpu", precision="float32")
    assert advice.startswith("this CPU has no fast bfloat16")
    assert judged(speed(float32_steps_per_second=0.5), kind="cpu")[2] == ()
    assert judged(speed(), kind="cpu")[2] == ()  # the comparison would have taken too long


def test_other_processes():
    quiet, busy = judged(speed(others=0.2)), judged(speed(others=0.476))
    assert busy[1] == f"other processes took 48% of the cores: repeat when the machine is quiet; {quiet[1]}"
    assert judged(speed(others=None)) == quiet


def test_few_steps():
    said = judge(speed(steps=3, fastest=0.95, slowest=2.5), 2, 23.0, "cuda", 16, None, "bfloat16")
    assert said.sentence.endswith("rate; 3 steps of 0.95 to 2.5 s")
    assert said.advice == ("so few steps tell little: measure 10 or more (--seconds or --steps)",)


def test_16_bits_that_are_slower():
    _, _, (advice,) = judged(speed(float32_steps_per_second=1.5), kind="cpu")
    assert advice.startswith("bfloat16 is slower than float32 on this CPU: ")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_little_of_what_the_device_could_do(kind):
    _, _, (advice, *more) = judged(speed(utilisation=0.12), kind=kind)
    assert advice.startswith("12% of a large matrix product's rate is little: layers with few channels, small windows")
    assert advice.endswith("cores that others took") == (kind == "cpu")
    assert len(more) == (kind == "cuda")  # a larger batch


@pytest.mark.parametrize(("phase", "name"), [("augmentation", "augmentation"), ("optimiser", "the optimiser")])
def test_another_phase(phase, name):
    limit, sentence, (advice,) = judged(speed(**{"network": 0.3, phase: 0.6}))
    assert limit == phase
    assert sentence.startswith(f"limited by {name}: ")
    assert sentence.endswith("of the step (waiting 1%)")
    assert advice


def test_data_with_cores_to_spare():
    found = speed(data=0.43, augmentation=0.02, network=0.05, optimiser=0.03, window_seconds=0.26)
    limit, sentence, advice = judged(found)
    assert limit == "data"
    assert sentence == "limited by data: 81% of the step waits; a window takes 260.0 ms of a core, and 2 of them the device 0.1 s"
    assert advice == ("try --workers 7 (now 3; you have 16 cores)",)
    assert judged(found, cores=5)[2] == ("try --workers 5 (now 3; you have 5 cores)",)
    assert judged(found, cores=3)[2] == ("about 7 cores would keep the device busy, and you have 3",)


def test_data_on_a_cpu():
    limit, _, (advice,) = judged(speed(data=0.5, workers=0), kind="cpu")
    assert limit == "data"
    assert "--workers" not in advice


def test_the_disk(monkeypatch):
    monkeypatch.setattr(verdict.psutil, "virtual_memory", lambda: SimpleNamespace(available=32 * 2**30))
    found = speed(data=1.0, augmentation=0.1, network=0.8, optimiser=0.1, window_computing=0.2, window_seconds=0.012)
    limit, sentence, advice = judged(found, prepared=48.0)
    assert limit == "disk"
    assert (
        sentence
        == "limited by the disk: 50% of the step waits; reading a window takes 12.0 ms, and for 80% of that the processor has nothing to do"
    )
    assert advice == (
        "put the workspace on a local SSD (-o of `medseg plan` or `medseg run`)",
        "prepared cases take about 48.0 GiB and 32.0 GiB of memory are free: with more, they would be read once",
        "more windows can be waited for at once: --workers 6 (now 3)",
    )
    assert len(judged(found, prepared=8.0)[2]) == 2
    assert len(judged(found)[2]) == 2
