"""Intervals and tests: against slow counts, and how often they are wrong."""
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.retrieval import significance
from processor.retrieval.metrics import RankResult, evaluate_rank, merge_results
from processor.retrieval.significance import Difference, compare, holm, intervals, query_values, sign_flip_test


def ranked(ap, first_hit=None, k=200, domain_sizes=None):
    """A result with given AP; NaN is a query without a match."""
    ap = np.asarray(ap, np.float64)
    hit = np.where(ap > 0.5, 1, 3) if first_hit is None else np.asarray(first_hit)
    return RankResult(ap, ap**2, ap / 2, np.where(np.isnan(ap), 0, hit), domain_sizes or (len(ap),), 50, k)


def test_every_metric_is_the_mean_of_its_query_values():
    rng = np.random.default_rng(0)
    names = [rng.integers(30, size=size) for size in (40, 200)] + [rng.integers(3, size=size) for size in (40, 200)]
    result = evaluate_rank(rng.random((40, 200)), *names)
    assert result.num_valid < result.num_queries
    figures, values = result.to_dict(), query_values(result)
    assert list(values) == ["rank1", "mAP", "mAP@200", "mINP", "naic_score"]
    for name, column in values.items():
        assert np.nanmean(column) == pytest.approx(figures[name], abs=1e-12)
        assert np.array_equal(np.isnan(column), ~result.valid)


# ------------------------------------------------------------------ bootstrap
def test_intervals_are_those_of_a_slow_bootstrap():
    rng = np.random.default_rng(1)
    values = rng.random(60) ** 2
    interval = intervals(ranked(values), draws=4000)["mAP"]
    means = [np.mean([values[rng.integers(60)] for _ in range(60)]) for _ in range(2000)]
    np.testing.assert_allclose(interval, np.percentile(means, [2.5, 97.5]), atol=0.012)


def test_the_interval_holds_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(2)
    held = [low <= 0.4 <= high for low, high in
            (intervals(ranked(rng.beta(2, 3, size=150)), draws=500)["mAP"] for _ in range(300))]
    assert 0.91 <= np.mean(held) <= 0.98


def test_domains_are_drawn_each_by_itself():
    """Two domains whose queries are all alike: only a change of their shares could move the mean."""
    merged = merge_results([ranked([0.2] * 10), ranked([0.9] * 30)])
    low, high = intervals(merged)["mAP"]
    assert low == pytest.approx(0.725)
    assert high == pytest.approx(0.725)
    low, high = intervals(ranked([0.2] * 10 + [0.9] * 30))["mAP"]
    assert high - low > 0.1


def test_intervals_depend_on_seed_and_size_alone(monkeypatch):
    result = merge_results([ranked(np.linspace(0, 1, 50)), ranked([0.3, np.nan, 0.7])])
    ci95 = intervals(result)
    assert intervals(result) == ci95
    assert intervals(result, seed=1) != ci95
    monkeypatch.setattr(significance, "_AT_A_TIME", 64)  # nor on how many draws are under way
    assert intervals(result)["mAP"] == pytest.approx(ci95["mAP"], abs=0.02)
    assert all(isinstance(bound, float) for bounds in ci95.values() for bound in bounds)


def test_a_query_without_a_match_is_not_drawn():
    assert intervals(ranked([0.5, np.nan, np.nan]))["mAP"] == [0.5, 0.5]
    assert intervals(ranked([0.2, 0.9, 0.7])) == intervals(ranked([0.2, np.nan, 0.9, 0.7]))


# ------------------------------------------------------------------ the paired test
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 9))
def test_p_is_the_share_of_all_sign_patterns(seed, size):
    rng = np.random.default_rng(seed)
    changes = np.stack([rng.normal(0.3, 1, size), rng.integers(-1, 2, size)], axis=1)
    patterns = np.array(list(itertools.product((-1, 1), repeat=size)))
    exact = (np.abs(patterns @ changes) >= np.abs(changes.sum(0)) - 1e-9).mean(axis=0)
    np.testing.assert_allclose(sign_flip_test(changes, 20_000, seed), exact, atol=0.02)


def test_p_is_never_zero():
    assert sign_flip_test(np.ones((100, 1)), 999) == [1 / 1000]
    assert sign_flip_test(np.zeros((100, 1)), 999) == [1]


def test_under_random_swaps_one_in_twenty_is_called_different():
    rng = np.random.default_rng(4)
    first, second = rng.random((2, 200)) ** 3
    p = []
    for _ in range(400):
        swap = rng.random(200) < 0.5
        a, b = np.where(swap, first, second), np.where(swap, second, first)
        p.append(sign_flip_test((b - a)[:, None], 999)[0])
    assert 0.025 <= np.mean(np.array(p) < 0.05) <= 0.08
    assert 0.4 <= np.median(p) <= 0.6


def test_with_holm_one_family_in_twenty_at_most_has_a_false_verdict():
    rng = np.random.default_rng(5)
    ap = rng.random((2, 200))
    wrong = []
    for _ in range(200):
        a, b = np.where(rng.random(200) < 0.5, ap, ap[::-1])
        changes = compare(ranked(a), ranked(b), bootstrap_draws=10, permutations=999)
        wrong.append(any(change.verdict() != "noise" for change in changes))
    assert np.mean(wrong) <= 0.085  # 5 %, and twice the error of 200 tries


def test_a_real_difference_is_found_in_the_right_direction():
    rng = np.random.default_rng(6)
    base = rng.random(500) * 0.8
    better = ranked(base + 0.02 + rng.normal(0, 0.05, 500))
    changes = {change.metric: change for change in compare(ranked(base), better)}
    assert changes["mAP"].verdict() == "B is better"
    assert 0 < changes["mAP"].low < changes["mAP"].b - changes["mAP"].a < changes["mAP"].high
    mirrored = {change.metric: change for change in compare(better, ranked(base))}
    assert mirrored["mAP"].verdict() == "A is better"
    assert mirrored["mAP"].p == changes["mAP"].p
    assert mirrored["mAP"].low == pytest.approx(-changes["mAP"].high)


def test_holm_is_the_step_down_procedure():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rejected = set()
    for step, index in enumerate(np.argsort(p)):  # the smallest against alpha / 4, the next alpha / 3, until one fails
        if p[index] > 0.05 / (4 - step):
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(holm(p) <= 0.05)) == rejected
    assert holm([0.9, 0.8]).tolist() == [1, 1]


def test_the_verdict_is_of_the_adjusted_p():
    assert Difference("mAP", 0.1, 0.2, 0.05, 0.15, p=0.02, p_holm=0.06).verdict() == "noise"
    assert Difference("mAP", 0.2, 0.1, -0.15, -0.05, p=0.01, p_holm=0.03).verdict() == "A is better"


@pytest.mark.parametrize("other", [ranked([0.1, np.nan]), ranked([0.1, 0.2, 0.3]), ranked([0.1, 0.2], k=10),
                                   ranked([0.1, 0.2], domain_sizes=(1, 1))])
def test_rankings_of_other_queries_are_refused(other):
    with pytest.raises(ValueError, match="the rankings differ"):
        compare(ranked([0.1, 0.2]), other)
