"""per_query.json and tools/compare.py: two runs side by side, and what is refused."""
import json
from pathlib import Path

import numpy as np
import pytest

from processor.evaluation.comparison import compare_runs, format_comparison, per_query_result, per_query_table
from processor.retrieval.metrics import RankResult, evaluate_rank
from tools.campaigns.tool_server import run_tool
from utils.files import write_json

NAMES = {"green": [f"g{i:03}.png" for i in range(120)], "normal": [f"n{i:03}.png" for i in range(80)]}


def ranked(ap, k=200) -> RankResult:
    ap = np.clip(np.asarray(ap, np.float64), 0, 1)
    hit = np.where(np.isnan(ap), 0, np.where(ap > 0.5, 1, 4))
    return RankResult(ap, ap, ap / 2, hit, (len(ap),), 50, k)


def write_run(folder: Path, ap: dict, shift: float = 0.0, kinds=("plain", "re_ranked"), k=200) -> Path:
    """A run with {domain: AP of its queries}; its last kind is better by 0.1."""
    results = {domain: {kind: ranked(values + shift + 0.1 * (kind != "plain"), k) for kind in kinds}
               for domain, values in ap.items()}
    write_json(folder / "per_query.json", {
        domain: {kind: per_query_table(result, NAMES[domain]) for kind, result in by_kind.items()}
        for domain, by_kind in results.items()})
    write_json(folder / "metrics.json", {"weight": "model.pth", **{
        domain: {kind: result.to_dict() for kind, result in by_kind.items()} for domain, by_kind in results.items()}})
    return folder


@pytest.fixture
def ap():
    rng = np.random.default_rng(0)
    values = {domain: rng.random(len(names)) * 0.7 for domain, names in NAMES.items()}
    values["green"][[3, 50]] = np.nan  # no match to find
    return values


def edit(folder: Path, change) -> None:
    content = json.loads((folder / "per_query.json").read_text())
    change(content)
    write_json(folder / "per_query.json", content)


def tool(*words):
    return run_tool("compare", *words)


# ------------------------------------------------------------------ the file
def test_a_table_is_read_back_to_the_bit():
    rng = np.random.default_rng(1)
    labels = [rng.integers(25, size=size) for size in (30, 90)] + [rng.integers(2, size=size) for size in (30, 90)]
    result = evaluate_rank(rng.random((30, 90)), *labels)
    assert 0 < result.num_valid < 30
    table = per_query_table(result, np.array([f"{i}.png" for i in range(30)]))
    assert list(table) == ["k", "queries", "ap", "ap_at_k", "inp", "first_hit"]
    assert {column.count(None) for name, column in table.items() if name not in ("k", "queries")} == {
        30 - result.num_valid}
    names, back = per_query_result(json.loads(json.dumps(table, allow_nan=False)))
    assert names == [f"{i}.png" for i in range(30)]
    for name in ("ap", "ap_at_k", "inp", "first_hit"):
        np.testing.assert_array_equal(getattr(back, name), getattr(result, name))
    without_tpr = {name: value for name, value in result.to_dict().items() if not ("@FPR" in name or name == "EER")}
    assert back.to_dict() == without_tpr


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 names for 2 queries"):
        per_query_table(ranked([0.1, 0.2]), ["a"])
    with pytest.raises(ValueError, match="query 'a' comes twice"):
        per_query_table(ranked([0.1, 0.2]), ["a", "a"])


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("inp"), "expected the fields k, queries, ap, ap_at_k, inp, first_hit"),
    (lambda t: t.update(k=0), "k must be a whole number from 1, got 0"),
    (lambda t: t["queries"].pop(), "ap: expected 1 numbers, one a query"),
    (lambda t: t.update(queries=["a", "a"]), "query 'a' comes twice"),
    (lambda t: t.update(queries=[1, 2]), "queries must be a list of names"),
    (lambda t: t.update(ap=[0.1, "x"]), "a figure is not a number"),
    (lambda t: t.update(ap=[0.1, None]), "null must stand in all columns"),
    (lambda t: t.update(first_hit=[1, -1]), "null must stand in all columns"),
    (lambda t: t.update({name: [None] * 2 for name in ("ap", "ap_at_k", "inp", "first_hit")}), "not in all queries"),
])
def test_a_damaged_table_is_refused(change, message):
    table = per_query_table(ranked([0.1, 0.2]), ["a", "b"])
    change(table)
    with pytest.raises(ValueError, match=message):
        per_query_result(table)


