"""Processes that share the work: the same bits as alone, and no silence when one is lost."""
import datetime
import signal
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import free_port, processes_by_hand, processes_under_torchrun
from retrieval_oracle import people

import utils.dist
from processor.retrieval.distance import distance, distance_blocks
from processor.retrieval.reranking import ReRanker, re_ranked_blocks, re_ranked_top_k
from processor.retrieval.search import budget, encoding
from processor.retrieval.search.top_k import top_k
from utils.dist import ALONE, Pulse, Workers, worker_group
from utils.process import LostWorker

ROOT = Path(__file__).parent.parent
INPUT = {"num_query": 600, "num_gallery": 300, "dim": 16, "identities": 60, "noise": 1.0}  # 3 blocks of queries
START = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import numpy as np, torch
from processes import processes_by_hand, processes_under_torchrun
from retrieval_oracle import people
from processor.retrieval import reranking
from processor.retrieval.distance import distance_blocks
from processor.retrieval.reranking import ReRanker, re_ranked_blocks, re_ranked_top_k
from processor.retrieval.search import budget, encoding, search
from processor.retrieval.search.precision import PRECISIONS
from processor.retrieval.search.top_k import top_k
from utils.dist import worker_group
torch.set_num_threads(1)
budget.TILES, budget.STRIPS, budget.FULL_ROWS_BELOW, encoding.ROWS_AT_ONCE = {{"cpu": (64,)}}, (2,), 0, 100
query, gallery = people(**{INPUT})
duplicated = np.concatenate([query[:5], gallery])  # more equal images than a list has places
duplicated[10:60] = duplicated[9]
"""


def torchrun(folder, processes, body):
    return processes_under_torchrun(folder, processes, START + body)


def by_hand(folder, processes, body):
    return processes_by_hand(folder, processes, START + body)


def answers(workers):
    """All that processes can share, as arrays by name; blocks are named by their first row."""
    query, gallery = people(**INPUT)
    duplicated = np.concatenate([query[:5], gallery])
    duplicated[10:60] = duplicated[9]
    found = {}
    for name, blocks in [
        ("re_ranked", re_ranked_blocks(query, gallery, 12, 4, 0.3, workers=workers)),
        ("euclidean", distance_blocks(query, gallery, "euclidean", workers=workers)),
    ]:
        found |= {f"{name}/{rows.start}": block for rows, block in blocks}
    found["top_k/indices"], found["top_k/distances"] = re_ranked_top_k(query, gallery, 12, 4, 0.3, 30, workers=workers)
    found["bf16/indices"], found["bf16/distances"] = re_ranked_top_k(
        query, gallery, 12, 4, 0.3, 3, precision="bf16", workers=workers)
    found["joined/indices"], found["joined/distances"] = top_k(
        distance_blocks(query, gallery, "cosine", workers=workers), 7, len(query), workers)
    for name, pair in [("neighbours", (query, gallery)), ("duplicated", (duplicated[:70], duplicated[70:]))]:
        lists = ReRanker(*pair, 12, workers=workers).neighbours
        found |= {f"{name}/indices": lists.indices.numpy(), f"{name}/distances": lists.distances.numpy(),
                  f"{name}/farthest": lists.farthest.numpy()}
    return found


SHARE = """
from test_utils_dist import answers
with worker_group() as workers:
    np.savez(f"{sys.argv[1]}/{workers.rank}.npz", **answers(workers))
"""


@pytest.fixture(scope="module")
def alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "TILES", {"cpu": (64,)})
        patch.setattr(budget, "FULL_ROWS_BELOW", 0)
        patch.setattr(encoding, "ROWS_AT_ONCE", 100)
        torch.set_num_threads(1)
        return answers(ALONE)


@pytest.fixture(scope="module", params=[2, 3])
def shared(request, tmp_path_factory):
    """What each of several processes found."""
    folder = tmp_path_factory.mktemp("shared")
    codes, errors, _ = by_hand(folder, request.param, SHARE)
    assert not any(codes), errors
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(request.param)]


@pytest.mark.parametrize("name", ["re_ranked", "euclidean"])
def test_joined_blocks_have_the_bits_of_one_process(alone, shared, name):
    starts = [key for key in alone if key.startswith(f"{name}/")]
    assert starts == [f"{name}/{start}" for start in (0, 256, 512)]
    for number, key in enumerate(starts):
        holders = [rank for rank, one in enumerate(shared) if key in one]
        assert holders == [number % len(shared)]
        assert np.array_equal(shared[holders[0]][key], alone[key])


@pytest.mark.parametrize("name", ["neighbours", "duplicated", "top_k", "bf16", "joined"])
def test_every_process_has_the_bits_of_one_process(alone, shared, name):
    keys = [key for key in alone if key.startswith(f"{name}/")]
    assert len(keys) >= 2
    for one in shared:
        for key in keys:
            assert np.array_equal(one[key], alone[key]), key


def test_processes_that_measure_different_speeds_and_memory_follow_one_plan(alone, tmp_path):
    codes, errors, _ = by_hand(tmp_path, 2, """
