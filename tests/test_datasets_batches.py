"""Batches come from other processes whole or not at all, however little shared memory there is, and waiting ends."""
import os
import signal
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from datasets import batches
from datasets.bases import Sample
from datasets.batches import SequentialBatches, open_loader
from utils.process import LostWorker, Stopped, StopRequest

SIZE = (128, 64)  # a batch is more than goes through a pipe anyway


class Noise:
    """A source of pictures that are all different."""

    def read(self, key):
        picture = np.random.default_rng(int(key)).integers(0, 256, (*SIZE, 3), np.uint8)
        return cv2.imencode(".png", picture)[1].tobytes()


class Silent:
    """A source on a network that does not answer any more."""

    def read(self, key):
        while True:
            time.sleep(100)


def loader_of(source, workers):
    return open_loader(source, [Sample(str(number), number, 0) for number in range(15)], SIZE,
                       SequentialBatches(15, 6), workers)


@pytest.fixture(autouse=True)
def warned_anew():
    batches._warn_of_slow_batches.cache_clear()


def fail(error):
    def failing(*_, **__):
        raise error
    return failing


@pytest.mark.parametrize("lacks", ["nothing", "room", "room at the last moment", "a folder for sockets"])
def test_batches_are_the_same_however_they_travel(lacks, monkeypatch, caplog):
    if lacks == "room":
        monkeypatch.setattr(batches, "_free_shared", lambda: 0)
    elif lacks != "nothing":
        error = RuntimeError("no space left") if "room" in lacks else OSError("AF_UNIX path too long")
        monkeypatch.setattr(batches, "ForkingPickler", SimpleNamespace(dumps=fail(error)))
    for sent, here in zip(loader_of(Noise(), 1), loader_of(Noise(), 0), strict=True):
        assert torch.equal(sent.images, here.images)
        assert torch.equal(sent.pids, here.pids)
        assert (sent.keys, sent.positions.tolist()) == (here.keys, here.positions.tolist())
        sent.images.add_(1)  # it can be written to
        assert sent.images.is_shared() == (lacks == "nothing")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (lacks == "room")
    assert all("/dev/shm has 0 MiB free" in text and "--shm-size" in text for text in warnings)


def test_a_batch_that_cannot_be_sent_ends_the_run_with_the_cure(monkeypatch, capfd):
    monkeypatch.setattr(batches._Sent, "__reduce__", fail(MemoryError("no memory")))
    with pytest.raises(LostWorker, match=r"has died .*DATALOADER\.NUM_WORKERS.*--shm-size"):
        list(loader_of(Noise(), 1))
    assert "cannot send its batch: MemoryError: no memory\n" in capfd.readouterr().err


def test_processes_that_cannot_be_started_are_no_bad_images(monkeypatch):
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", fail(OSError(28, "No space left on device")))
    with pytest.raises(LostWorker, match=r"can be started \(\[Errno 28\].*--shm-size.*DATALOADER\.NUM_WORKERS 0"):
        list(loader_of(Noise(), 1))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_waiting_for_a_disk_that_does_not_answer(workers, number):
    loader, begun = loader_of(Silent(), workers), time.monotonic()
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
    with StopRequest() as stop, pytest.raises(Stopped, match=number.name), stop.at_once():
        next(iter(loader))
    del loader
    assert time.monotonic() - begun < 3


def test_a_signal_leaves_some_time_for_the_batch_if_that_is_wanted():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with StopRequest() as stop:
        with stop.at_once(patience=60):
            time.sleep(0.2)
        assert stop.requested == "SIGTERM"
        assert stop._again.finished.is_set()  # or it would end the process some time later
        stop._came -= 60
        with pytest.raises(Stopped), stop.at_once(patience=60):
            pytest.fail("its time was over before")


def test_a_stop_that_is_swallowed_comes_again():
    with StopRequest() as stop, pytest.raises(Stopped, match="SIGINT"), stop.at_once():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Stopped:  # as Python does while it forks
            time.sleep(5)
