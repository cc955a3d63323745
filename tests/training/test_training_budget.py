from __future__ import annotations

import pytest

from medseg.errors import UsageError
from medseg.training import budget
from medseg.training.budget import Budget, Clock, length
from medseg.training.validation import SHARE, Agenda


@pytest.fixture
def time(monkeypatch):
    """A clock that is set by hand."""

    class Time:
        now = 1000.0

        def monotonic(self):
            return self.now

    fake = Time()
    monkeypatch.setattr(budget, "time", fake)
    return fake


def test_contradictions():
    with pytest.raises(UsageError, match="not both"):
        Budget(60, 3)
    with pytest.raises(UsageError, match="must be positive"):
        Budget(seconds=0)
    with pytest.raises(UsageError, match="at least one epoch"):
        Budget(epochs=0)


def test_epochs_count_steps():
    clock = Clock(Budget(epochs=4), planned_epochs=100, steps=5)
    assert [clock.progress(s) for s in (0, 10, 20, 30)] == [0, 0.5, 1, 1]
    assert not clock.time_is_up()
    assert Clock(Budget(), planned_epochs=7, steps=5).epochs == 7


def test_time_ends_before_the_step_that_would_be_too_long(time):
    clock = Clock(Budget(seconds=100), 1, 5)
    clock.reserve = 10
    clock.start()
    for _ in range(8):
        time.now += 10
        clock.tick()
    assert clock.elapsed == 80
    assert clock.progress(12345) == pytest.approx(80 / 90)
    assert clock.time_is_up()  # 80 + a step of 10 + a validation of 10
    clock.reserve = 5
    assert not clock.time_is_up()


def test_a_pause_is_no_step(time):
    clock = Clock(Budget(seconds=100), 1, 5)
    clock.start()
    time.now += 1
    clock.tick()
    time.now += 60  # a validation
    clock.skip()
    time.now += 1
    clock.tick()
    assert not clock.time_is_up()


def test_interruptions_do_not_count(time):
    first = Clock(Budget(seconds=100), 1, 5)
    first.start()
    time.now += 30
    state = first.state_dict()
    time.now += 5000
    second = Clock(Budget(seconds=100), 1, 5)
    second.load_state_dict(state)
    assert second.elapsed == 30
    second.start()
    time.now += 10
    assert second.progress(0) == pytest.approx(0.4)


def test_the_device_is_waited_for_near_the_end_only(time):
    waits = []
    clock = Clock(Budget(seconds=1000), 1, 5, synchronise=lambda: waits.append(clock.elapsed))
    clock.reserve = 100
    clock.start()
    while not clock.time_is_up():
        time.now += 1
        clock.tick()
    assert waits[0] == 880  # 20 steps before 1000 - 100
    assert waits == [float(n) for n in range(880, int(clock.elapsed) + 1)]
    assert clock.elapsed == 899
    by_epochs = Clock(Budget(epochs=1), 1, 5, synchronise=lambda: waits.append(None))
    by_epochs.start()
    by_epochs.tick()
    assert None not in waits


def test_an_interrupted_training_knows_its_first_length():
    first = Clock(Budget(seconds=100), 7, 5)
    second = Clock(Budget(), 7, 5)
    assert second.before is None
    second.load_state_dict(first.state_dict())
    assert second.before == (100, None)
    assert (second.seconds, second.epochs) == (None, 7)


def test_lengths_in_words():
    assert [length(None, 1), length(None, 30)] == ["1 epoch", "30 epochs"]
    assert [length(90.0, None), length(1200.0, None), length(150.0, None)] == ["90 seconds", "20 minutes", "2.5 minutes"]


def test_agenda_by_epochs_is_fixed():
    assert [e for e in range(100) if Agenda(100, None, None).due(e, 0)] == list(range(4, 100, 5))
    assert all(Agenda(100, None, patience=3).due(e, 0) for e in range(100))
    assert Agenda(100, None, None).limit is None


def test_agenda_by_time_keeps_validation_to_its_share():
    agenda = Agenda(None, 1000.0, None)
    assert agenda.limit == 1000 * SHARE / 4
    now, spent, cost, count = 0.0, 0.0, 5.0, 0
    while now < 1000 - agenda.reserve:
        now += 3  # an epoch
        if agenda.due(0, now):
            now += cost
            spent += cost
            count += 1
            agenda.done(cost, now)
    assert count > 5
    assert spent <= 1000 * SHARE
