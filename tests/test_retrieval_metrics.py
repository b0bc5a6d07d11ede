"""CMC, mAP and mINP against a slow count and against the golden file."""
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.retrieval.metrics import RankAccumulator, evaluate_rank, merge_results

GOLDEN = Path(__file__).parent / "golden"
LABELS = ("q_pids", "g_pids", "q_camids", "g_camids")


def slow_result(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, k, drop):
    """One query, one rank at a time."""
    cmcs, aps, aps_at_k, inps = [], [], [], []
    for q, row in enumerate(distmat):
        order = [g for g in sorted(range(len(row)), key=lambda g, row=row: (row[g], g))
                 if not (drop and g_pids[g] == q_pids[q] and g_camids[g] == q_camids[q])]
        hits = [g_pids[g] == q_pids[q] for g in order]
        if not any(hits):
            continue
        precisions = [(rank, sum(hits[:rank]) / rank) for rank in range(1, len(hits) + 1) if hits[rank - 1]]
        cmcs.append([any(hits[:rank]) for rank in range(1, max_rank + 1)])
        aps.append(sum(p for _, p in precisions) / sum(hits))
        aps_at_k.append(sum(p for rank, p in precisions if rank <= k) / min(sum(hits), k))
        inps.append(sum(hits) / precisions[-1][0])
    return [np.mean(values, axis=0) for values in (cmcs, aps, aps_at_k, inps)], len(aps)


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
    for found, value in zip((result.cmc, result.mAP, result.mAP_at_k, result.mINP), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-12)
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


def test_ap_at_k_counts_the_first_k_ranks_only():
    accumulator = RankAccumulator([7], [7, 1, 7, 7], [0], [1, 1, 1, 1], k=2)
    accumulator.update(slice(0, 1), [[1, 2, 3, 4]])
    assert accumulator.result().mAP_at_k == 1 / 2


def test_to_dict_is_ready_for_json():
    result = evaluate_rank([[0.1, 0.2]], [7], [1, 7], [0], [1, 1])
    found = json.loads(json.dumps(result.to_dict()))
    assert list(found) == ["rank1", "rank5", "rank10", "mAP", "mAP@200", "mINP", "naic_score", "num_valid",
                           "num_queries"]
    assert found["naic_score"] == (found["rank1"] + found["mAP@200"]) / 2


def test_merging_weights_by_valid_queries():
    rng = np.random.default_rng(0)
    names, distmat = labels(rng, 30, 50), rng.random((30, 50))
    parts = [evaluate_rank(distmat[rows], names[0][rows], names[1], names[2][rows], names[3])
             for rows in (slice(0, 4), slice(4, 30))]
    merged, whole = merge_results(parts), evaluate_rank(distmat, *names)
    assert merged.to_dict() == pytest.approx(whole.to_dict())
    np.testing.assert_allclose(merged.cmc, whole.cmc)
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
