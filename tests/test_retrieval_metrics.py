"""CMC, mAP, mINP and TPR@FPR against a slow count and against the golden file."""
import json
import os
import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.retrieval import roc
from processor.retrieval.metrics import RankAccumulator, count_matches, evaluate_rank, merge_results

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
LABELS = ("q_pids", "g_pids", "q_camids", "g_camids")


def slow_result(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, k, drop, own=()):
    """One query, one rank at a time; own: the (query, gallery image) that are one file."""
    cmcs, aps, aps_at_k, inps = [], [], [], []
    for q, row in enumerate(distmat):
        order = [g for g in sorted(range(len(row)), key=lambda g, row=row: (row[g], g))
                 if not (drop and g_pids[g] == q_pids[q] and g_camids[g] == q_camids[q]) and (q, g) not in own]
        hits = [g_pids[g] == q_pids[q] for g in order]
        if not any(hits):
            continue
        precisions = [(rank, sum(hits[:rank]) / rank) for rank in range(1, len(hits) + 1) if hits[rank - 1]]
        cmcs.append([any(hits[:rank]) for rank in range(1, max_rank + 1)])
        aps.append(sum(p for _, p in precisions) / sum(hits))
        aps_at_k.append(sum(p for rank, p in precisions if rank <= k) / min(sum(hits), k))
        inps.append(sum(hits) / precisions[-1][0])
    return [np.mean(values, axis=0) for values in (cmcs, aps, aps_at_k, inps)], len(aps)


def slow_tpr(distmat, q_pids, g_pids, q_camids, g_camids, drop, own=()):
    """Every distance tried as the threshold, infinity too."""
    positives, negatives = [], []
    for q, row in enumerate(distmat):
        for g, value in enumerate(row):
            if (q, g) in own:
                continue
            if g_pids[g] != q_pids[q]:
                negatives.append(value)
            elif not (drop and g_camids[g] == q_camids[q]):
                positives.append(value)
    best = {}
    for exponent in (4, 3, 2):
        accepted = [t for t in [-float("inf"), *positives, *negatives]
                    if Fraction(sum(n <= t for n in negatives), len(negatives)) <= Fraction(1, 10**exponent)]
        best[f"TPR@FPR=1e-0{exponent}"] = (sum(p <= max(accepted) for p in positives) / len(positives) if accepted
                                           else 0.0)
    return best


def accumulated(names, distmat, blocks, **options):
    """An accumulator that has seen blocks of rows."""
    accumulator = RankAccumulator(*names, **options)
    for rows in blocks:
        accumulator.update(np.asarray(rows), distmat[rows])
    return accumulator