# ------------------------------------------------------------------ two runs
def test_the_tool_prints_a_table_and_says_which_is_better(ap, tmp_path):
    a, b = write_run(tmp_path / "a", ap), write_run(tmp_path / "b", ap, shift=0.05)
    done = tool(a, b)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [f"A = {a}", f"B = {b}", "ranking: re-ranked; queries with a match: green 118, normal 80"]
    row = next(line for line in lines if line.startswith("mAP "))
    values = np.concatenate([ap["green"], ap["normal"]])
    expected = 100 * np.nanmean(values + 0.1), 100 * np.nanmean(values + 0.15)
    assert row.split()[1:4] == [f"{expected[0]:.2f}", f"{expected[1]:.2f}", "+5.00"]
    assert row.endswith("B is better")
    assert [line.split()[0] for line in lines[5:10]] == ["rank1", "mAP", "mAP@200", "mINP", "naic_score"]
    assert "Holm" in done.stdout
    assert tool(b, a, "--kind", "plain").stdout.count("A is better") >= 4


def test_the_same_run_twice_is_noise(ap, tmp_path):
    a = write_run(tmp_path / "a", ap)
    same = compare_runs(a, a)
    assert {(change.verdict(), change.p, change.low, change.high) for change in same.differences} == {
        ("noise", 1.0, 0.0, 0.0)}
    assert format_comparison(same).count("   noise") == 5


def test_queries_swapped_at_random_are_noise(ap, tmp_path):
    rng = np.random.default_rng(2)
    other = {domain: rng.random(len(values)) * 0.7 for domain, values in ap.items()}
    other["green"][[3, 50]] = np.nan
    swap = {domain: rng.random(len(values)) < 0.5 for domain, values in ap.items()}
    a = write_run(tmp_path / "a", {domain: np.where(swap[domain], ap[domain], other[domain]) for domain in ap})
    b = write_run(tmp_path / "b", {domain: np.where(swap[domain], other[domain], ap[domain]) for domain in ap})
    assert {change.verdict() for change in compare_runs(a, b).differences} == {"noise"}


def test_queries_are_paired_by_name_not_by_place(ap, tmp_path):
    a, b = write_run(tmp_path / "a", ap), write_run(tmp_path / "b", ap, shift=0.05)
    before = compare_runs(a, b)

    def reverse(content):
        for kinds in content.values():
            for table in kinds.values():
                table.update({name: column[::-1] for name, column in table.items() if name != "k"})

    edit(b, reverse)
    assert compare_runs(a, b) == before


def test_the_last_common_kind_is_compared(ap, tmp_path):
    a = write_run(tmp_path / "a", ap, kinds=("plain", "saved"))
    b = write_run(tmp_path / "b", ap)
    assert compare_runs(a, b).kind == "plain"
    with pytest.raises(ValueError, match=r"ranking re_ranked in common: .*a has plain, saved and .*b has plain, re_"):
        compare_runs(a, b, kind="re_ranked")
    with pytest.raises(ValueError, match="no ranking of any kind in common"):
        compare_runs(a, write_run(tmp_path / "c", ap, kinds=("re_ranked",)))


def rename(content):
    content["normal"]["re_ranked"]["queries"][7] = "x.png"


def lose_match(content):
    table = content["normal"]["re_ranked"]
    for column in ("ap", "ap_at_k", "inp", "first_hit"):
        table[column][2] = None


def other_k(content):
    content["normal"]["re_ranked"]["k"] = 10


@pytest.mark.parametrize(("change", "message"), [
    (rename, "normal: query 'n007.png' is in .*a and not in .*b"),
    (lose_match, "normal: query 'n002.png' has a match to find in .*a and none in .*b"),
    (other_k, "a was tested with TEST.TOP_K=200 and .*b with 10"),
    (lambda content: content.pop("green"), r"a has the domains \['green', 'normal'\] and .*b has \['normal'\]"),
])
def test_runs_that_differ_in_their_queries_are_refused(ap, tmp_path, change, message):
    a, b = write_run(tmp_path / "a", ap), write_run(tmp_path / "b", ap)
    (b / "metrics.json").unlink()
    edit(b, change)
    with pytest.raises(ValueError, match=message):
        compare_runs(a, b)


def test_figures_of_another_run_beside_metrics_json_are_refused(ap, tmp_path):
    a, b = write_run(tmp_path / "a", ap), write_run(tmp_path / "b", ap, shift=0.05)
    (a / "per_query.json").write_bytes((b / "per_query.json").read_bytes())
    with pytest.raises(ValueError, match=r"they are of different runs; run tools/test.py again"):
        compare_runs(a, b)


def test_a_run_without_the_file_must_be_tested_again(ap, tmp_path):
    done = tool(write_run(tmp_path / "a", ap), tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'per_query.json'} does not exist; run tools/test.py")
    (tmp_path / "per_query.json").write_text('{"green": {"plain": {}}}')
    with pytest.raises(ValueError, match="green, plain: expected the fields"):
        compare_runs(tmp_path, tmp_path)
    (tmp_path / "per_query.json").write_text("[]")
    with pytest.raises(ValueError, match=r"expected \{domain"):
        compare_runs(tmp_path, tmp_path)
