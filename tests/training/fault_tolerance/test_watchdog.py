import time

import pytest
from waiting import wait_until

from noisytwins_jax.training.fault_tolerance import watchdog as watchdog_module
from noisytwins_jax.training.fault_tolerance.watchdog import Heartbeat, PeerStatus, Watchdog, describe


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_reports_after_the_limit_and_then_once_an_interval(clock):
    dog = Watchdog(minutes=10, clock=clock)
    messages = []
    for minute in range(36):
        clock.now = 100 + 60 * minute
        if minute < 5:
            dog.heartbeat(minute, "training")
            dog.heartbeat(minute, "waiting for input")
        messages += [(minute, message) for message in dog.check_peers()]
    assert messages == [
        (minute, f"No step has ended for {minute - 4} min: the run is at step 4, waiting for input.")
        for minute in (14, 24, 34)
    ]


def test_long_work_has_its_patience(clock):
    dog = Watchdog(minutes=10, clock=clock)
    dog.heartbeat(5, "evaluating", patience=6)
    clock.now += 59 * 60
    assert not dog.check_peers()
    clock.now += 60
    assert dog.check_peers() == ["No step has ended for 60 min: the run is at step 5, evaluating."]
    dog.heartbeat(5, "training")
    assert not dog.check_peers()


def test_a_silent_process_is_reported_as_lost(clock, monkeypatch):
    others = {1: PeerStatus("b", Heartbeat(11, "training", 1.0), 1)}

    def exchange(own):
        return {0: own, **others}

    monkeypatch.setattr(watchdog_module, "_exchange", exchange)
    dog = Watchdog(minutes=10, clock=clock)
    dog.heartbeat(12, "training")
    messages = []
    for minute in range(12):
        if minute < 3:
            others[1] = others[1]._replace(count=minute)
        messages += [(minute, message) for message in dog.check_peers()]
        clock.now += 60
    assert [minute for minute, _ in messages] == [4, 10]
    assert messages[0][1] == (
        "Nothing was heard of process 1 on host b for 2 min: it is lost or frozen. It was at step 11, training."
    )
    assert "process 1 on b is lost or frozen, last at step 11, training; the other is at step 12" in messages[1][1]


def test_never_with_zero_minutes(clock, capsys):
    with Watchdog(minutes=0, period=0.01, clock=clock) as dog:
        dog.heartbeat(1, "training")
        clock.now += 1e9
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_the_thread_prints(clock, capsys):
    printed = []
    with Watchdog(minutes=10, period=0.01, clock=clock) as dog:
        dog.heartbeat(3, "saving")
        clock.now += 600
        wait_until(lambda: printed.append(capsys.readouterr().err) or any(printed))
        time.sleep(0.05)
    printed.append(capsys.readouterr().err)
    assert "".join(printed) == "No step has ended for 10 min: the run is at step 3, saving.\n"


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (
            [(9, "training"), (8, "waiting for input"), (9, "training")],
            "process 1 on b is at step 8, waiting for input; the others are at step 9, training",
        ),
        ([(9, "training")] * 3, "all 3 processes are at step 9, training"),
        (
            [(9, "saving"), (9, "saving"), (9, "training")],
            "processes 0 and 1 on a, b are at step 9, saving; the other is at step 9, training",
        ),
        (
            [(9, "waiting for input"), (9, "saving"), (9, "saving")],
            "process 0 on a is at step 9, waiting for input; the others are at step 9, saving",
        ),
    ],
)
def test_who_is_late(places, words):
    known = {p: PeerStatus("abc"[p], Heartbeat(step, doing, 1.0), 1) for p, (step, doing) in enumerate(places)}
    assert describe(known, set()) == words