def same_result(result, expected):
    """To the bit, query by query."""
    for name in ("ap", "ap_at_k", "inp", "first_hit", "cmc"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    assert result.to_dict() == expected.to_dict()


def labels(rng, num_query, num_gallery, pids=5, cams=3):
    return (rng.integers(pids, size=num_query), rng.integers(pids, size=num_gallery),
            rng.integers(cams, size=num_query), rng.integers(cams, size=num_gallery))


def test_evaluate_rank_gives_the_published_numbers():
    golden = np.load(GOLDEN / "rank_eval.npz")
    result = evaluate_rank(golden["distmat"], *(golden[name] for name in LABELS), max_rank=50)
    np.testing.assert_allclose(result.cmc, golden["fastreid_cmc"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.cmc, golden["torchreid_cmc"], rtol=0, atol=1e-6)
    assert result.mAP == pytest.approx(float(golden["torchreid_mAP"]), abs=1e-6)
    assert result.mAP == pytest.approx(golden["fastreid_all_AP"].mean(), abs=1e-6)
    assert result.mINP == pytest.approx(golden["fastreid_all_INP"].mean(), abs=1e-6)
    assert (result.num_valid, result.num_queries) == (58, 60)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_query=st.integers(1, 6), num_gallery=st.integers(5, 30),
       max_rank=st.integers(1, 40), k=st.integers(1, 12), drop=st.booleans(), ties=st.booleans())
def test_the_accumulator_is_the_slow_count(seed, num_query, num_gallery, max_rank, k, drop, ties):
    rng = np.random.default_rng(seed)
    names = labels(rng, num_query, num_gallery, pids=3)
    names[0][0], names[2][0] = names[1][0], names[3][0] + 1  # at least one query has a match
    distmat = rng.integers(4, size=(num_query, num_gallery)) if ties else rng.random((num_query, num_gallery))
    accumulator = RankAccumulator(*names, max_rank=max_rank, k=k, drop_same_camera=drop)
    for row in rng.permutation(num_query):
        accumulator.update(np.array([row]), distmat[[row]])
    result = accumulator.result()
    expected, num_valid = slow_result(distmat, *names, max_rank, k, drop)
    for figure, value in zip((result.cmc, result.mAP, result.mAP_at_k, result.mINP), expected, strict=True):
        np.testing.assert_allclose(figure, value, rtol=0, atol=1e-12)
    assert result.num_valid == num_valid


def test_blocks_give_what_the_whole_matrix_gives():
    golden = np.load(GOLDEN / "rank_eval.npz")
    names = [golden[name] for name in LABELS]
    accumulator = RankAccumulator(*names)
    for start in (40, 0, 20):
        accumulator.update(slice(start, start + 20), golden["distmat"][start : start + 20])
    whole, parts = evaluate_rank(golden["distmat"], *names), accumulator.result()
    assert parts.to_dict() == whole.to_dict()
    assert np.array_equal(parts.cmc, whole.cmc)


def test_a_short_gallery_pads_the_cmc_with_its_last_value():
    result = evaluate_rank([[0.1, 0.2, 0.3]], [7], [1, 7, 2], [0], [1, 1, 1], max_rank=6)
    assert result.cmc.tolist() == [0, 1, 1, 1, 1, 1]


def test_equal_distances_rank_by_gallery_index():
    result = evaluate_rank([[0.5, 0.5, 0.5]], [7], [1, 2, 7], [0], [1, 1, 1], max_rank=3)
    assert result.cmc.tolist() == [0, 0, 1]


def test_the_same_camera_is_dropped_or_kept_as_asked():
    arguments = ([7], [7, 1, 7], [0], [0, 1, 1])
    accumulator = RankAccumulator(*arguments, drop_same_camera=False)
    accumulator.update(slice(0, 1), [[0.1, 0.2, 0.3]])
    assert accumulator.result().cmc[0] == 1
    assert evaluate_rank([[0.1, 0.2, 0.3]], *arguments).cmc[0] == 0


def test_a_query_without_a_match_is_not_counted():
    result = evaluate_rank([[0.1, 0.2], [0.1, 0.2]], [7, 8], [7, 1], [0, 0], [1, 1])
    assert (result.num_valid, result.num_queries, result.mAP) == (1, 2, 1.0)
    assert result.first_hit.tolist() == [1, 0]
    assert all(np.isnan(column[1]) and column[0] == 1 for column in (result.ap, result.ap_at_k, result.inp))


def test_an_own_file_is_neither_a_match_nor_a_mistake():
    """Query 0 stands in the gallery at distance 0, and query 1 under another identity's name."""
    distmat, names = [[0.0, 0.2, 0.3], [0.4, 0.0, 0.1]], ([7, 8], [7, 1, 7], [1, 1], [2, 2, 2])
    with_own, same_file = evaluate_rank(distmat, *names), [[0, 0], [1, 1]]
    result = evaluate_rank(distmat, *names, same_file=same_file)
    assert (with_own.first_hit.tolist(), result.first_hit.tolist()) == ([1, 0], [2, 0])
    assert result.ap[0] == 1 / 2
    moved = ([7], [7, 1, 7], [1], [2, 2, 2])
    assert evaluate_rank(distmat[:1], *moved, same_file=[[0, 1]]).first_hit.tolist() == [1]
    assert evaluate_rank([[0.2, 0.0, 0.3]], *moved, same_file=[[0, 1]]).inp.tolist() == [1.0]
    with pytest.raises(ValueError, match="none of the 1 queries"):
        evaluate_rank([[0.0, 0.1]], [7], [7, 1], [0], [1, 1], same_file=[[0, 0]])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_query=st.integers(1, 6), num_gallery=st.integers(5, 60), drop=st.booleans(),
       share=st.floats(0, 0.4))
