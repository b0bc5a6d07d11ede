"""The check of a submission against a test folder: what it takes, what it refuses, and how it says so."""
import json
import random
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
from set_files import IMAGES, load_naic, write_set

from datasets.bases import Places, QueryGallery, ReIDData, Sample
from datasets.registry import ChosenSets, parse_names
from processor.evaluation.submission_check import _left_out, validate_ranking, validate_submission
from processor.retrieval.submission import write_submission
from tools.campaigns.tool_server import run_tool

TEST = Path("MyDataSet/image_B_v1_1")


@pytest.fixture(scope="module")
def truth(tiny_data):
    """{part: {name: pid}} of the tiny test folder."""
    files = json.loads((tiny_data / TEST / "ground_truth.json").read_text())["files"]
    return {part: {key.split("/")[1]: entry["pid"] for key, entry in files.items() if key.startswith(part)}
            for part in ("query", "gallery")}


@pytest.fixture(scope="module")
def perfect(truth):
    """The whole gallery for each query, its matches first."""
    return {query: sorted(truth["gallery"], key=lambda name: (truth["gallery"][name] != pid, name))
            for query, pid in truth["query"].items()}


@pytest.fixture
def check(tiny_data, tmp_path):
    """check(answer, **arguments) -> the report on it; no domain lists lie beside it."""
    def checked(answer, **arguments):
        path = tmp_path / "run" / "model" / "submission.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(answer))
        return validate_submission(path, tiny_data, **arguments)
    return checked


def tool(*words):
    return run_tool("validate_submission", *words)


def test_a_whole_answer_is_valid_and_a_perfect_one_scores_everything(check, perfect, truth):
    report = check(perfect)
    queries, gallery = len(truth["query"]), len(truth["gallery"])
    assert report.problems == []
    assert report.figures == {"rank1": 1, "mAP@200": 1, "naic_score": 1, "num_valid": queries, "num_queries": queries}
    valid, score, protocol = report.lines()
    assert valid.startswith(f"valid: {queries} queries × {gallery} names of {gallery}, ")
    assert score == f"rank-1 100.00%, mAP@200 100.00%, NAIC score 100.00% ({queries} of {queries} queries have a match)"
    assert protocol.startswith("scored by the competition's protocol: ")
    assert "metrics.json beside a submission is by its own `protocol`" in protocol


def test_a_worse_order_scores_less(check, perfect):
    figures = check({query: names[::-1] for query, names in perfect.items()}).figures
    assert figures["rank1"] == 0
    assert 0 < figures["mAP@200"] < 0.5


@pytest.mark.parametrize("top_k", [5, 200])
def test_lists_of_a_domain_each_are_valid_if_the_domain_lists_are_known(check, tiny_data, tmp_path, top_k):
    """What tools/test.py writes: a query's domain is ranked, and it may be smaller than top_k."""
    derived = tiny_data / "derived"
    domains = load_naic(tiny_data, derived_dir=derived, parts=("test",)).eval_sets
    names = {domain: [Path(sample.key).name for sample in pair.gallery][:top_k] for domain, pair in domains.items()}
    answer = {Path(sample.key).name: names[domain] for domain, pair in domains.items() for sample in pair.query}
    assert check(answer, top_k=top_k, derived_dir=derived).problems == []
    strict = check(answer, top_k=top_k)
    assert {problem.kind for problem in strict.problems} == (set() if top_k == 5 else {"wrong length"})
    assert ("--derived names their folder" in "".join(strict.lines())) == (top_k == 200)
    for place in (tmp_path / "run/model/derived", tmp_path / "run/derived"):  # run.sh's, and tools/test.py's
        shutil.copytree(derived, place)
        assert check(answer, top_k=top_k).problems == []
        shutil.rmtree(place)
    shorter = check({query: names[:4] for query, names in answer.items()}, top_k=top_k, derived_dir=derived)
    assert len(shorter.problems) == len(answer)


def test_domain_lists_of_another_folder_beside_the_file_are_not_used(check, perfect, tmp_path):
    derived = tmp_path / "run" / "derived"
    derived.mkdir(parents=True)
    for name in ("query_green", "query_normal", "gallery_green", "gallery_normal"):
        (derived / f"{name}.txt").write_text("other.png\n")
    assert check(perfect).problems == []
    with pytest.raises(ValueError, match="do not fit"):
        check(perfect, derived_dir=derived)


