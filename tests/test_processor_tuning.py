"""Tuning of re-ranking and of an ensemble's weights on a validation set: figures, economy, resuming, refusals."""
import functools
import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from bank_files import forget_checksums
from hypothesis import given
from hypothesis import strategies as st
from processes import run_together

from processor.evaluation import tuning, tuning_set
from processor.evaluation.ensemble import ensemble
from processor.evaluation.feature_bank import BankWriter, FeatureBank, Ranking, read_bank
from processor.evaluation.sources import Compute
from processor.evaluation.tuning import Grid, format_tuning, moves, tune
from processor.retrieval import reranking
from processor.retrieval.distance import l2_normalize
from processor.retrieval.ensemble import sum_blocks
from processor.retrieval.metrics import RankAccumulator, RankResult, merge_results
from processor.retrieval.reranking import re_ranked_blocks
from processor.retrieval.significance import intervals
from tools.campaigns.tool_server import run_tool
from utils.files import read_json

SIZES = {"green": (40, 90), "normal": (20, 60)}
RANKING = Ranking(True, "euclidean", (6, 2, 0.5))
GRID = Grid(k1=(5, 9), k2=(1, 4), lambdas=(0.2, 0.6))


def write_bank(folder: Path, noise: float, seed: int, ranking=RANKING, branches=("global",), sizes=SIZES, truth=True,
               top_k=10) -> Path:
    """A model whose features are 8 identities' centres and noise; the images depend on the domain alone."""
    writer = BankWriter(folder / "features")
    for number, (domain, (num_query, num_gallery)) in enumerate(sizes.items()):
        shared, noises = np.random.default_rng(number), np.random.default_rng([seed, number])
        size = num_query + num_gallery
        pids, camids = shared.integers(8, size=size), shared.integers(3, size=size)
        centres = shared.normal(size=(8, 16))
        feats = {branch: writer.array(domain, branch, (size, 16)) for branch in branches}
        for array in feats.values():
            array[:] = centres[pids] + noise * noises.normal(size=(size, 16))
        names = np.array([f"{domain}{i:04}.png" for i in range(size)])
        writer.add(domain, FeatureBank(feats, pids if truth else np.full(size, -1), camids, names, num_query, truth,
                                       drop_same_camera=True))
    writer.finish(ranking, evaluation={"top_k": top_k})
    return folder


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    """Models a, b, noise (useless) and parts (two branches); not to be changed."""
    root = tmp_path_factory.mktemp("banks")
    write_bank(root / "a", 1.5, 1)
    write_bank(root / "b", 1.8, 2)
    write_bank(root / "noise", 50, 3)
    write_bank(root / "parts", 1.9, 4, replace(RANKING, re_ranking=None, distance="cosine", local_weight=0.7),
               ("global", "part0", "part1"))
    return root


@pytest.fixture
def counted(monkeypatch):
    """How often neighbours were searched and codes made."""
    calls = {"search": 0, "encode": 0}

    def counting(name, real):
        def call(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)
        return call

    for name in calls:
        monkeypatch.setattr(reranking, name, counting(name, getattr(reranking, name)))
    return calls


@functools.cache
def re_ranked(folder, domain, branch, parameters):
    """The blocks of one model's branch, re-ranked by itself."""
    bank = read_bank(folder / "features")[0][domain]
    return list(re_ranked_blocks(*np.split(l2_normalize(bank.feats[branch]), [bank.num_query]), *parameters))


def oracle(folders, setting) -> RankResult:
    """The ranking of a re-ranked setting, each model and branch re-ranked by itself."""
    opened = [read_bank(folder / "features")[0] for folder in folders]
    results = []
    for domain, bank in opened[0].items():
        models = []
        for folder, model, parameters in zip(folders, opened, setting.re_ranking, strict=True):
            weights = Ranking(True, "", None, 0.7).branch_weights(model[domain].feats)
            blocks = [[(rows, block.copy()) for rows, block in re_ranked(folder, domain, branch, parameters)]
                      for branch in weights]
            models.append(sum_blocks(blocks, list(weights.values())))
        q = bank.num_query
        accumulator = RankAccumulator(bank.pids[:q], bank.pids[q:], bank.camids[:q], bank.camids[q:], k=10)
        for rows, distances in sum_blocks(models, setting.weights):
            accumulator.update(rows, distances)
        results.append(accumulator.result())
    return merge_results(results)