def test_a_ranking_without_own_files_is_the_slow_count(seed, num_query, num_gallery, drop, share):
    rng = np.random.default_rng(seed)
    names, distmat = labels(rng, num_query, num_gallery, pids=3), rng.integers(9, size=(num_query, num_gallery))
    same_file = np.argwhere(rng.random(distmat.shape) < share)
    own = set(map(tuple, same_file.tolist()))
    accumulator = accumulated(names, distmat, np.array_split(rng.permutation(num_query), 2), k=5,
                              drop_same_camera=drop, same_file=rng.permutation(same_file))
    counts = count_matches(*names, drop, same_file)
    assert counts.tolist() == [sum(names[1][g] == names[0][q] and not (drop and names[3][g] == names[2][q])
                                   and (q, g) not in own for g in range(num_gallery)) for q in range(num_query)]
    if not counts.any():
        return
    result, (expected, num_valid) = accumulator.result(), slow_result(distmat, *names, 50, 5, drop, own)
    for figure, value in zip((result.cmc, result.mAP, result.mAP_at_k, result.mINP), expected, strict=True):
        np.testing.assert_allclose(figure, value, rtol=0, atol=1e-12)
    assert (result.num_valid, np.count_nonzero(counts)) == (num_valid, num_valid)
    if result.tpr_at_fpr:
        assert result.tpr_at_fpr == slow_tpr(distmat.tolist(), *names, drop, own)


def test_accumulators_with_other_own_files_are_not_joined():
    names = ([7], [7, 7], [0], [1, 1])
    with pytest.raises(ValueError, match="differ in same_file"):
        RankAccumulator(*names).absorb(RankAccumulator(*names, same_file=[[0, 1]]))


def test_infinities_rank_first_and_last():
    inf = float("inf")
    names = ([7], [1, 7, 2, 7], [0], [1, 1, 1, 1])
    assert evaluate_rank([[inf, inf, 0.5, inf]], *names).first_hit[0] == 3  # behind 2, and behind 1 by the index
    result = evaluate_rank([[-inf, -inf, 0.5, inf]], *names)
    assert result.first_hit[0] == 2
    assert result.inp[0] == 2 / 4
    assert result.tpr_at_fpr["TPR@FPR=1e-02"] == 0  # no threshold takes the match at -inf and not the other image
    all_far = evaluate_rank([[inf, 0.1, inf, inf]], *names)
    assert all_far.tpr_at_fpr["TPR@FPR=1e-02"] == 1 / 2  # any finite threshold


def test_without_a_wrong_pair_there_is_no_tpr():
    assert evaluate_rank([[0.1, 0.2]], [7], [7, 7], [0], [1, 1]).tpr_at_fpr == {}


def test_ap_at_k_counts_the_first_k_ranks_only():
    accumulator = RankAccumulator([7], [7, 1, 7, 7], [0], [1, 1, 1, 1], k=2)
    accumulator.update(slice(0, 1), [[1, 2, 3, 4]])
    assert accumulator.result().mAP_at_k == 1 / 2


def test_to_dict_is_ready_for_json():
    result = evaluate_rank([[0.1, 0.2]], [7], [1, 7], [0], [1, 1])
    figures = json.loads(json.dumps(result.to_dict()))
    assert list(figures) == ["rank1", "rank5", "rank10", "mAP", "mAP@200", "mINP", "naic_score", "num_valid",
                           "num_queries", *(f"{name}@FPR=1e-0{e}" for name in ("TPR", "distance") for e in (4, 3, 2)),
                               "EER"]
    assert figures["naic_score"] == (figures["rank1"] + figures["mAP@200"]) / 2