def test_without_truth_there_is_no_score(tiny_data, perfect, tmp_path):
    for part in ("query", "gallery"):
        shutil.copytree(tiny_data / TEST / part, tmp_path / "data" / TEST / part)
    write_submission(tmp_path / "s.json", list(perfect), next(iter(perfect.values())),
                     [range(len(names)) for names in perfect.values()])
    report = validate_submission(tmp_path / "s.json", tmp_path / "data")
    assert report.figures == {}
    assert len(report.lines()) == 1


def test_the_first_problems_are_listed_and_all_are_counted(check, perfect):
    wrong = {query: ["gallery/" + names[0], *names[1:]] for query, names in list(perfect.items())[:-2]}
    lines = check({**wrong, "x.png": []}).lines(limit=3)
    assert len(lines) == 5
    assert all(line.startswith("query '") and "did you mean" in line for line in lines[:3])
    count = len(wrong) + 3
    assert lines[3] == f"… and {count - 3} more"
    assert lines[4] == (f"invalid: {count} problems ({len(wrong)} × unknown gallery name, 2 × missing query, "
                        "1 × unknown query)")


@pytest.mark.parametrize(("change", "message"), [
    ({"test_dir": "image_A"}, "no test folder .*image_A"),
    ({"test_dir": "../image_B_v1_1"}, "must be the name of a folder inside"),
    ({"top_k": 0}, "top_k=0"),
    ({"derived_dir": "nowhere"}, "the domain lists are missing"),
])
def test_unusable_arguments_are_refused(check, perfect, change, message):
    with pytest.raises((ValueError, OSError), match=message):
        check(perfect, **change)


def test_the_tool_tells_valid_invalid_and_unusable_apart(tiny_data, perfect, tmp_path):
    path = tmp_path / "submission.json"
    path.write_text(json.dumps(perfect))
    valid = tool(path, "--data", tiny_data)
    assert valid.returncode == 0, valid.stderr
    assert [line.split()[0] for line in valid.stdout.splitlines()] == ["valid:", "rank-1", "scored"]

    path.write_text(json.dumps({**perfect, "\ud800\u4eba.png": []}))
    invalid = tool(path, "--data", tiny_data)
    assert invalid.returncode == 1
    assert invalid.stdout.splitlines()[0].startswith("query '\\ud800")
    assert invalid.stdout.splitlines()[-1] == "invalid: 1 problem (1 × unknown query)"

    path.write_bytes(b'{"a":' * 100_000)
    hostile = tool(path, "--data", tiny_data / "MyDataSet")
    assert (hostile.returncode, hostile.stderr) == (1, "")
    assert "nested too deeply" in hostile.stdout

    for words in ([tmp_path / "nowhere.json", "--data", tiny_data], [path, "--data", tmp_path], [path]):
        unusable = tool(*words)
        assert (unusable.returncode, unusable.stdout) == (2, "")
        assert "error: " in unusable.stderr
        assert "Traceback" not in unusable.stderr


# ---------------------------------------------------------------------------------------------------- sets but NAIC
def ranking_of(name: str) -> dict[str, list[str]]:
    """An answer for a miniature of a public set: of each query its gallery, its own picture first, then its matches."""
    gallery, answer = IMAGES[name]["gallery"], {}
    for path, (pid, camid) in IMAGES[name]["query"].items():
        order = sorted((gallery[other] != (pid, camid), gallery[other][0] != pid, other) for other in gallery)
        answer[Path(path).name] = [Path(other).name for _, _, other in order]
    return answer


@pytest.fixture
def check_ranking(tmp_path):
    """check_ranking(answer, names) -> the report on it against miniatures of public sets."""
    def checked(answer, names, top_k=200):
        for name in names.split("+"):
            write_set(tmp_path / "sets", name)
        (tmp_path / "submission.json").write_text(json.dumps(answer))
        references = parse_names(names)
        return validate_ranking(tmp_path / "submission.json", ChosenSets(references, references,
                                                                         Places(tmp_path / "sets")), top_k)
    return checked


@pytest.mark.parametrize("name", ["market1501", "dukemtmc", "veri", "cuhk03"])
def test_a_ranking_of_another_set_is_valid_and_scored_by_its_protocol(name, check_ranking):
    """The query's own camera comes first in each list, and is left out."""
    answer = ranking_of(name)
    report = check_ranking(answer, name)
    assert report.problems == []
    assert report.figures["rank1"] == report.figures["mAP@200"] == 1
    assert report.figures["num_valid"] == len(answer)
    assert report.lines()[0].startswith(f"valid: {len(answer)} queries × {len(IMAGES[name]['gallery'])} names of ")
    assert report.lines()[2].startswith("scored by each set's own protocol")
    worst = check_ranking({query: names[::-1] for query, names in answer.items()}, name)
    assert worst.figures["mAP@200"] < 1 or name == "cuhk03"  # where each query has one image to search


