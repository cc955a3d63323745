from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_plan

from medseg.errors import UsageError
from medseg.training import budget
from medseg.training.budget import Budget, Clock, amount, length
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


def make_clock(seconds=None, epochs=None, synchronise=None, network_steps=10**6, networks=4):
    training = make_plan().training.model_copy(update={"epochs": 7, "steps": 5, "network_steps": network_steps})
    return Clock(Budget(seconds, epochs), training, networks, synchronise)


def test_contradictions():
    with pytest.raises(UsageError, match="not both"):
        Budget(60, 3)
    with pytest.raises(UsageError, match="must be positive"):
        Budget(seconds=0)
    with pytest.raises(UsageError, match="at least one epoch"):
        Budget(epochs=0)


def test_epochs_count_steps():
    clock = make_clock(epochs=4)
    assert [clock.progress(s) for s in (0, 10, 20, 30)] == [0, 0.5, 1, 1]
    assert not clock.time_is_up()
    assert make_clock().epochs == 7


def test_time_ends_before_the_step_that_would_be_too_long(time):
    clock = make_clock(seconds=100)
    clock.reserve = 10
    clock.start()
    for step in range(1, 9):
        time.now += 10
        clock.tick(step)
    assert clock.elapsed == 80
    assert clock.progress(12345) == pytest.approx(80 / 90)
    assert clock.time_is_up()  # 80 + a step of 10 + a validation of 10
    clock.reserve = 5
    assert not clock.time_is_up()


def test_a_pause_is_no_step(time):
    clock = make_clock(seconds=100)
    clock.start()
    time.now += 1
    clock.tick(1)
    time.now += 60  # a validation
    clock.skip()
    time.now += 1
    clock.tick(1)
    assert not clock.time_is_up()


def test_interruptions_do_not_count(time):
    first = make_clock(seconds=100)
    first.start()
    time.now += 30
    state = first.state_dict()
    time.now += 5000
    second = make_clock(seconds=100)
    second.load_state_dict(state)
    assert second.elapsed == 30
    second.start()
    time.now += 10
    assert second.progress(0) == pytest.approx(0.4)


def test_the_device_is_waited_for_near_the_end_only(time):
    waits = []
    clock = make_clock(seconds=1000, synchronise=lambda: waits.append(clock.elapsed))
    clock.reserve = 100
    clock.start()
    while not clock.time_is_up():
        time.now += 1
        clock.tick(1)
    assert waits[0] == 880  # 20 steps before 1000 - 100
    assert waits == [float(n) for n in range(880, int(clock.elapsed) + 1)]
    assert clock.elapsed == 899
    by_epochs = make_clock(epochs=1, synchronise=lambda: waits.append(None))
    by_epochs.start()
    by_epochs.tick(1)
    assert None not in waits


def test_an_interrupted_training_knows_its_first_length():
    first = make_clock(seconds=100)
    second = make_clock()
    assert second.before is None
    second.load_state_dict(first.state_dict())
    assert second.before == (100, None)
    assert (second.seconds, second.epochs) == (None, 7)


@pytest.mark.parametrize(
    ("epochs", "ends"),
    [
        (5, [None]),  # 25 steps
        (5 + 3, [20, None]),  # 40 steps are two networks of four epochs
        (9, [20, None]),  # rounded to whole epochs, half to even
        (13, [20, 40, None]),  # 65 steps are three: 4, 4 (of the nine epochs that are left) and 5 epochs
        (100, [125, 250, 375, None]),  # no more than four
    ],
)
def test_a_long_training_is_divided_among_networks(epochs, ends):
    clock = make_clock(epochs=epochs, network_steps=20)
    found = []
    while True:
        clock.allot(clock.begun)
        found.append(clock.end)
        if clock.end is None:
            break
        assert clock.progress(clock.begun) == 0
        assert clock.progress(clock.end) == 1
        clock.renew(clock.end)
    assert found == ends
    assert clock.progress(epochs * 5) == 1
    assert clock.progress(clock.begun) == 0


def test_time_is_divided_by_the_pace_that_was_measured(time):
    clock = make_clock(seconds=100, network_steps=20)
    clock.start()
    clock.reserve = 4
    step = 0

    def steps(count, pace):
        nonlocal step
        for _ in range(count):
            step += 1
            time.now += pace
            clock.tick(step)

    steps(1, 10.0)  # compiles
    assert clock.progress(step) == pytest.approx(10 / 96)
    steps(4, 1.0)
    clock.allot(step)  # 82 steps are left of 87: four networks
    assert clock.end == 20
    steps(15, 1.0)
    assert clock.progress(step) == 1
    clock.renew(step)
    clock.allot(step)
    assert (clock.network, clock.begun, clock.end) == (1, 20, 40)  # 67 steps for three
    assert clock.progress(step) == 0
    restored = make_clock(seconds=100, network_steps=20)
    restored.load_state_dict(clock.state_dict())
    restored.start()
    assert (restored.network, restored.begun, restored.end) == (1, 20, 40)
    assert restored._left(step) == clock._left(step)
    steps(20, 2.0)  # the machine got slower
    clock.renew(step)
    clock.allot(step)
    assert clock.end is None  # 18 steps are left at the pace so far
    assert clock.progress(step) == 0
    time.now += 96 - clock.elapsed
    assert clock.progress(step) == 1


@given(
    paces=st.lists(st.floats(0.2, 8.0), min_size=1, max_size=12),
    seconds=st.floats(50, 2000),
    network_steps=st.integers(10, 200),
    networks=st.integers(1, 6),
)
def test_whatever_the_pace_every_network_is_worth_its_place(paces, seconds, network_steps, networks):
    """Driven as the supervisor does it. The pace changes at equal shares of the time."""

    class Time:
        now = 0.0

        def monotonic(self):
            return self.now

    fake = Time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "time", fake)
        clock = make_clock(seconds=seconds, network_steps=network_steps, networks=networks)
        clock.start()
        step, delivered, ends = 0, [], []
        while True:
            step += 1
            fake.now += paces[min(len(paces) - 1, int(clock.elapsed / seconds * len(paces)))]
            clock.tick(step)
            over = clock.time_is_up()
            if step % clock.steps and not over:
                continue
            if (over or clock.end == step) and clock.worth(step):
                delivered.append(step - clock.begun)
                ends.append(clock.progress(step))
            if over:
                break
            if clock.end == step:
                clock.renew(step)
                clock.allot(step)
            elif step == clock.steps:
                clock.allot(step)
            else:
                clock.reconsider(step)
    assert 1 <= len(delivered) <= networks
    assert all(steps >= 0.5 * network_steps for steps in delivered[1:])
    longest = max(paces)
    assert all(end == 1 for end in ends[:-1])
    if len(delivered) == clock.network + 1 and clock.end is None:
        assert ends[-1] >= 1 - 2 * longest / (seconds - clock._begun_at)


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


@pytest.mark.parametrize(
    ("steps", "windows", "cases", "few"),
    [(99, 2, 10, True), (100, 2, 10, False), (100, 2, 101, True), (100, 2, 100, False), (1, 4, 2, True)],
)
def test_too_little_time_is_told(steps, windows, cases, few):
    said = amount(steps, windows, cases, timed=True)
    count = f"{steps} training step{'s' if steps > 1 else ''}, {steps * windows / cases:.3g} windows per case"
    assert said == (f"warning: only {count}: the result says little; give it more time (--time)" if few else count)
    assert amount(steps, windows, cases, timed=False) == count  # as many as were asked for
