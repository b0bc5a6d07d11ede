"""Batches come from other processes whole or not at all, however little shared memory there is, and waiting ends."""
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from processes import wait_for

from datasets import batches
from datasets.bases import Sample
from datasets.batch_memory import BatchMemory
from datasets.batches import SequentialBatches, open_loader
from tools.campaigns.tool_server import ROOT, run_tool
from utils.process import LostWorker, Stopped, StopRequest

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no files without names")
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


def loader_of(source, workers, size=15):
    return open_loader(source, [Sample(str(number), number, 0) for number in range(size)], SIZE,
                       SequentialBatches(size, 6), workers)


@pytest.fixture(autouse=True)
def warned_anew():
    batches._warn_of_slow_batches.cache_clear()


def fail(error):
    def failing(*_, **__):
        raise error
    return failing


@pytest.mark.parametrize("lacks", ["nothing", "memory of the loader's own", "room", "room at the last moment",
                                   "a folder for sockets"])
def test_batches_are_the_same_however_they_travel(lacks, monkeypatch, caplog):
    if lacks != "nothing":
        monkeypatch.setattr("os.memfd_create", fail(OSError("not permitted")))
    if lacks == "room":
        monkeypatch.setattr(batches, "_free_shared", lambda: 0)
    elif "room" in lacks or "sockets" in lacks:
        error = RuntimeError("no space left") if "room" in lacks else OSError("AF_UNIX path too long")
        monkeypatch.setattr(batches, "ForkingPickler", SimpleNamespace(dumps=fail(error)))
    for sent, here in zip(loader_of(Noise(), 1), loader_of(Noise(), 0), strict=True):
        assert torch.equal(sent.images, here.images)
        assert torch.equal(sent.pids, here.pids)
        assert (sent.keys, sent.positions.tolist()) == (here.keys, here.positions.tolist())
        sent.images.add_(1)  # it can be written to
        assert sent.images.is_shared() == (lacks == "memory of the loader's own")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (lacks == "room")
    assert all("/dev/shm has 0 MiB free" in text and "--shm-size" in text for text in warnings)


@linux
@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_stays_as_it_was_while_others_come(workers):
    loader, here = loader_of(Noise(), workers, 60), list(loader_of(Noise(), 0, 60))
    for _ in range(2):  # the second epoch's batches find places taken by those of the first
        kept = list(loader)
        views = [batch.images[1:, 5] for batch in kept]
        assert any(batch.images.is_shared() for batch in kept)  # there was no place left for those
        del kept
        assert all(torch.equal(view, batch.images[1:, 5]) for view, batch in zip(views, here, strict=True))


@linux
@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_that_is_gone_leaves_its_place_to_others(workers):
    loader = loader_of(Noise(), workers, 120)
    for _ in range(2):
        addresses = set()
        for batch in loader:
            assert not batch.images.is_shared()
            addresses.add(batch.images.data_ptr())
        assert len(addresses) <= 4 * workers < len(loader)
        time.sleep(0.01)


@linux
def test_a_place_that_the_system_has_no_memory_for_is_not_used(monkeypatch):
    memory = BatchMemory(workers=2, places=1, size=8)
    monkeypatch.setattr("os.posix_fallocate", fail(OSError(28, "No space left on device")))
    assert memory.lay(1, [np.zeros(8, np.uint8)]) is None
    monkeypatch.undo()
    assert memory.lay(1, [np.zeros(memory._size + 1, np.uint8)]) is None  # it would reach into the next
    build, arguments = memory.lay(1, [np.arange(8, dtype=np.uint8)])
    assert memory.lay(1, [np.zeros(8, np.uint8)]) is None
    batch = build(*arguments)
    del memory
    assert batch.tolist() == [list(range(8))]  # memory lasts as long as what lies in it


def _lay(memory, connection):
    connection.send(memory.lay(0, [np.uint8(7), np.uint8(8)]))


@linux
def test_a_process_that_is_not_forked_has_the_same_memory():
    memory, context = BatchMemory(workers=1, places=1, size=2), multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_lay, args=(memory, there))
    process.start()
    build, arguments = here.recv()
    process.join()
    assert build(*arguments).tolist() == [7, 8]


def test_a_batch_that_cannot_be_sent_ends_the_run_with_the_cure(monkeypatch, capfd):
    monkeypatch.setattr(batches._Sent, "__reduce__", fail(MemoryError("no memory")))
    with pytest.raises(LostWorker, match=r"has died .*DATALOADER\.NUM_WORKERS.*--shm-size"):
        list(loader_of(Noise(), 1))
    assert "cannot send its batch: MemoryError: no memory\n" in capfd.readouterr().err


def test_processes_that_cannot_be_started_are_no_bad_images(monkeypatch):
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", fail(OSError(28, "No space left on device")))
    with pytest.raises(LostWorker, match=r"can be started \(\[Errno 28\].*--shm-size.*DATALOADER\.NUM_WORKERS 0"):
        list(loader_of(Noise(), 1))


_LOADING = """
import os, sys
sys.path.insert(0, os.environ["ROOT"])
import cv2, numpy as np
from datasets import batches
from datasets.bases import Sample
from datasets.batches import SequentialBatches, open_loader

class Grey:
    def read(self, key):
        return cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()

batches.open_batch_memory = lambda *_: None  # as where it is taken: they send by sockets
loader = open_loader(Grey(), [Sample(f"{number}.png", 0, 0) for number in range(64)], (64, 64),
                     SequentialBatches(64, 8), 2)
print(sum(len(batch.images) for batch in loader), len(os.listdir(os.environ["TMPDIR"])))
loader.end()
"""


def test_processes_that_load_leave_no_folder_behind(tmp_path):
    """They listen at sockets in a folder that Python makes; killed at the end, they cannot remove it themselves."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "loading.py").write_text(_LOADING)
    done = run_tool(str(tmp_path / "loading.py"), env={"TMPDIR": tmp_path / "tmp", "ROOT": ROOT})
    assert done.stdout.split() == ["64", "1"], done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


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


KILLED = """
import os, signal, sys, time
sys.path[:0] = sys.argv[1:]
from test_datasets_batches import SIZE, Noise, Sample, SequentialBatches, open_loader
samples = [Sample(str(number), number, 0) for number in range(30)]
loader = open_loader(Noise(), samples, SIZE, SequentialBatches(30, 2), 1)  # two batches that wait fill a pipe
next(iter(loader))
print(loader._iterator._workers[0].pid, flush=True)
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@linux
def test_processes_of_a_killed_run_end_although_nobody_takes_their_batches():
    here = Path(__file__).parent
    with subprocess.Popen([sys.executable, "-c", KILLED, str(here.parent), str(here)], stdout=subprocess.PIPE,
                          text=True) as killed:
        process = int(killed.stdout.readline())  # not to its end: a process that is left holds it open
    assert killed.returncode == -signal.SIGKILL
    try:
        wait_for(lambda: not Path(f"/proc/{process}").exists()
                 or "\nState:\tZ" in Path(f"/proc/{process}/status").read_text(), 20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
