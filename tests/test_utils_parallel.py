"""Pieces of work in threads: all of them, in order, one thread an operation."""
import threading
import time

import pytest
import torch

from utils.parallel import in_threads, thread_count


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


def test_a_cpu_has_as_many_threads_as_torch_and_a_gpu_one():
    assert thread_count(torch.device("cpu")) == min(torch.get_num_threads(), 16)
    assert thread_count(torch.device("cuda")) == 1
