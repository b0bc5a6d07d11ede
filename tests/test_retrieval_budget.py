"""The memory plan: what is predicted, what is kept to, and that it changes no answer."""
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval_oracle import people

from processor.retrieval.reranking import ReRanker, re_ranked_blocks, re_ranked_top_k
from processor.retrieval.search import budget
from processor.retrieval.search.budget import MIB, Work, free_bytes, plan_search
from processor.retrieval.search.feature_rows import FeatureRows
from processor.retrieval.search.precision import PRECISIONS

ROOT = Path(__file__).parent.parent


def work_for(num_query=300, num_gallery=3000, dim=32, k1=20, k=50, processes=1):
    feat = np.random.default_rng(0).standard_normal((num_query + num_gallery, dim)).astype(np.float32)
    return Work(FeatureRows(feat[:num_query], feat[num_query:]), k1, k, processes)


def needed(message):
    return int(re.search(r"needs ([\d,]+) MiB above the features", message)[1].replace(",", "")) * MIB


def smallest(work):
    """What the error for a budget of nothing says is needed, rounded up."""
    with pytest.raises(ValueError, match=r"needs .* MiB") as error:
        plan_search(work, "float32", 0)
    return needed(str(error.value)) + MIB


# ------------------------------------------------------------------ the plan
def test_a_plan_stays_within_the_memory_it_is_given():
    work = work_for()
    least = smallest(work)
    for memory in (least, int(1.2 * least), 2 * least, 10 * least):
        assert work.bytes(plan_search(work, "float32", memory)) <= memory


def test_less_memory_gives_a_smaller_tile_or_strip():
    work = work_for(num_gallery=8192, dim=2048)
    least = smallest(work)
    plans = [plan_search(work, "float32", memory) for memory in (100 * least, 2 * least, least)]
    assert plans[0].tile == max(budget.TILES["cpu"])
    sizes = [(plan.tile, plan.strip, plan.threads) for plan in plans]
    assert sizes == sorted(set(sizes))[::-1]
    assert work.bytes(plans[2]) < work.bytes(plans[1]) < work.bytes(plans[0])


def test_too_little_memory_is_refused_with_what_is_needed():
    work = work_for()
    with pytest.raises(ValueError, match=r"re-ranking 3,300 images of dimension 32 needs \d+ MiB .* may use 1: give"):
        plan_search(work, "float32", MIB)
    assert plan_search(work, "float32", smallest(work))
    with pytest.raises(ValueError, match=r"TEST\.MEMORY_BUDGET"):
        plan_search(work, "float32", smallest(work) - 2 * MIB)


def test_re_ranking_refuses_too_little_memory_when_the_work_starts():
    query, gallery = people(5, 30)
    with pytest.raises(ValueError, match=r"needs .* MiB above the features and may use 0"):
        next(re_ranked_blocks(query, gallery, 5, 2, 0.3, memory=1000))
    with pytest.raises(ValueError, match=r"needs .* MiB above the features and may use 0"):
        re_ranked_top_k(query, gallery, 5, 2, 0.3, 3, memory=1000)


@pytest.mark.parametrize("field", ["tile", "strip", "width", "pairs"])
def test_a_larger_plan_is_predicted_to_need_more(field):
    work = work_for(num_gallery=6000, dim=512)
    plan = plan_search(work, "float32", 10**12)
    larger = replace(plan, **{field: 16 * getattr(plan, field)})
    assert work.bytes(larger) > work.bytes(plan)


def test_more_images_and_neighbours_are_predicted_to_need_more():
    work = work_for()
    plan = plan_search(work, "float32", 10**12)
    assert work_for(num_gallery=40_000).bytes(plan) > work.bytes(plan)
    assert work_for(k1=500).bytes(plan) > work.bytes(plan)
    assert work.bytes(replace(plan, precision=PRECISIONS["bf16"], keep=True)) > work.bytes(
        replace(plan, precision=PRECISIONS["bf16"]))


def test_low_precision_has_longer_lists():
    work = work_for()
    width = {name: plan_search(work, name, 10**12).width for name in PRECISIONS}
    assert width["bf16"] > width["float32"] > work.k1
    assert width["tf32"] > width["float32"]


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_precision_asked_for_is_taken(name):
    assert plan_search(work_for(), name, 10**12).precision is PRECISIONS[name]


def test_a_few_images_take_the_smallest_tile():
    assert plan_search(work_for(1, 1, 4), "float32", 10**12).tile == min(budget.TILES["cpu"])