with worker_group() as workers:
    name = ("float32", "bf16")[workers.rank]
    budget.choose = lambda *asked: (PRECISIONS[name], 1.0)
    budget.free_bytes = lambda device: (10**12, 2**28)[workers.rank]
    budget.TILES = {"cpu": (256, 64)}
    indices, distances = re_ranked_top_k(query, gallery, 12, 4, 0.3, 30, workers=workers)
    np.savez(f"{sys.argv[1]}/{workers.rank}.npz", indices=indices, distances=distances)
""")
    assert codes == [0, 0], errors
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npz")
        assert np.array_equal(found["indices"], alone["top_k/indices"])
        assert np.array_equal(found["distances"], alone["top_k/distances"])


TOOLS = """
with worker_group() as workers:
    rank = workers.rank
    table = torch.arange(12.0).view(4, 3) * (rank + 1)
    column = table[:, 1]  # not contiguous
    workers.broadcast(column, 1)
    assert table[:, 1].tolist() == [2, 8, 14, 20], table
    assert (table[:, 0] == torch.arange(0, 12, 3) * (rank + 1)).all()
    gathered = workers.gather(torch.full((2,), rank), 1)
    assert [one.tolist() for one in gathered] == ([[0, 0], [1, 1]] if rank == 1 else [])
    assert workers.gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    own = (torch.arange(5), torch.zeros(0, 2, dtype=torch.int32)) if rank == 0 else None
    rows = workers.broadcast_rows(own, 0)
    assert rows[0].tolist() == [0, 1, 2, 3, 4] and rows[1].shape == (0, 2) and rows[1].dtype == torch.int32
    workers.wait()
    assert workers.is_main == (rank == 0) and workers.size == 2
    open(f"{sys.argv[1]}/done{rank}", "w").close()
"""


def test_processes_exchange_tensors_rows_and_objects(tmp_path):
    codes, errors, _ = by_hand(tmp_path, 2, TOOLS)
    assert codes == [0, 0], errors
    assert sorted(path.name for path in tmp_path.glob("done*")) == ["done0", "done1"]


DIE = """
with worker_group() as workers:
    if workers.rank == {rank}:
        {module}.{phase} = lambda *arguments: {end}
    result = re_ranked_top_k(query, gallery, 12, 4, 0.3, 30, workers=workers)
    if workers.is_main:
        np.savez(sys.argv[1] + "/output.npz", *result)
"""
PHASES = {"before the search": ("search", "_scan"), "after the scan": ("search", "_refine"),
          "before the codes": ("reranking", "encode"), "between codes and index": ("reranking", "JaccardIndex")}
ENDS = {"os._exit": "os._exit(3)", "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)"}


@pytest.mark.parametrize(("phase", "rank", "end"), [
    ("before the search", 1, "os._exit"), ("after the scan", 1, "SIGKILL"), ("before the codes", 1, "os._exit"),
    ("between codes and index", 1, "SIGKILL"), ("after the scan", 0, "SIGKILL"), ("before the codes", 0, "os._exit"),
])
def test_a_lost_process_ends_the_other_with_an_error_and_without_a_file(tmp_path, phase, rank, end):
    module, function = PHASES[phase]
    codes, errors, seconds = by_hand(tmp_path, 2, DIE.format(module=module, phase=function, rank=rank, end=ENDS[end]))
    assert codes[rank] == {"os._exit": 3, "SIGKILL": -signal.SIGKILL}[end]
    assert codes[1 - rank] == 1
    assert f"LostWorker: process {1 - rank} of 2: process {rank} (127.0.0.1) is gone" in errors[1 - rank]
    assert seconds < 40
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


class OneStore:
    """A store of this process alone, in place of torch's."""

    def __init__(self, *_, **__):
        self.numbers, self.values = Counter(), {}

    def set(self, key, value):
        self.values[key] = value.encode()

    def get(self, key):
        return self.values.get(key, b"10.0.0.2")

    def add(self, key, step):
        self.numbers[key] += step
        return self.numbers[key]


def test_a_process_that_counted_just_before_its_end_is_named(monkeypatch):
    monkeypatch.setattr(utils.dist.dist, "TCPStore", OneStore)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    pulse = Pulse(0, 2, silence=60.0)
    try:
        pulse._store.add(f"{pulse._key}/1", 1)  # read only after the loss was noticed
        assert pulse.name_lost() == "process 1 (10.0.0.2)"
    finally:
        pulse.close()


DIE_EARLY = """
import time, utils.dist
if os.environ["RANK"] == "0":
    utils.dist._own_address = lambda *_: (time.sleep(1), os.kill(os.getpid(), signal.SIGKILL))
with worker_group():
    pass
"""


