"""Pieces of work in threads and in processes: all of them, in order; and what is left when one dies."""
import contextlib
import math
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from utils import parallel
from utils.parallel import in_processes, in_threads, thread_count
from utils.process import LostWorker


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 40])
def test_every_item_comes_once_and_in_order(threads, count):
    def slow_first(item):
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(in_threads(slow_first, iter(range(count)), threads)) == [item * item for item in range(count)]


def test_no_more_than_so_many_are_made_ahead():
    made = []
    results = in_threads(lambda item: made.append(item) or item, range(20), 2)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(made) <= 3
    assert list(results) == list(range(1, 20))


def test_pieces_run_beside_each_other_with_one_thread_each():
    before = torch.get_num_threads()
    both_there = threading.Barrier(2, timeout=10)

    def meet(_):
        both_there.wait()
        return torch.get_num_threads()

    assert list(in_threads(meet, range(2), 2)) == [1, 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_a_mistake_of_a_piece_is_raised_and_the_threads_are_reset(threads):
    before = torch.get_num_threads()

    def fail(item):
        if item == 4:
            raise ValueError("the fourth")
        return item

    with pytest.raises(ValueError, match="the fourth"):
        list(in_threads(fail, range(10), threads))
    assert torch.get_num_threads() == before


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("longer", [0, 1])
def test_two_that_go_side_by_side_reset_the_threads_whichever_ends_first(longer, two_threads):
    runs = [in_threads(int, range(3 + (number == longer)), 2) for number in range(2)]
    for _ in range(3):
        assert [next(run) for run in runs]
    assert [list(run) for run in runs] == ([[3], []] if longer == 0 else [[], [3]])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_done_with_a_result_has_the_threads_that_a_piece_has_not(threads, two_threads):
    cpu = torch.device("cpu")
    for within in in_threads(lambda _: thread_count(cpu), range(4), threads):
        assert (within, torch.get_num_threads(), thread_count(cpu)) == (1, 1, 2)
        assert list(in_threads(lambda _: thread_count(cpu), range(2), threads)) == [1, 1]
        assert thread_count(cpu) == 2
    unfinished = in_threads(lambda _: thread_count(cpu), range(4), threads)
    assert next(unfinished) == 1
    unfinished.close()
    assert (torch.get_num_threads(), thread_count(cpu)) == (2, 2)


def test_a_cpu_has_as_many_threads_as_torch_and_a_gpu_one():
    assert thread_count(torch.device("cpu")) == min(torch.get_num_threads(), 16)
    assert thread_count(torch.device("cuda")) == 1


# ----------------------------------------------------------------------------------------------------------- processes
@pytest.fixture
def any_work_is_worth_a_process(monkeypatch):
    monkeypatch.setattr(parallel, "_PROCESS_WORTH", 1)


@pytest.mark.parametrize("workers", [2, 3])
def test_processes_give_the_results_in_order(any_work_is_worth_a_process, workers):
    taken = []
    items = (taken.append(item) or item for item in range(100))
    results = in_processes(operator.neg, items, 100, workers, doing="negates", batch=2)
    assert next(results) == 0
    assert len(taken) <= 2 * (4 * workers + 1)  # no more than what is under way
    assert list(results) == [-item for item in range(1, 100)]


def test_little_work_is_done_in_this_process():
    pids = in_processes(lambda item: os.getpid(), range(999), 999, 8, doing="asks")  # a lambda cannot be sent
    assert set(pids) == {os.getpid()}
    pids = in_processes(lambda item: os.getpid(), range(5), 5, 8, doing="asks", cost=199)
    assert set(pids) == {os.getpid()}


def test_a_mistake_in_a_process_is_raised_where_its_result_would_come(any_work_is_worth_a_process):
    results = in_processes(math.sqrt, [4, 9, -1, 16], 4, 2, doing="takes roots", batch=1)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        next(results)


def test_a_process_that_dies_is_named_with_what_it_was_at(any_work_is_worth_a_process):
    with pytest.raises(LostWorker, match=r"a process that exits was killed, at 7 or one of \d+ after it; .*--workers"):
        list(in_processes(os._exit, [7] * 40, 40, 2, doing="exits", batch=4))


def test_a_process_that_never_answers_is_not_waited_for(any_work_is_worth_a_process, monkeypatch):
    monkeypatch.setattr(parallel, "_PATIENCE", 0.1)
    results = in_processes(time.sleep, [0, *[100] * 9], 10, 2, doing="sleeps", batch=1)
    next(results)
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 5


def test_processes_that_cannot_be_started_are_said_with_the_cure(any_work_is_worth_a_process, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", full)
    with pytest.raises(LostWorker, match=r"can be started \(\[Errno 28\].*/dev/shm.*--workers 1"):
        list(in_processes(abs, [1, 2], 2, 2, doing="counts"))


WORK = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from utils import parallel

if __name__ == "__main__":
    parallel._PROCESS_WORTH = 1
    for _ in parallel.in_processes(time.sleep, [0.01] * 100_000, 100_000, 2, doing="sleeps", batch=1):
        print("a result", flush=True)
"""


def members_of(group: int) -> list[int]:
    """The processes of a group that are no zombies."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            members.append(int(stat.parent.name))
    return members


@pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_first_one_ends(tmp_path, number):
    (tmp_path / "work.py").write_text(WORK)
    first = subprocess.Popen([sys.executable, tmp_path / "work.py", Path(parallel.__file__).parent.parent],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        assert first.stdout.readline() == "a result\n"
        if number == signal.SIGINT:
            os.killpg(first.pid, number)  # as a terminal does it
        else:
            first.kill()
        errors = first.communicate(timeout=30)[1]
        deadline = time.monotonic() + 10
        while members_of(first.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert members_of(first.pid) == []
        assert errors.count("Traceback") == (number == signal.SIGINT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