def test_merging_weights_by_valid_queries():
    rng = np.random.default_rng(0)
    names, distmat = labels(rng, 30, 50), rng.random((30, 50))
    parts = [evaluate_rank(distmat[rows], names[0][rows], names[1], names[2][rows], names[3])
             for rows in (slice(0, 4), slice(4, 30))]
    merged, whole = merge_results(parts), evaluate_rank(distmat, *names)
    expected = {name: value for name, value in whole.to_dict().items() if name not in whole.pair_figures}
    assert merged.to_dict() == pytest.approx(expected)  # no TPR: a threshold belongs to one gallery
    np.testing.assert_allclose(merged.cmc, whole.cmc)
    np.testing.assert_array_equal(merged.ap, whole.ap)
    assert merged.domain_sizes == (4, 26)
    same_result(merge_results([whole]), whole)
    with pytest.raises(ValueError, match="no results"):
        merge_results([])
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_results([whole, evaluate_rank(distmat, *names, max_rank=10)])


def test_missing_repeated_and_misshapen_rows_are_refused():
    accumulator = RankAccumulator([1, 2, 3], [1, 2], [0, 0, 0], [1, 1])
    accumulator.update(slice(0, 1), [[0.1, 0.2]])
    with pytest.raises(ValueError, match="query 0 came twice"):
        accumulator.update(np.array([0]), [[0.1, 0.2]])
    with pytest.raises(ValueError, match="query 3 is out of range"):
        accumulator.update(np.array([3]), [[0.1, 0.2]])
    with pytest.raises(ValueError, match=r"expected distances \(2, 2\)"):
        accumulator.update(slice(1, 3), [[0.1, 0.2]])
    with pytest.raises(ValueError, match="query 1 hold NaN"):
        accumulator.update(slice(1, 2), [[0.1, float("nan")]])
    with pytest.raises(ValueError, match="2 of 3 queries were not given, the first is 1"):
        accumulator.result()


def test_no_valid_query_is_an_error():
    with pytest.raises(ValueError, match="none of the 1 queries has an image of its identity from another camera"):
        evaluate_rank([[0.1, 0.2]], [7], [7, 1], [0], [0, 0])


@pytest.mark.parametrize(("arguments", "message"), [
    (([1], [1, 2], [0], [0]), "gallery: expected one pid and one camid"),
    (([], [1], [], [0]), "query: expected one pid and one camid"),
    (([1], [1], [0], [0], 0), "max_rank=0"),
])
def test_labels_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RankAccumulator(*arguments)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_query=st.integers(1, 6), num_gallery=st.integers(20, 150),
       drop=st.booleans(), values=st.sampled_from(["ties", "gaps", "infinite", "float64", "negative"]))
def test_tpr_is_that_of_the_largest_threshold_within_the_fpr(seed, num_query, num_gallery, drop, values):
    rng = np.random.default_rng(seed)
    names = labels(rng, num_query, num_gallery, pids=4)
    names[0][0], names[2][0] = names[1][0], names[3][0] + 1
    distmat = rng.random((num_query, num_gallery), dtype=np.float64 if values == "float64" else np.float32)
    if values == "ties":
        distmat = rng.integers(9, size=distmat.shape)
    elif values == "infinite":
        distmat[rng.random(distmat.shape) < 0.3] = np.inf
        distmat[rng.random(distmat.shape) < 0.002] = -np.inf
    elif values == "negative":
        distmat -= np.float32(0.5)
    blocks = np.array_split(rng.permutation(num_query), 3)
    result = accumulated(names, distmat, blocks, drop_same_camera=drop).result()
    assert result.tpr_exact
    assert result.tpr_at_fpr == slow_tpr(distmat.tolist(), *names, drop)