# ------------------------------------------------------------------ figures
@pytest.mark.parametrize("names", ["a", ("a", "b"), ("parts", "a")])
def test_every_row_is_what_re_ranking_by_itself_gives(banks, tmp_path, names):
    folders = [banks / name for name in names]
    answer = tune(folders, tmp_path, GRID)
    re_ranked = [row for row in answer.rows if all(row.setting.re_ranking)]
    assert len(re_ranked) > len(GRID.pairs()) * len(GRID.lambdas) * (1 if names == "a" else 5)
    assert {row.setting.encoding[0] for row in re_ranked} >= set(GRID.pairs())
    for row in re_ranked:
        expected = oracle(folders, row.setting)
        if "parts" in names:  # its branches are summed before lambda mixes them: the last bit may decide a rank
            assert row.figures == pytest.approx(expected.to_dict(), abs=2e-3)
        else:
            assert (row.figures, row.ci95) == (expected.to_dict(), intervals(expected))


@pytest.mark.parametrize("expansion", [{}, {"query_expansion": 3, "database_augmentation": 2, "expansion_alpha": 1.0}])
def test_the_two_to_compare_with_are_what_the_ensemble_gives(banks, tmp_path, expansion):
    folders = [banks / "a", write_bank(tmp_path / "c", 2, 5, replace(RANKING, re_ranking=(4, 3, 0.3), **expansion))]
    answer = tune(folders, tmp_path / "out", replace(GRID, weights=(1.0, 0.25)))
    expected = ensemble(folders, [1.0, 0.25], tmp_path / "e" / "submission.json")["all"]
    for row, kind in ((answer.plain, "plain"), (answer.tested, "re_ranked")):
        assert {**row.figures, "ci95": row.ci95} == expected[kind]
    assert answer.tested.setting.re_ranking == ((6, 2, 0.5), (4, 3, 0.3))


def test_what_is_to_be_pasted_gives_the_best_figures(banks, tmp_path):
    best = tune([banks / "a", banks / "b"], tmp_path / "out", GRID).best
    folders = [write_bank(tmp_path / name, noise, seed, replace(RANKING, re_ranking=best.setting.re_ranking[0]))
               for name, noise, seed in (("a", 1.5, 1), ("b", 1.8, 2))]
    metrics = ensemble(folders, best.setting.weights, tmp_path / "e" / "submission.json")["all"]
    assert {**best.figures, "ci95": best.ci95} == metrics["re_ranked"]


def test_a_domain_can_be_tuned_by_itself(banks, tmp_path):
    answer = tune([banks / "a"], tmp_path / "out", GRID, domain="normal")
    assert answer.plain.figures["num_queries"] == 20
    expected = ensemble([banks / "a"], None, tmp_path / "e" / "submission.json")["normal"]
    assert answer.tested.figures == pytest.approx({name: expected["re_ranked"][name] for name in answer.tested.figures})


@pytest.mark.parametrize("metric", tuning.METRICS)
def test_the_best_has_the_largest_value_of_the_metric(banks, tmp_path, metric):
    answer = tune([banks / "a", banks / "b"], tmp_path, GRID, metric)
    values = [row.figures[metric] for row in answer.rows]
    assert values == sorted(values, reverse=True)
    in_grid = [row.figures[metric] for row in answer.rows if row.setting.encoding[0] in GRID.pairs()]
    assert answer.best.figures[metric] == max(in_grid)


def test_a_useless_model_gets_no_weight(banks, tmp_path):
    answer = tune([banks / "a", banks / "b", banks / "noise"], tmp_path, GRID)
    weights = answer.best.setting.weights
    assert weights[2] <= 0.1 < min(weights[:2])
    assert sum(weights) == pytest.approx(1)
    equal = [row for row in answer.rows if row.setting.weights == (1 / 3,) * 3 and all(row.setting.re_ranking)]
    assert answer.best.figures["naic_score"] > max(row.figures["naic_score"] for row in equal) + 0.02


