"""The page of ranked lists: what stands in its lists, charts and maps, what it refuses, how it is used in a browser."""
import csv
import errno
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bank_files import forget_checksums
from conftest import model_config

from configs import dump_cfg, load_cfg
from datasets.make_dataloader import make_dataloader
from datasets.transforms import Normalize
from model.make_model import GLOBAL, make_model
from model.pooling import POOLINGS
from processor.evaluation.ensemble import ensemble, open_models
from processor.evaluation.feature_bank import BankWriter, FeatureBank, Ranking, read_bank
from processor.export.model_folder import INFO, read_info
from processor.export_model import Request, export_model
from processor.visual import pictures as pictures_room
from processor.visual.lists import RIGHT, UNCOUNTED, WRONG, DistanceCounts, rank_lists
from processor.visual.maps import location_features, pair_map
from processor.visual.page import distributions
from processor.visual.scatter import scatter
from processor.visualize import PageOptions, make_rank_page
from tools.campaigns.tool_server import run_tool
from utils.files import write_json

PEOPLE, QUERIES = 6, 4  # each person is on QUERIES query and 3 gallery pictures
NASTY = "<img src=x onerror=alert(1)>"


def make_data(root: Path) -> Path:
    """A set of tiny pictures, described by a CSV; a person's name and two file names would be HTML."""
    (root / "shots").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for pid in range(PEOPLE):
        for number in range(QUERIES + 3):
            split = "query" if number < QUERIES else "gallery"
            name = f"shots/{NASTY if not (pid or number % QUERIES) else 'p'}{pid}_{number}.png"
            cv2.imwrite(str(root / name), rng.integers(0, 256, (16, 8, 3), np.uint8))
            rows.append((name, f"{NASTY}{pid}", number % 3 + 1, split))
    with open(root / "set.csv", "w", newline="") as out:
        csv.writer(out).writerows([("path", "pid", "camid", "split"), *rows])
    return root