def test_tpr_counts_the_pairs_of_queries_without_a_match():
    """As the field's evaluation does: query 8 has no match, and its image at 0.1 is the nearest wrong pair."""
    result = evaluate_rank([[0.2, 0.3], [0.9, 0.1]], [7, 8], [7, 1], [0, 0], [1, 1])
    assert result.tpr_at_fpr["TPR@FPR=1e-02"] == 0


def test_the_histogram_gives_the_tpr_of_a_threshold_on_its_grid(monkeypatch):
    rng = np.random.default_rng(3)
    names, distmat = labels(rng, 40, 2000, pids=30), rng.normal(size=(40, 2000)).astype(np.float32)
    distmat[names[0][:, None] == names[1]] -= 2
    exact = evaluate_rank(distmat, *names)
    monkeypatch.setattr(roc, "MAX_POOL", 100)
    on_grid = evaluate_rank(distmat, *names)
    assert (exact.tpr_exact, on_grid.tpr_exact) == (True, False)
    bits = distmat.view(np.uint32)
    down = np.where(distmat < 0, bits | np.uint32(0xFF), bits & np.uint32(0xFFFFFF00)).view(np.float32)
    monkeypatch.undo()
    assert on_grid.tpr_at_fpr == evaluate_rank(down, *names).tpr_at_fpr
    assert on_grid.tpr_at_fpr == pytest.approx(exact.tpr_at_fpr, abs=2e-3)
    assert all(on_grid.tpr_at_fpr[name] <= exact.tpr_at_fpr[name] for name in exact.tpr_at_fpr)
    assert 0 < exact.tpr_at_fpr["TPR@FPR=1e-04"] < exact.tpr_at_fpr["TPR@FPR=1e-02"] < 1


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=200), size=st.integers(1, 20),
       piece=st.integers(1, 30))
def test_smallest_values_are_those_of_a_sort(values, size, piece):
    values = np.array(values, np.float32)
    kept, halves = roc.SmallestValues(size), [roc.SmallestValues(size), roc.SmallestValues(size)]
    for number, begin in enumerate(range(0, len(values), piece)):
        for values_kept in (kept, halves[number % 2]):
            values_kept.add(values[begin : begin + piece])
    halves[0].absorb(halves[1])
    expected = np.sort(values)
    for values_kept in (kept, halves[0]):
        assert [values_kept.value_at(k) for k in range(min(size, len(values)))] == expected[:size].tolist()
        assert values_kept.count_below(expected[min(size, len(values)) - 1]) == int(
            (values < expected[:size][-1]).sum())


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from(roc._GRID.tolist()), max_size=50))
def test_values_below_the_grids_distances_are_counted(values):
    values = np.sort(np.array(values, np.float32))
    assert roc.count_below(values).tolist() == (values < roc._GRID[:, None]).sum(1).tolist()