def test_a_process_that_dies_before_all_are_together_ends_the_other_with_an_error(tmp_path):
    codes, errors, _ = by_hand(tmp_path, 2, DIE_EARLY)
    assert codes == [-signal.SIGKILL, 1]
    assert "LostWorker: process 1 of 2: the processes did not come together" in errors[1]


def test_a_process_that_never_comes_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(utils.dist, "_JOINING", datetime.timedelta(seconds=1))
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(LostWorker, match="process 0 of 2: the processes did not come together"), worker_group():
        pass


STOP = """
import subprocess
with worker_group({silence}) as workers:
    workers.wait()
    if workers.rank == 1:
        subprocess.Popen(["sh", "-c", f"sleep {stopped}; kill -CONT {{os.getpid()}}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    workers.wait()
"""


def test_a_process_that_stands_still_ends_the_other_by_name(tmp_path):
    codes, errors, _ = by_hand(tmp_path, 2, STOP.format(silence=1.0, stopped=3))
    assert codes == [2, 1]
    assert errors[0].splitlines()[-1].startswith("error: process 0 of 2: nothing was heard of process 1 (127.0.0.1) "
                                                 "for 1 s (SOLVER.DIST_TIMEOUT)")
    assert "LostWorker: process 1 of 2: process 0 (127.0.0.1) is gone" in errors[1]


def test_a_process_that_stands_still_for_a_while_is_waited_for(tmp_path):
    codes, errors, _ = by_hand(tmp_path, 2, STOP.format(silence=20.0, stopped=1))
    assert codes == [0, 0], errors


@pytest.mark.parametrize("end", ["silent", "at its end", "by an error"])
def test_only_who_falls_silent_is_missed(monkeypatch, end):
    keeper = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(keeper.port))
    monkeypatch.setattr(Pulse, "_PATIENCE", 0.3)
    monkeypatch.setattr(Pulse, "_groups", iter([end]))
    key, missed = f"pulse//0/{end}", []
    monkeypatch.setattr(Pulse, "_give_up", lambda self, silent: (missed.append(silent), self._end.set()))
    keeper.set(f"{key}/at/1", "10.0.0.2")
    keeper.add(f"{key}/1", {"silent": 1, "at its end": Pulse._ENDED, "by an error": Pulse._FAILED}[end])
    pulse = Pulse(0, 2, silence=0.8)
    pulse._end.wait(1.2)
    assert missed == ([[1]] if end == "silent" else [])
    assert pulse.name_lost() == ("another process" if end == "at its end" else "process 1 (10.0.0.2)")
    pulse.close()


def test_under_torchrun_a_lost_process_ends_the_run(tmp_path):
    begun = time.monotonic()
    done = torchrun(tmp_path, 2, DIE.format(module="reranking", phase="encode", rank=1, end=ENDS["SIGKILL"]))
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    assert time.monotonic() - begun < 60
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_process_that_refuses_its_input_ends_the_other(tmp_path):
    codes, errors, _ = by_hand(tmp_path, 2, """
with worker_group() as workers:
    if workers.rank == 1:
        gallery[3, 3] = np.nan
    re_ranked_top_k(query, gallery, 12, 4, 0.3, 30, workers=workers)
""")
    assert codes == [1, 1]
    assert "LostWorker: process 0 of 2: process 1 (127.0.0.1) is gone" in errors[0]
    assert "gallery row 3 holds NaN" in errors[1]


# ------------------------------------------------------------------ alone
def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with worker_group() as workers:
        assert workers is ALONE
        assert workers.is_main
        assert (workers.rank, workers.size) == (0, 1)
    assert not torch.distributed.is_initialized()


def test_the_tensors_of_an_exchange_are_kept_while_another_thread_may_have_them():
    """A graph stands for gloo's threads: it holds a tensor, too, and not as an object of Python."""
    workers, tensor = Workers(0, 2), torch.ones(3, requires_grad=True) * 2
    held, graph = weakref.ref(tensor), (tensor * tensor).grad_fn
    with workers.exchange(tensor):
        pass
    del tensor
    with workers.exchange():
        assert held() is not None
    del graph
    with workers.exchange():
        assert held() is None


def test_alone_every_exchange_gives_back_what_it_was_given():
    tensor = torch.arange(6).view(2, 3)
    ALONE.broadcast(tensor, 0)
    ALONE.wait()
    assert ALONE.gather(tensor, 0)[0] is tensor
    assert ALONE.broadcast_rows((tensor,), 0)[0] is tensor
    assert ALONE.gather_objects("one") == ["one"]


def test_alone_all_blocks_are_ones_own(alone):
    query, gallery = people(**INPUT)
    whole = np.concatenate([alone[f"euclidean/{start}"] for start in (0, 256, 512)])
    assert np.array_equal(whole, distance(query, gallery, "euclidean").numpy())