def test_the_line_before_the_work_says_memory_time_and_precision(caplog):
    caplog.set_level("INFO")
    query, gallery = people(5, 1030)
    next(re_ranked_blocks(query, gallery, 5, 2, 0.3, precision="bf16"))
    assert re.search(r"re-ranking 5 queries and 1,030 gallery images of dimension 12 on cpu: about [\d,]+ MiB above "
                     r"the features and [\d,]+ s, bf16 search$", caplog.records[0].getMessage())


def test_more_processes_are_predicted_to_take_less_time():
    alone, four = work_for(), work_for(processes=4)
    plan = replace(plan_search(alone, "float32", 10**12), product_seconds=1000.0)
    assert four.seconds(plan) == pytest.approx(alone.seconds(plan) / 4, rel=0.01)
    assert "shared by 4 processes" in four.describe(plan)
    assert "shared" not in alone.describe(plan)


def test_a_small_gallery_is_ranked_by_full_rows(monkeypatch):
    monkeypatch.setattr(budget, "FULL_ROWS_BELOW", 300)
    assert work_for(10, 299).by_full_rows
    assert not work_for(10, 300).by_full_rows


# ------------------------------------------------------------------ what is free
def test_the_memory_of_a_container_counts_if_it_is_less(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(budget, "_meminfo", lambda name: 10 * 2**30)
    for numbers, expected in [({"memory.max": 4 * 2**30, "memory.current": 2**30}, 3 * 2**30),
                              ({"memory.max": 40 * 2**30, "memory.current": 2**30}, 10 * 2**30),
                              ({"memory.max": None, "memory.current": 2**30}, 10 * 2**30),
                              ({"memory.max": 2**30, "memory.current": 2 * 2**30}, 0),
                              ({}, 10 * 2**30)]:
        monkeypatch.setattr(budget, "_number", lambda path, numbers=numbers: numbers.get(path.rsplit("/", 1)[1]))
        assert free_bytes(cpu) == expected


def test_what_is_free_here_is_a_sensible_number():
    assert 0 < free_bytes(torch.device("cpu")) < 2**50


def test_without_a_budget_a_share_of_what_is_free_is_used(monkeypatch):
    work = work_for()
    monkeypatch.setattr(budget, "free_bytes", lambda device: 2 * smallest_bytes)
    smallest_bytes = smallest(work)
    assert work.bytes(plan_search(work, "float32", None)) <= 1.6 * smallest_bytes
    monkeypatch.setattr(budget, "free_bytes", lambda device: smallest_bytes)
    with pytest.raises(ValueError, match="needs"):
        plan_search(work, "float32", None)


# ------------------------------------------------------------------ the answer
def test_the_memory_changes_no_bit(monkeypatch):
    query, gallery = people(60, 2300, dim=24, identities=200, noise=1.0)
    monkeypatch.setattr(Work, "bytes", lambda work, plan: plan.tile * MIB + plan.strip)  # else all tiles are small here

    def answers(memory):
        blocks = re_ranked_blocks(query, gallery, 10, 3, 0.3, memory=memory)
        return np.concatenate([block for _, block in blocks]), *re_ranked_top_k(
            query, gallery, 10, 3, 0.3, 30, memory=memory)

    plans = [ReRanker(query, gallery, 10, memory=memory).plan for memory in (10**12, 256 * MIB + 1)]
    assert plans[0].tile > plans[1].tile == 256
    for large, small in zip(answers(10**12), answers(256 * MIB + 1), strict=True):
        assert np.array_equal(large, small)


PEAK = """if True:
    import sys
    import numpy as np, torch
    from processor.retrieval.reranking import ReRanker

    def status(name):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

    torch.set_num_threads({threads})
    rng = np.random.default_rng(0)
    feat = rng.standard_normal((600, 256))[rng.integers(0, 600, 6000)] + 0.7 * rng.standard_normal((6000, 256))
    feat = feat.astype(np.float32)

    def run(feat, num_query, memory):
        ranker = ReRanker(feat[:num_query], feat[num_query:], 20, top_k={k}, precision={precision!r}, memory=memory)
        if ranker.k:
            ranker.top_k(20, 6, 0.3)
        else:
            for _ in ranker.blocks(20, 6, 0.3):
                pass
        return ranker.work.bytes(ranker.plan)

    run(feat[:900], 300, None)  # what the first call alone loads is not counted
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    print(run(feat, 1000, {memory}), status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' peak of memory")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("k", "precision", "memory"), [
    (None, "float32", None), (200, "float32", None), (200, "bf16", None), (None, "bf16", 160 * MIB),
    (20, "float32", 160 * MIB),
])
def test_the_peak_of_memory_is_as_predicted(k, precision, memory, threads):
    script = PEAK.format(k=k, precision=precision, memory=memory, threads=threads)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    predicted, measured = (int(word) for word in done.stdout.split())
    assert measured < 1.25 * predicted + 64 * MIB
    assert memory is None or predicted <= memory
