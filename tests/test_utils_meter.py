"""Means without waiting for the device, the seconds of a loop's phases, and requests to stop."""
import math
import os
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils import meter
from utils.meter import MeanMeter, PhaseTimer
from utils.process import Stopped, StopRequest


def values_of(step):
    random = np.random.default_rng(step)
    return {name: torch.tensor(random.normal(), dtype=torch.float32) for name in ("loss", "acc")}


# ------------------------------------------------------------------ means
def test_a_mean_leaves_out_the_steps_that_do_not_count():
    running = MeanMeter()
    assert running.means() == {}
    counted = [step for step in range(20) if step % 3]
    for step in range(20):
        values = values_of(step)
        if step not in counted:
            values["loss"] = torch.tensor(math.nan)
        running.update(values, torch.tensor(step in counted))
    for name, mean in running.means().items():
        assert mean == pytest.approx(np.mean([values_of(step)[name].item() for step in counted]), rel=1e-14)
    running.reset()
    assert running.means() == {}


def test_a_mean_of_nothing_is_not_a_number():
    running = MeanMeter()
    running.update(values_of(0), torch.tensor(False))
    assert all(math.isnan(mean) for mean in running.means().values())


def test_a_restored_meter_goes_on_to_the_bit():
    whole, first = MeanMeter(), MeanMeter()
    for step in range(9):
        whole.update(values_of(step), torch.tensor(step != 4))
    for step in range(5):
        first.update(values_of(step), torch.tensor(step != 4))
    for state in (first.state_dict(), MeanMeter().state_dict()):
        second = MeanMeter()
        second.load_state_dict(state, torch.device("cpu"))
        for step in range(5 if state["count"] else 0, 9):
            second.update(values_of(step), torch.tensor(step != 4))
        assert second.means() == whole.means()


def test_a_meter_keeps_what_it_was_given_and_no_graph():
    running, value = MeanMeter(), torch.tensor(1.0, requires_grad=True)
    running.update({"loss": value * 2})
    assert not running.state_dict()["sums"].requires_grad
    with pytest.raises(AssertionError, match="the same names"):
        running.update({"other": value})


# ------------------------------------------------------------------ phases
def test_a_timer_shares_out_the_time_between_the_phases(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 5.0, 10.0])
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    waited = []
    timer = PhaseTimer(lambda: waited.append(1))
    assert timer.share("data") == 0.0
    for phase in ("data", "forward", "data", "backward"):
        timer.end(phase)
    assert timer.seconds == {"data": 2.0, "forward": 3.0, "backward": 5.0}
    assert (timer.total, timer.share("data"), timer.share("nothing")) == (10.0, 0.2, 0.0)
    assert len(waited) == 4


# ------------------------------------------------------------------ requests to stop
def send(number):
    os.kill(os.getpid(), number)


def test_a_signal_becomes_a_question_and_the_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert stop.requested == ""
        send(signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        send(signal.SIGTERM)  # once more changes nothing
        assert stop.requested == "SIGTERM"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_second_interrupt_interrupts():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:  # noqa: PT012 - the first must not raise
        send(signal.SIGINT)
        assert stop.requested == "SIGINT"
        send(signal.SIGINT)


@pytest.mark.parametrize("early", [True, False])
def test_where_nothing_can_be_lost_a_signal_stops_at_once(early):
    reached = []
    with StopRequest() as stop:
        if early:
            send(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGINT"), stop.at_once():  # noqa: PT012 - where it is raised is the point
            reached.append("began")
            send(signal.SIGINT)
            reached.append("went on")
        assert reached == ([] if early else ["began"])
        send(signal.SIGTERM)  # outside again, it is a question
        assert stop.requested == "SIGINT"  # the first that came


def test_outside_of_the_main_thread_no_signal_is_caught():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