@given(st.lists(st.fractions(0, 1), min_size=1, max_size=4).filter(any))
def test_moves_change_one_weight_and_keep_the_sum(weights):
    weights = tuple(weight / sum(weights) for weight in weights)
    tried = moves(weights)
    assert len(set(tried)) == len(tried) <= 3 * len(weights)
    assert weights not in tried
    for moved in tried:
        assert sum(moved) == 1
        assert min(moved) >= 0
        # All weights but one keep their ratios.
        assert any(all(moved[j] * weights[i] == moved[i] * weights[j] for i in range(len(weights)) for j in range(i)
                       if k not in (i, j)) for k in range(len(weights)))


def test_the_search_starts_from_equal_weights_and_may_drop_all_but_one():
    assert moves((Fraction(1, 2),) * 2) == [(0, 1), (Fraction(1, 3), Fraction(2, 3)), (Fraction(2, 3), Fraction(1, 3)),
                                            (1, 0)]
    assert moves((Fraction(1),)) == []


# ------------------------------------------------------------------ economy
def test_each_model_is_searched_once_and_encoded_once_for_each_k1_and_k2(banks, tmp_path, counted):
    tune([banks / "a", banks / "parts"], tmp_path, GRID)
    streams = 4 * len(SIZES)  # a's branch and the three of parts, in each domain
    assert counted["search"] == streams
    as_tested = 1 * len(SIZES)  # a was tested with (6, 2), which is not in the grid; parts without re-ranking
    assert counted["encode"] == streams * len(GRID.pairs()) + as_tested


def test_what_the_models_were_tested_with_shares_the_pass_of_its_k1_and_k2(banks, tmp_path, counted):
    answer = tune([banks / "a"], tmp_path, Grid(k1=(6, 5), k2=(2,), lambdas=(1.0,)))
    assert counted["encode"] == 2 * len(SIZES)
    assert answer.rows[0] == answer.tested  # it is better, but was not asked about
    assert answer.best.setting.re_ranking[0][2] == 1.0
    assert "As tested, naic_score is" in format_tuning(answer)


@pytest.mark.parametrize("compute", [Compute(memory=90 * 2**20), Compute(precision="bf16")])
def test_memory_and_precision_change_nothing(banks, tmp_path, compute):
    folders = [banks / "a", banks / "b"]
    whole = tune(folders, tmp_path / "1", GRID, domain="green")
    assert tune(folders, tmp_path / "2", GRID, domain="green", compute=compute).rows == whole.rows


def test_counters_that_do_not_fit_the_memory_take_more_passes(banks, tmp_path, monkeypatch):
    folders = [banks / "a", banks / "b"]
    whole = tune(folders, tmp_path / "1", GRID)
    monkeypatch.setattr(tuning_set, "free_bytes", lambda device: 2 * 4 * (2**16 + 500))
    validation = tuning.TuningSet(folders, 5)
    assert validation._at_once() == 2
    assert tune(folders, tmp_path / "2", GRID).rows == whole.rows


# ------------------------------------------------------------------ resuming
def test_an_interrupted_run_goes_on_from_its_results(banks, tmp_path, counted, monkeypatch):
    folders = [banks / "a", banks / "b"]
    whole = tune(folders, tmp_path / "whole", GRID)
    encoded_in_all, counted["encode"] = counted["encode"], 0
    real = tuning.best_weights

    def interrupted(results, grid, encoding, also):
        if encoding == GRID.pairs()[2]:
            raise KeyboardInterrupt
        return real(results, grid, encoding, also)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "best_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(folders, tmp_path / "out", GRID)
    before = counted["encode"]
    assert 0 < before < encoded_in_all
    assert tune(folders, tmp_path / "out", GRID).rows == whole.rows
    assert counted["encode"] == encoded_in_all  # nothing twice
    assert read_json(tmp_path / "out" / "tuning.json") == read_json(tmp_path / "whole" / "tuning.json")