@pytest.mark.parametrize("intervals", [True, False])
def test_few_values_are_kept_and_the_right_ones(intervals, monkeypatch):
    """The grid's counts say early what need not be kept, and the thresholds are those of all pairs."""
    monkeypatch.setattr(roc, "_BOOTSTRAPPED", 1 << 21 if intervals else 0)
    names, distmat, _, different = pair_case(num_query=400)
    accumulator = accumulated(names, distmat, [range(start, start + 20) for start in range(0, 400, 20)])
    kept, wrong = accumulator._roc.negatives, np.sort(distmat[different])
    size = (2 if intervals else 1) * (len(wrong) // 100) + 1
    assert size <= sum(map(len, kept._pieces)) < 3 * size < len(wrong) // 10
    assert sum(map(len, kept._rows)) == intervals * sum(map(len, kept._pieces))
    assert wrong[size - 1] < kept.limit < 1.03 * wrong[size - 1]
    result = accumulator.result()
    assert [result.pair_figures[f"distance@FPR=1e-0{e}"] for e in (4, 3, 2)] == [wrong[len(wrong) // 10**e]
                                                                                for e in (4, 3, 2)]
    assert bool(result.pair_intervals) == intervals


@pytest.mark.parametrize("ties", [False, True])
def test_threads_rank_as_one_does(ties, monkeypatch):
    names, distmat, *_ = pair_case(num_query=100)
    if ties:
        distmat = np.round(distmat, 1)
    rows = [range(0, 33), range(33, 100)]
    with monkeypatch.context() as alone:
        alone.setattr(RankAccumulator, "_in_threads", staticmethod(map))
        expected = accumulated(names, distmat, rows).result()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        result = accumulated(names, distmat, rows).result()
    finally:
        torch.set_num_threads(threads)
    same_result(result, expected)
    assert result.pair_intervals == expected.pair_intervals != {}


def test_steps_of_the_histogram_are_in_the_order_of_the_numbers():
    values = np.array([-np.inf, -3e38, -1.5, -1.0, -1e-38, -0.0, 0.0, 1e-38, 0.5, 1.0, 1.00004, 3e38,
                       np.inf], np.float32)
    steps = roc._step_of(values).astype(np.int64)
    assert (np.diff(steps) >= 0).all()
    assert (np.diff(steps) == 0).nonzero()[0].tolist() == [5]  # both zeros, and nothing else
    for value in values:
        histogram = roc.Histogram(5)
        histogram.add(np.float32([value]))
        begin = histogram.value_at(0)
        assert value == np.inf or (begin <= value and np.isclose(begin, value, rtol=2**-15, atol=1e-37))


@pytest.mark.parametrize("pool", [1 << 25, 10])
def test_absorbing_other_processes_gives_the_whole_in_any_order(pool, monkeypatch):
    monkeypatch.setattr(roc, "MAX_POOL", pool)
    monkeypatch.setattr(roc, "_GRID_SHIFT", 16)  # a small histogram
    rng = np.random.default_rng(5)
    names, distmat = labels(rng, 90, 700, pids=20), rng.random((90, 700), dtype=np.float32)
    whole = evaluate_rank(distmat, *names)
    parts = [[range(0, 10), range(10, 30)], [range(60, 90)], [range(30, 60)]]
    for order in ([0, 1, 2], [2, 0, 1]):
        first, *others = (pickle.loads(pickle.dumps(accumulated(names, distmat, [list(rows) for rows in parts[i]])))
                          for i in order)
        for other in others:
            first.absorb(other)
        same_result(first.result(), whole)


def test_accumulators_that_do_not_belong_together_are_not_joined():
    names, distmat = ([1, 2], [1, 2], [0, 0], [1, 1]), np.array([[0.1, 0.2], [0.3, 0.4]])
    accumulator = accumulated(names, distmat, [[0]])
    with pytest.raises(ValueError, match="query 0 came twice"):
        accumulator.absorb(accumulated(names, distmat, [[0, 1]]))
    with pytest.raises(ValueError, match="differ in g_pids"):
        accumulator.absorb(RankAccumulator([1, 2], [2, 1], [0, 0], [1, 1]))
    with pytest.raises(ValueError, match="differ in k"):
        accumulator.absorb(RankAccumulator(*names, k=3))
    accumulator.absorb(accumulated(names, distmat, [[1]]))
    assert accumulator.result().num_valid == 2


def test_a_refused_block_leaves_no_trace():
    names, distmat = ([1, 2], [1, 2], [0, 0], [1, 1]), np.array([[0.1, 0.2], [0.3, 0.4]])
    accumulator = RankAccumulator(*names)
    with pytest.raises(ValueError, match="query 1 hold NaN"):
        accumulator.update(slice(0, 2), [[0.1, 0.2], [0.3, float("nan")]])
    with pytest.raises(ValueError, match="query 0 came twice"):
        accumulator.update(np.array([0, 0]), distmat)
    accumulator.update(slice(0, 2), distmat)
    same_result(accumulator.result(), evaluate_rank(distmat, *names))


MSMT17 = """
import json, re, sys
from pathlib import Path
import numpy as np
from processor.retrieval.metrics import RankAccumulator
rng = np.random.default_rng(0)
accumulator = RankAccumulator(*(rng.integers(of, size=n) for of, n in ((3060, 11659), (3060, 82161), (15, 11659),
                                                                        (15, 82161))))
for begin in range(0, 11659, 256):
    rows = slice(begin, min(begin + 256, 11659))
    accumulator.update(rows, rng.random((rows.stop - begin, 82161), dtype=np.float32))
result = accumulator.result()
# Not ru_maxrss: a child's begins at what its parent had when it was started.
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
print(json.dumps({"peak": peak, "torch": "torch" in sys.modules, "exact": result.tpr_exact, **result.to_dict()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from Linux's /proc")
def test_msmt17_is_evaluated_in_less_than_one_and_a_half_gigabytes():
    """The whole process, distances made block by block (84 MB each)."""
    done = subprocess.run([sys.executable, "-c", MSMT17], capture_output=True, text=True, check=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    result = json.loads(done.stdout)
    assert result["peak"] < 1.5e9
    assert not result["torch"]
    assert result["exact"]
    # The distances are chance: TPR is FPR, and a match is at a rank as good as any.
    assert result["TPR@FPR=1e-02"] == pytest.approx(0.01, rel=0.1)
    assert result["TPR@FPR=1e-03"] == pytest.approx(0.001, rel=0.3)
    assert result["num_valid"] == result["num_queries"] == 11659


# ------------------------------------------------------------------ thresholds of pairs
def pair_case(seed=3, num_query=60, num_gallery=2000):
    rng = np.random.default_rng(seed)
    names, distmat = labels(rng, num_query, num_gallery, pids=30), rng.normal(1.2, 0.1, (num_query, num_gallery))
    distmat[names[0][:, None] == names[1]] -= 0.3
    kept = ~((names[0][:, None] == names[1]) & (names[2][:, None] == names[3]))
    same = names[0][:, None] == names[1]
    return names, distmat.astype(np.float32), same & kept, ~same


def test_the_distance_of_a_rate_accepts_what_its_tpr_counts():
    names, distmat, same, different = pair_case()
    figures = evaluate_rank(distmat, *names).pair_figures
    for rate in ("1e-04", "1e-03", "1e-02"):
        distance = figures[f"distance@FPR={rate}"]
        assert (distmat[different] < distance).mean() <= float(rate) < (distmat[different] <= distance).mean()
        assert (distmat[same] < distance).mean() == figures[f"TPR@FPR={rate}"]


def test_at_the_equal_error_rate_as_many_are_refused_as_accepted():
    names, distmat, same, different = pair_case()
    rate = evaluate_rank(distmat, *names).pair_figures["EER"]
    distance = np.quantile(distmat[different], rate)
    assert (distmat[same] >= distance).mean() == pytest.approx(rate, abs=2e-3)
    assert 0.05 < rate < 0.1


def test_intervals_of_pairs_hold_their_figure_and_narrow_with_the_queries():
    widths = []
    for num_query in (20, 320):
        names, distmat, *_ = pair_case(num_query=num_query)
        result = evaluate_rank(distmat, *names)
        assert set(result.pair_intervals) == set(result.pair_figures) - {"EER"}
        for name, (low, high) in result.pair_intervals.items():
            assert low <= result.pair_figures[name] <= high
        low, high = result.pair_intervals["TPR@FPR=1e-02"]
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


def test_intervals_of_pairs_may_be_left_out():
    accumulator = RankAccumulator([7, 8], [7, 1], [0, 0], [1, 1])
    accumulator.update(slice(0, 2), [[0.1, 0.2], [0.3, 0.1]])
    assert accumulator.result(pair_intervals=False).pair_intervals == {}