def make_run(folder: Path, data: Path, noise: float = 1.5, seed: int = 0, truth: bool = True,
             re_ranking: tuple | None = (4, 2, 0.5)) -> Path:
    """What tools/test.py leaves: a feature bank, here of random features near their person's."""
    cfg = load_cfg(None, ["DATASETS.NAMES", "csv:set.csv", "DATASETS.ROOT_DIR", str(data), "OUTPUT_DIR", str(folder),
                          "INPUT.SIZE_TEST", "[16, 8]", "MODEL.DEVICE", "cpu", "MODEL.PRETRAIN_CHOICE", "none",
                          "MODEL.NAME", "resnet18_ibn_b_w32", "TEST.WEIGHT", str(folder / "latest.pth")])
    (domain, test), = make_dataloader(cfg, train=False).test.items()
    pids, rng = np.array([sample.pid for sample in test.samples]), np.random.default_rng(seed)
    writer = BankWriter(folder / "features")
    feats = writer.array(domain, "global", (len(pids), 8))
    feats[:] = np.random.default_rng(9).normal(size=(PEOPLE, 8))[pids] + noise * rng.normal(size=(len(pids), 8))
    camids = np.array([sample.camid for sample in test.samples])
    writer.add(domain, FeatureBank({"global": feats}, pids if truth else np.full_like(pids, -1), camids,
                                   np.array(test.names), test.num_query, truth, test.drop_same_camera,
                                   np.array([sample.key for sample in test.samples])))
    writer.finish(Ranking(True, "euclidean", re_ranking), dump_cfg(cfg), evaluation={"top_k": 200}, weight="latest.pth")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Two tested models, a and b, and their ensemble, all."""
    out = tmp_path_factory.mktemp("runs") / "all"
    for name, seed in (("a", 0), ("b", 1)):
        make_run(out / name, data, seed=seed)
    ensemble([out / "a", out / "b"], [1, 2], out / "submission.json")
    return out


def page_data(page: Path, name: str):
    """What a data script holds."""
    text = (page.parent / "data" / f"{name}.js").read_text()
    return json.loads(re.fullmatch(r"(?:const INDEX = |chunk\(\d+, )(.*?)\)?;\n", text, re.DOTALL)[1])


def cards(page: Path) -> dict:
    index = page_data(page, "index")
    records = [record for path in sorted((page.parent / "data").glob("[0-9]*.js"), key=lambda path: int(path.stem))
               for record in page_data(page, path.stem)]
    return {query[0]: record for query, record in zip(index["queries"], records, strict=True)}


@pytest.mark.parametrize("content", [
    [1], {"models": 3}, {"models": ["a", 5], "weights": [1, 2], "mode": "sum"}, {"models": ["a", "b"], "mode": "sum"},
    {"models": ["a", "b"], "weights": ["x", 1], "mode": "sum"}, {"models": ["a", "b"], "weights": [1, 2]},
    {"models": ["a\0"], "weights": [1], "mode": "sum"}, {"models": ["a", "b"], "weights": [1, 2], "mode": "other"},
])
def test_a_damaged_record_of_an_ensemble_is_named(runs, tmp_path, content):
    run = Path(shutil.copytree(runs, tmp_path / "all"))
    (run / "ensemble.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"ensemble\.json: damaged, or of another program"):
        make_rank_page(run, PageOptions(top=5, limit=0))


# ---------------------------------------------------------------------------------------------------- lists
@pytest.mark.parametrize("name", [".", "a"])
def test_lists_are_the_submission_and_aps_those_of_the_test(runs, tmp_path, name):
    """The ensemble sums with its weights, and re-ranks as it was tested."""
    run = runs / name
    if name == "a":
        run = Path(shutil.copytree(run, tmp_path / "a"))
        ensemble([run], None, run / "submission.json")
    page = make_rank_page(run, PageOptions(top=5, limit=0))
    submission = json.loads((run / "submission.json").read_text())
    (table,) = json.loads((run / "per_query.json").read_text()).values()
    figures = dict(zip(table["re_ranked"]["queries"], table["re_ranked"]["ap"], strict=True))
    for query, record in cards(page).items():
        listed = [item[1] for item in record["lists"][0]["items"]]
        counted = [item for item in record["lists"][0]["items"] if item[4] != UNCOUNTED]
        late = len(counted) > 5  # the first match, behind the list
        assert listed[: len(listed) - late] == submission[query][: len(listed) - late]
        assert record["lists"][0]["ap"] == pytest.approx(figures[query], abs=1e-12)
        assert [item[5] for item in counted[:5]] == [1, 2, 3, 4, 5]


def test_frames_say_who_it_is_and_what_the_protocol_leaves_out(runs, data):
    page = make_rank_page(runs / "a", PageOptions(limit=0))
    with open(data / "set.csv") as rows:
        truth = {Path(row["path"]).name: row for row in csv.DictReader(rows)}
    seen = set()
    for query, record in cards(page).items():
        for _, name, camera, _, kind, _ in record["lists"][0]["items"]:
            same = truth[name]["pid"] == truth[query]["pid"]
            dropped = same and truth[name]["camid"] == truth[query]["camid"]
            assert kind == (UNCOUNTED if dropped else RIGHT if same else WRONG)
            assert camera == int(truth[name]["camid"])
            seen.add(kind)
    assert seen == {UNCOUNTED, RIGHT, WRONG}


def test_a_querys_own_file_is_marked_as_not_counted_and_changes_no_figure_of_the_page(runs, tmp_path):
    run = Path(shutil.copytree(runs / "a", tmp_path / "a"))
    ((domain, bank),) = read_bank(run / "features")[0].items()
    matches = np.argwhere((bank.pids[:bank.num_query, None] == bank.pids[None, bank.num_query:])
                          & (bank.camids[:bank.num_query, None] != bank.camids[None, bank.num_query:]))
    np.save(run / "features" / f"{domain}.same_file.npy", matches[:1])
    forget_checksums(run)
    ensemble([run], None, run / "submission.json")
    query, own = str(bank.query_names[matches[0, 0]]), str(bank.gallery_names[matches[0, 1]])
    (table,) = json.loads((run / "per_query.json").read_text()).values()
    records = cards(make_rank_page(run, PageOptions(limit=0)))
    for name, ap in zip(table["re_ranked"]["queries"], table["re_ranked"]["ap"], strict=True):
        assert records[name]["lists"][0]["ap"] == pytest.approx(ap, abs=1e-12)
    assert {item[4] for item in records[query]["lists"][0]["items"] if item[1] == own} <= {UNCOUNTED}


def test_a_run_without_a_match_has_a_page(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    ((domain, bank),) = read_bank(run / "features")[0].items()
    np.save(run / "features" / f"{domain}.pids.npy", np.arange(len(bank.pids)))
    forget_checksums(run)
    page = make_rank_page(run, PageOptions(top=3))
    assert "no query has a match: no frames, and no figures" in page.read_text()


def test_the_first_match_is_shown_however_late_it_comes(data, tmp_path):
    page = make_rank_page(make_run(tmp_path / "run", data, noise=30), PageOptions(top=1, limit=0))
    lists = [record["lists"][0]["items"] for record in cards(page).values()]
    ends = [(items[-1][4], items[-1][5]) for items in lists if items[-1][5] > 1]
    assert ends
    assert {kind for kind, _ in ends} == {RIGHT}


def test_a_query_without_truth_gets_its_list(data, tmp_path):
    run = make_run(tmp_path / "run", data, truth=False)
    page = make_rank_page(run, PageOptions(top=3))
    assert len(cards(page)) == PEOPLE * QUERIES
    assert {item[4] for record in cards(page).values() for item in record["lists"][0]["items"]} == {3}
    assert "The truth is not known" in page.read_text()


def test_the_limit_keeps_the_worst_and_the_best_query(runs):
    page = make_rank_page(runs, PageOptions(limit=0))
    every = [query[3] for query in page_data(page, "index")["queries"]]
    few = [query[3] for query in page_data(make_rank_page(runs, PageOptions(limit=6)), "index")["queries"]]
    assert every == sorted(every)
    assert len(few) == 6
    assert few[:3] == every[:3]
    assert few[-1] == every[-1]


def test_mistakes_are_the_wrong_first_pictures_with_their_distance(runs):
    page = make_rank_page(runs / "a", PageOptions(limit=0))
    records = cards(page)
    for name, _, _, _, mistake, _, _ in page_data(page, "index")["queries"]:
        first = next(item for item in records[name]["lists"][0]["items"] if item[4] != UNCOUNTED)
        assert (mistake is not None) == (first[4] == WRONG)
        assert mistake is None or mistake == pytest.approx(first[3], abs=1e-4)


def test_the_matrix_is_the_map_of_each_pair_of_cameras(runs):
    """Against the slow oracle, from plain distances."""
    bank = next(iter(read_bank(runs / "a" / "features")[0].values()))
    opened, weights, k = open_models([runs / "a"], None)
    (sources,) = opened.values()
    sources[0].streams.pop("re_ranked")
    cameras = rank_lists("set", sources, weights, bank.camids, 3, k).cameras
    queries, gallery = bank.branch("global")
    unit = [feat / np.linalg.norm(feat, axis=1, keepdims=True) for feat in (queries, gallery)]
    distances = np.linalg.norm(unit[0][:, None] - unit[1][None], axis=2)
    q = bank.num_query
    for row, camera in enumerate(cameras.queries):
        for column, other in enumerate(cameras.gallery):
            aps = []
            for query in np.flatnonzero(bank.camids[:q] == camera):
                images = np.flatnonzero(bank.camids[q:] == other)
                same = bank.pids[q:][images] == bank.pids[query]
                counted = ~(same & (camera == other))
                order = np.argsort(distances[query, images][counted], kind="stable")
                ranks = 1 + np.flatnonzero(same[counted][order])
                if len(ranks):
                    aps.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
            expected = 100 * np.mean(aps) if aps else np.nan
            np.testing.assert_allclose(cameras.cells[row, column], expected, atol=1e-9)


def test_distances_are_counted_whatever_their_range():
    counts, rng = DistanceCounts(), np.random.default_rng(0)
    values = rng.uniform(3, 900, 500)
    for piece in np.split(np.append(values, np.inf), [7, 8, 400]):
        counts.add(1, piece)
    assert counts.counts.sum(1).tolist() == [0, 500]
    edges, shares = distributions(counts)
    assert edges[0] <= values.min() <= edges[1]
    assert edges[-2] <= values.max() <= edges[-1]
    np.testing.assert_allclose(shares[1], np.histogram(values, edges)[0] / 500, atol=2 / 500)
    assert shares[0].sum() == 0


def test_the_thresholds_of_the_metrics_stand_between_the_distributions(runs, tmp_path):
    run = Path(shutil.copytree(runs / "a", tmp_path / "a", ignore=shutil.ignore_patterns("ranks")))
    ensemble([run], None, run / "submission.json")
    figures = json.loads((run / "metrics.json").read_text())["set"]["re_ranked"]
    text = make_rank_page(run, PageOptions()).read_text()
    axis = re.findall(r'class="axis" x="([\d.]+)" y="\d+">([\d.]+)<', text)
    lines = re.findall(r'class="threshold" x1="([\d.]+)".*?<text [^>]*>(FPR=1e-\d+)<', text, re.DOTALL)
    scale = np.polyfit(*np.float64(axis).T, 1)  # pixels -> distance
    assert [name for _, name in lines] == ["FPR=1e-04", "FPR=1e-03", "FPR=1e-02"]
    for x, name in lines:
        assert np.polyval(scale, float(x)) == pytest.approx(figures[f"distance@{name}"], abs=5e-3)


def test_a_picture_of_many_lists_is_one_file_and_is_not_made_again(runs, monkeypatch):
    page = make_rank_page(runs, PageOptions(limit=0))
    pictures = {path.name: path.read_bytes() for path in (page.parent / "pictures").iterdir()}
    assert len(pictures) <= PEOPLE * (QUERIES + 3)
    monkeypatch.setattr(pictures_room, "decode", lambda *_: pytest.fail("made again"))
    make_rank_page(runs, PageOptions(limit=0))
    assert {path.name: path.read_bytes() for path in (page.parent / "pictures").iterdir()} == pictures


# ---------------------------------------------------------------------------------------------------- two runs
def test_two_runs_stand_side_by_side_by_the_change_of_ap(runs):
    page = make_rank_page(runs / "a", PageOptions(compare=runs / "b", limit=0))
    records = cards(page)
    for name, _, _, ap, _, change, _ in page_data(page, "index")["queries"]:
        first, second = (ranked["ap"] for ranked in records[name]["lists"])
        assert ap == pytest.approx(first, abs=1e-5)
        assert change == pytest.approx(first - second, abs=2e-5)
    assert re.findall("<dt>(.*?)</dt>", page.read_text()) == ["set A", "set B"]


def drop_queries(run: Path, count: int) -> None:
    """A bank without its first queries."""
    index = json.loads((run / "features" / "index.json").read_text())
    for entry in index["domains"].values():
        entry["num_query"] -= count
    (run / "features" / "index.json").write_text(json.dumps(index))
    for path in (run / "features").glob("*.npy"):
        np.save(path, np.load(path)[count:])
    forget_checksums(run)


def test_queries_of_one_run_alone_are_counted(runs, tmp_path):
    other = Path(shutil.copytree(runs / "b", tmp_path / "b"))
    drop_queries(other, 2)
    text = " ".join(make_rank_page(runs / "a", PageOptions(compare=other)).read_text().split())
    assert "22 of 22 queries that both runs have listed" in text
    assert "2 queries are in A alone, 0 in B alone" in text


# ---------------------------------------------------------------------------------------------------- maps, scatter
@pytest.mark.parametrize("pooling", ["avg", "GeM"])
def test_what_positions_add_is_what_is_pooled(pooling):
    x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    pool = POOLINGS[pooling](3.0, True)
    assert torch.allclose(pool.by_position(x).sum((2, 3)), pool(x), atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("neck", ["before", "after"])
@pytest.mark.parametrize("pooling", ["avg", "GeM"])
@pytest.mark.usefixtures("tiny_backbone")
def test_the_maps_add_up_to_the_cosine(pooling, neck, flip):
    model = make_model(model_config(MODEL__NAME="tiny_with_dropout", MODEL__POOLING_METHOD=pooling,
                                    TEST__NECK_FEAT=neck), 3)
    torch.manual_seed(0)
    for name, values in model.bottleneck.state_dict().items():
        if values.is_floating_point():
            values.copy_(torch.rand_like(values) + 0.5 * (name != "bias"))
    model.eval()
    normalize = Normalize([0.5] * 3, [0.2] * 3)
    images = torch.randint(0, 256, (2, 32, 16, 3), dtype=torch.uint8)
    with torch.inference_mode():
        views = [images, images.flip(2)] if flip else [images]
        y, z = torch.stack([model(normalize(view))[GLOBAL] for view in views]).mean(0).double()
    pair = pair_map(*(location_features(model, normalize, image, flip) for image in images))
    cosine = float(y @ z / y.norm() / z.norm())
    assert pair.first.shape == (8, 4)
    for value in (pair.cosine, pair.first.sum(), pair.second.sum()):
        assert value == pytest.approx(cosine, abs=1e-5)


def save_weights(run: Path, **more) -> Path:
    cfg = load_cfg(run / "features" / "config.yml", [])
    torch.save({"model": make_model(cfg, 3, pretrained=False).state_dict(), **more}, run / "latest.pth")
    return run / "latest.pth"


@pytest.fixture
def weighted(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    save_weights(run)
    return run


def test_maps_of_the_worst_and_best_queries_are_drawn_also_when_the_folder_was_moved(weighted, tmp_path):
    moved = weighted.rename(tmp_path / "elsewhere")
    page = make_rank_page(moved, PageOptions(maps=2, limit=0))
    drawn = {name: record["maps"] for name, record in cards(page).items() if record["maps"]}
    queries = [query[0] for query in page_data(page, "index")["queries"]]
    assert set(drawn) == {*queries[:2], *queries[-2:]}
    for pairs in drawn.values():
        assert [title for title, *_ in pairs] == ["first match", "first other person"]
        assert all((page.parent / "pictures" / file).is_file() for _, _, *files in pairs for file in files)


def test_the_tested_models_folder_draws_its_maps_and_tells_its_thresholds(weighted, caplog):
    cfg = load_cfg(weighted / "features" / "config.yml", [])
    export_model(Request(save_weights(weighted, config=dump_cfg(cfg)), weighted / "model"))
    info = read_info(weighted / "model")
    thresholds = {"cosine": {"0.001": 0.5125}, "measured_on": "yard"}
    write_json(weighted / "model" / INFO, replace(info, thresholds=thresholds).to_json())
    index = json.loads((weighted / "features" / "index.json").read_text())
    for model_id, is_tested in ((info.model_id, True), ("another's", False)):
        index |= {"model_id": model_id, "weight_sha256": "of latest.pth"}
        (weighted / "features" / "index.json").write_text(json.dumps(index))
        caplog.clear()
        text = make_rank_page(weighted, PageOptions(maps=1, model=weighted / "model")).read_text()
        assert ("is not the checkpoint that" not in caplog.text) == is_tested
        assert ("cosine 0.5125 at a false positive rate of 0.001; measured on yard" in text) == is_tested


def test_the_scatter_keeps_the_worst_identities_together():
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(5), 12)
    feats = 8 * np.eye(5)[pids] + rng.normal(size=(60, 5))
    points = scatter([feats.astype(np.float32)], [1.0], pids, np.array([3, 1]))
    again = scatter([feats.astype(np.float32)], [1.0], pids, np.array([3, 1]))
    assert np.array_equal(points.positions, again.positions)
    assert [set(pids[points.rows[points.groups == group]]) for group in (0, 1)] == [{3}, {1}]
    spread = points.positions[points.groups == 0].std(0).max()
    assert spread < 0.5 * points.positions.std(0).min()


# ---------------------------------------------------------------------------------------------------- refusals
def test_pictures_that_were_moved_are_found_by_data(data, tmp_path):
    here = Path(shutil.copytree(data, tmp_path / "here"))
    run = make_run(tmp_path / "out" / "run", here)
    there = here.rename(tmp_path / "there")
    with pytest.raises(ValueError, match=r"the pictures of .* are not found: .*--data"):
        make_rank_page(run, PageOptions())
    assert make_rank_page(run, PageOptions(data=there)).is_file()
    shutil.rmtree(there / "shots")
    with pytest.raises(ValueError, match=r"none of the \d+ pictures can be read .*--data"):
        make_rank_page(run, PageOptions(data=there))
    assert (run / "ranks" / "index.html").is_file()  # the page before


def test_a_bank_of_an_earlier_version_finds_its_pictures_by_name(runs, data, tmp_path):
    run = Path(shutil.copytree(runs / "a", tmp_path / "all" / "a", ignore=shutil.ignore_patterns("ranks")))
    (run / "features" / "config.yml").rename(run / "config.yml")
    for path in (run / "features").glob("*.keys.npy"):
        path.unlink()
    assert cards(make_rank_page(run, PageOptions())) == cards(make_rank_page(runs / "a", PageOptions()))


def test_a_picture_that_cannot_be_read_is_counted_and_the_page_is_made(data, tmp_path):
    here = Path(shutil.copytree(data, tmp_path / "here"))
    run = make_run(tmp_path / "run", here)
    (here / "shots" / "p3_1.png").unlink()
    (here / "shots" / "p4_5.png").write_bytes(b"no picture")
    page = make_rank_page(run, PageOptions(limit=0, top=18))
    assert "2 pictures cannot be read" in page.read_text()
    assert cards(page)["p3_1.png"]["picture"] is None


def test_a_page_whose_disk_is_full_is_not_taken_for_one_of_broken_pictures(data, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", data)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            make_rank_page(run, PageOptions())
    assert not (run / "ranks").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["--run", "{tmp}"], r"holds no feature bank \(no features/\)"),
    (["--run", "{tmp}/nowhere"], "nowhere is not a folder"),
    (["--run", "{runs}", "--maps", "1"], "is an ensemble: name the checkpoint that the maps are of with --model FILE"),
    (["--run", "{runs}/a", "--maps", "1"], "latest.pth of .* is not found: name it with --model FILE"),
    (["--run", "{runs}/a", "--maps", "1", "--model", "no.pth"], "--model no.pth: no such checkpoint or model folder"),
    (["--run", "{runs}/a", "--compare", "{other}"], "have no query in common"),
    (["--run", "{runs}/a", "--top", "0"], "--top 0: must be at least 1"),
    (["--run", "{taken}"], "ranks exists and is no page of this tool; move it away"),
])
def test_what_cannot_be_shown_is_said_in_a_line(runs, data, tmp_path, words, message):
    places = {"tmp": tmp_path, "runs": runs, "other": tmp_path / "other", "taken": tmp_path / "taken"}
    if "{other}" in words:
        shutil.copytree(runs / "b", tmp_path / "other")
        for path in (tmp_path / "other" / "features").glob("*.names.npy"):
            np.save(path, np.array([f"other_{name}" for name in np.load(path)]))
        forget_checksums(tmp_path / "other")
    if "{taken}" in words:
        shutil.copytree(runs / "a", tmp_path / "taken", ignore=shutil.ignore_patterns("ranks"))
        (tmp_path / "taken" / "ranks").mkdir()
    done = run_tool("visualize", *(word.format(**places) for word in words))
    assert done.returncode == 2
    assert re.fullmatch(f"error: .*{message}.*", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_the_page_sorts_filters_and_turns_in_a_browser(browser, runs, tmp_path, width, scheme):
    page = make_rank_page(runs / "a", PageOptions(compare=runs / "b", scatter=True, limit=0))
    place = Path(shutil.copytree(page.parent, tmp_path / "copied elsewhere #1"))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, problems = context.new_page(), []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    tab.on("requestfailed", lambda request: problems.append(request.url))
    tab.goto((place / "index.html").as_uri())
    tab.wait_for_selector("article")

    def names():
        return tab.locator("article .title b").all_inner_texts()

    queries = page_data(page, "index")["queries"]
    by_change = [query[0] for query in sorted((q for q in queries if q[5] is not None), key=lambda query: query[5])]
    assert names() == by_change[:20]
    tab.locator("button.next").first.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.querySelectorAll('article').length === 4")
    assert names() == by_change[20:]
    assert tab.evaluate("document.activeElement.id") == "sort"  # there is no next page to turn to
    assert tab.locator("article").first.locator(".list").count() == 2
    tab.select_option("#sort", "best")
    tab.wait_for_function("document.querySelectorAll('article').length === 20")
    assert names() == [query[0] for query in sorted(queries, key=lambda query: -query[3])][:20]
    tab.select_option("#camera", "2")
    tab.fill("#name", "P3_")
    tab.wait_for_function("document.querySelectorAll('article').length === 1")
    assert names() == ["p3_1.png"]
    tab.fill("#name", "nothing such")
    tab.wait_for_selector("text=no query fits these filters")
    tab.select_option("#camera", "")
    tab.fill("#name", NASTY)
    tab.wait_for_selector("article")
    assert set(names()) == {query[0] for query in queries if NASTY in query[0]}  # as text
    tab.locator("#groups button").first.click()
    assert tab.locator("circle.on").count() > 0
    tab.locator("circle.on").first.hover(force=True)
    assert tab.locator("#tip").is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth && i.src).length") == 0
    assert problems == []
    context.close()