@pytest.mark.parametrize("file", ["write_json", "write_text"])
def test_a_run_that_was_killed_between_its_two_files_leaves_both_whole(banks, tmp_path, monkeypatch, file):
    real, calls, last = getattr(tuning, file), 0, 0

    def killed(path, content):
        nonlocal calls
        calls += 1
        if calls == last:  # after which nothing more is measured
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, file, killed)
        tune([banks / "a"], tmp_path / "whole", GRID)
        calls, last = 0, calls
        with pytest.raises(KeyboardInterrupt):
            tune([banks / "a"], tmp_path / "out", GRID)
    tune([banks / "a"], tmp_path / "out", GRID)
    for name in ("tuning.json", "tuning.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_second_run_searches_nothing_and_a_larger_grid_only_what_is_new(banks, tmp_path, counted):
    first = tune([banks / "a"], tmp_path, GRID)
    counted.update(search=0, encode=0)
    again = tune([banks / "a"], tmp_path, GRID, "mAP")
    assert counted == {"search": 0, "encode": 0}
    assert sorted(map(repr, again.rows)) == sorted(map(repr, first.rows))
    assert again.best.figures["mAP"] >= first.best.figures["mAP"]
    more = tune([banks / "a"], tmp_path, replace(GRID, k1=(*GRID.k1, 12)))
    assert counted == {"search": len(SIZES), "encode": len(GRID.k2) * len(SIZES)}
    assert set(map(repr, more.rows)) > set(map(repr, first.rows))


def test_a_smaller_grid_lists_its_rows_and_the_file_keeps_all(banks, tmp_path):
    first = tune([banks / "a"], tmp_path, GRID)
    fewer = tune([banks / "a"], tmp_path, replace(GRID, k1=(5,)))
    assert {row.setting.encoding[0] for row in fewer.rows} == {(5, 1), (5, 4), (6, 2), None}
    assert len(read_json(tmp_path / "tuning.json")["rows"]) == len(first.rows)


def test_results_of_other_inputs_are_refused_and_left_alone(banks, tmp_path):
    tune([banks / "a"], tmp_path, GRID)
    before = (tmp_path / "tuning.json").read_bytes()
    for folders, domain in (([banks / "b"], "all"), ([banks / "a"], "green")):
        with pytest.raises(ValueError, match=r"tuning\.json holds the results of other inputs.*name another --output"):
            tune(folders, tmp_path, GRID, domain=domain)
    assert (tmp_path / "tuning.json").read_bytes() == before


@pytest.mark.parametrize("change", [lambda c: c.pop("rows"), lambda c: c["rows"][0].pop("weights"),
                                    lambda c: c["rows"][0].update(re_ranking=3), lambda c: c.update(rows=[3]),
                                    lambda c: c["rows"][0].update(figures=[]), lambda c: c["rows"][0].update(ci95=[]),
                                    lambda c: c["rows"][0]["figures"].update(mAP="x"),
                                    lambda c: c["rows"][0]["figures"].pop("rank1"),
                                    lambda c: c["rows"][0]["ci95"].update(mAP=[0.5]),
                                    lambda c: c["rows"][0].update(weights=["x"]),
                                    lambda c: c["rows"][0].update(re_ranking=[[20, 6]])])
def test_a_damaged_file_is_refused(banks, tmp_path, change):
    tune([banks / "a"], tmp_path, GRID)
    content = read_json(tmp_path / "tuning.json")
    change(content)
    (tmp_path / "tuning.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tuning\.json is damaged"):
        tune([banks / "a"], tmp_path, GRID)


def test_the_files_hold_every_row_best_first(banks, tmp_path):
    answer = tune([banks / "a", banks / "b"], tmp_path, GRID)
    rows = read_json(tmp_path / "tuning.json")["rows"]
    assert [row["figures"] for row in rows] == [row.figures for row in answer.rows]
    head, *lines = (tmp_path / "tuning.csv").read_text().splitlines()
    assert head.startswith(f"k1,k2,lambda,weight of {banks / 'a'},weight of {banks / 'b'},rank1,")
    assert head.endswith(",naic_score low,naic_score high")
    assert len(lines) == len(rows)
    column = head.split(",").index("naic_score")
    assert [float(line.split(",")[column]) for line in lines] == [row["figures"]["naic_score"] for row in rows]


# ------------------------------------------------------------------ refusals
def test_k2_beyond_k1_is_left_out_and_logged(banks, tmp_path, caplog):
    with caplog.at_level("INFO"):
        answer = tune([banks / "a"], tmp_path, Grid((3, 5), (2, 6), (0.3,)))
    assert "left out, because k2 may be k1 + 1 at most: (k1, k2) = (3, 6)" in caplog.text
    assert {(3, 2), (5, 2), (5, 6)} <= {row.setting.encoding[0] for row in answer.rows}


def test_k1_beyond_the_smallest_gallery_is_left_out_and_not_recommended(banks, tmp_path, caplog):
    answer = tune([banks / "a"], tmp_path, Grid((60, 5, 500), (2,), (0.3,)))
    assert caplog.messages == ["left out, because k1 must be below the number of gallery images, 60: k1 = 60, 500"]
    assert {row.setting.encoding[0] for row in answer.rows} == {(5, 2), (6, 2), None}
    caplog.clear()
    assert tune([banks / "a"], tmp_path / "green", Grid((60,), (2,), (0.3,)), domain="green").best
    assert caplog.messages == []
    with pytest.raises(ValueError, match="--k1 60 500: k1 must be below the number of gallery images, 60"):
        tune([banks / "a"], tmp_path, Grid((60, 500), (2,), (0.3,)))


def test_a_domain_without_a_match_is_left_out_of_tuning(banks, tmp_path, caplog):
    shutil.copytree(banks / "a", tmp_path / "a")
    pids = np.load(tmp_path / "a/features/normal.pids.npy")
    pids[: SIZES["normal"][0]] += 100
    np.save(tmp_path / "a/features/normal.pids.npy", pids)
    forget_checksums(tmp_path / "a")
    answer = tune([tmp_path / "a"], tmp_path / "out", Grid((5,), (2,), (0.3,)))
    assert answer.best.figures["num_queries"] == SIZES["green"][0]
    assert "normal is not measured on: none of its 20 queries has an image of its identity" in caplog.text
    with pytest.raises(ValueError, match="nothing to tune on: in normal, none of its 20 queries"):
        tune([tmp_path / "a"], tmp_path / "normal", domain="normal")


@pytest.mark.parametrize(("grid", "message"), [
    (Grid((3,), (6, 7)), r"no k2 of \[6, 7\] goes with a k1 of \[3\]"),
    (Grid((0,)), "k1=0"), (Grid(k2=(0,)), "k2=0"), (Grid(lambdas=(1.5,)), "lambda_value=1.5"),
    (Grid(weights=(1, 2)), "2 weights for 1 inputs"), (Grid(weights=(0,)), "one at least must not be 0"),
    (Grid(weights=(float("nan"),)), "all must be finite"),
])
def test_a_grid_without_meaning_is_refused(banks, tmp_path, grid, message):
    with pytest.raises(ValueError, match=message):
        tune([banks / "a"], tmp_path / "out", grid)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"truth": False}, "b: the green images have no ground truth to tune on.*ground_truth.json"),
    ({"sizes": {"green": SIZES["green"]}}, "different domains"),
    ({"sizes": {**SIZES, "green": (40, 89)}}, r"holds 90 images, .*b 89; they agree up to position 88"),
    ({"top_k": 7}, "tested with different settings"),
])
def test_inputs_that_disagree_are_refused(banks, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tune([banks / "a", write_bank(tmp_path / "b", 1, 5, **changes)], tmp_path / "out", GRID)


@pytest.mark.parametrize(("leaf", "message"), [
    ("names", r"the images differ at position 88: 'green0128.png' in .*a, 'green0129.png' in .*b"),
    ("pids", "a and .*b know different pids or camids for the green images"),
    ("camids", "know different pids or camids"),
])
def test_images_and_truth_must_be_the_same(banks, tmp_path, leaf, message):
    shutil.copytree(banks / "b", tmp_path / "b")
    path = tmp_path / "b" / "features" / f"green.{leaf}.npy"
    array = np.load(path)
    array[-2:] = array[[-1, -2]] if leaf == "names" else array[-2:] + 1
    np.save(path, array)
    forget_checksums(tmp_path / "b")
    with pytest.raises(ValueError, match=message):
        tune([banks / "a", tmp_path / "b"], tmp_path / "out", GRID)


def test_other_mistakes_are_named(banks, tmp_path):
    with pytest.raises(ValueError, match="a has no domain blue; it has green, normal"):
        tune([banks / "a"], tmp_path, GRID, domain="blue")
    with pytest.raises(ValueError, match="named twice"):
        tune([banks / "a", banks / "a"], tmp_path, GRID)
    with pytest.raises(ValueError, match="no complete feature bank"):
        tune([tmp_path], tmp_path, GRID)
    with pytest.raises(ValueError, match=r"MiB above the features and may use 0.*--memory"):
        tune([banks / "a"], tmp_path, GRID, compute=Compute(memory=2**19))


# ------------------------------------------------------------------ the tool
def tool(*words, **kwargs):
    return run_tool("tune_rerank", *words, **kwargs)


def test_the_tool_prints_the_table_and_what_to_paste(banks, tmp_path):
    done = tool("--inputs", banks / "a", banks / "b", banks / "noise", "--k1", 5, 9, "--k2", 4, "--lambda", 0.2, 0.6,
                "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    table, conclusion = done.stdout.split("\n\n", 1)
    head, first, *rest = table.splitlines()
    assert head.split() == ["k1", "k2", "lambda", "weights", "rank1", "mAP", "mAP@10", "mINP", "naic_score"]
    assert first.endswith("best of the grid")
    assert sum("as tested" in line for line in rest) == sum("without re-ranking" in line for line in rest) == 1
    assert len(rest) <= tuning.TABLE_ROWS + 3
    answer = tune([banks / name for name in ("a", "b", "noise")], tmp_path, Grid((5, 9), (4,), (0.2, 0.6)))
    assert done.stdout == format_tuning(answer) + "\n"
    k1, k2, lambda_value = answer.best.setting.re_ranking[0]
    assert f'TEST.RE_RANKING_PARAMETER "[{k1}, {k2}, {lambda_value}]"' in conclusion
    a, b, _ = answer.best.setting.weights
    assert f"--inputs {banks / 'a'} {banks / 'b'} --weights {a} {b}" in conclusion
    assert "never\nfrom the test set you report on." in conclusion
    assert "best for k1 5, k2 4: lambda" in (tmp_path / "tune_log.txt").read_text()


def test_a_single_model_has_no_weights_to_paste_and_results_beside_it(banks, tmp_path):
    shutil.copytree(banks / "a", tmp_path / "a")
    done = tool("--inputs", "a", "--k1", 5, "--k2", 2, "--lambda", 0.3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--weights" not in done.stdout
    assert (tmp_path / "a" / "tuning" / "tuning.csv").is_file()


@pytest.mark.parametrize(("words", "message"), [
    (["--inputs", "nowhere"], "nowhere does not exist"),
    (["--inputs", "a", "--weights", "auto", "1"], "--weights auto 1: auto, or one number a DIR"),
    (["--inputs", "a", "--weights", "1", "2"], "2 weights for 1 inputs"),
])
def test_a_mistake_is_one_message_and_code_2(banks, tmp_path, words, message):
    done = tool(*words, "--output", tmp_path / "out", cwd=banks)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_find_the_same(banks, tmp_path):
    write_bank(tmp_path / "c", 1.5, 6, sizes={"green": (300, 90)})  # two blocks of queries
    words = ["--inputs", tmp_path / "c", "--k1", "5", "--k2", "2", "--lambda", "0.2", "0.6", "--output"]
    codes, (out, silence), errors = run_together(2, "tune_rerank", *words, tmp_path / "two")
    assert codes == [0, 0], errors[0]
    assert silence == ""
    alone = tune([tmp_path / "c"], tmp_path / "one", Grid((5,), (2,), (0.2, 0.6)))
    assert out.splitlines()[:-1] == format_tuning(alone).splitlines()[:-1]
    assert read_json(tmp_path / "two" / "tuning.json") == read_json(tmp_path / "one" / "tuning.json")