def test_the_lists_of_several_sets_name_images_of_their_own_gallery(check_ranking):
    answer = ranking_of("market1501") | ranking_of("dukemtmc")
    assert check_ranking(answer, "market1501+dukemtmc").problems == []
    query = next(iter(ranking_of("dukemtmc")))
    (problem,) = check_ranking({**answer, query: answer["0001_c1s1_001051_00.jpg"]}, "market1501+dukemtmc", 4).problems
    assert problem.text == f"query '{query}': '0000_c1s1_000151_01.jpg' is of another set's gallery"
    kinds = {problem.kind for problem in check_ranking({**answer, "x.jpg": [], query: ["y.jpg"]}, "market1501+dukemtmc"
                                                       ).problems}
    assert kinds == {"unknown query", "unknown gallery name", "wrong length"}


class Files:
    """A source of 7 files for any number of images."""

    def __init__(self, folder, number=7):
        self.paths = [folder / f"{place}.png" for place in range(number)]
        for path in self.paths:
            path.touch()

    def path(self, key):
        return self.paths[sum(key.encode()) % len(self.paths)]


def samples_of(rng, part, count, pids, camids):
    return [Sample(f"{part}{number}.png", rng.randrange(pids), rng.randrange(camids)) for number in range(count)]


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize(("pids", "camids"), [(1, 1), (1, 3), (5, 2), (30, 4)])
def test_what_is_left_out_is_what_a_comparison_of_all_pairs_leaves_out(drop, pids, camids, tmp_path):
    rng, files = random.Random(pids), Files(tmp_path)
    sides = [samples_of(rng, part, count, pids, camids) for part, count in (("q", 30), ("g", 80))]
    names = [[sample.key for sample in side] for side in sides]
    left_out = _left_out(QueryGallery(*sides, has_truth=True, drop_same_camera=drop), *names, files)
    assert list(left_out) == names[0]
    for query in sides[0]:
        dropped = {image.key for image in sides[1] if files.path(image.key) == files.path(query.key)
                   or (drop and (image.pid, image.camid) == (query.pid, query.camid))}
        assert set().union(*left_out[query.key].names) == dropped
        assert left_out[query.key].matches == sum(image.pid == query.pid and image.key not in dropped
                                                  for image in sides[1])


class OneEvaluation:
    """What load_sets gives, of samples that are there."""

    def __init__(self, pair, files):
        self.pair, self.files = pair, files

    def load(self, train):
        return ReIDData([], 0, [], {"all": self.pair}), self.files, None


def test_time_and_memory_of_a_ranking_of_one_person_are_in_proportion_to_its_images(tmp_path):
    """4,000 queries and 20,000 images of one person and camera in 7 files: 80 million pairs, which nobody makes."""
    rng = random.Random(0)
    sides = [samples_of(rng, part, count, 1, 1) for part, count in (("q", 4000), ("g", 20_000))]
    (tmp_path / "submission.json").write_text(json.dumps({query.key: [sides[1][0].key] for query in sides[0]}))
    sets = OneEvaluation(QueryGallery(*sides, has_truth=True, drop_same_camera=True), Files(tmp_path))
    begun = time.process_time()
    tracemalloc.start()
    try:
        report = validate_ranking(tmp_path / "submission.json", sets, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.lines()[0].startswith("valid: 4,000 queries × 1 names of 20,000, ")
    assert report.figures == {}  # nobody has a match
    assert peak < 30e6
    assert time.process_time() - begun < 20


def test_the_tool_checks_against_what_a_config_tests_on(tiny_data, perfect, tmp_path):
    write_set(tmp_path, "market1501")
    path = tmp_path / "submission.json"
    path.write_text(json.dumps(ranking_of("market1501")))
    done = tool(path, "--data", tmp_path, "DATASETS.NAMES", "market1501")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("valid: 2 queries × 4 names of 4, ")
    path.write_text(json.dumps(perfect))
    naic = tool(path, "DATASETS.NAMES", "naic", "DATASETS.ROOT_DIR", tiny_data)
    assert naic.stdout == tool(path, "--data", tiny_data).stdout
    assert naic.returncode == 0
    split = tool(path, "DATASETS.NAMES", "naic", "DATASETS.ROOT_DIR", tiny_data, "DATASETS.VALIDATION",
                 tiny_data / "derived/validation.json")
    assert split.returncode == 1, split.stderr
    assert "unknown query" in split.stdout.splitlines()[-1]
    assert tool(path).returncode == 2
