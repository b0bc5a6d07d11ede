"""The answer file: what is written, and what is refused."""
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.retrieval.metrics import RankAccumulator
from processor.retrieval.submission import LeftOut, score_submission, submission_problems, write_submission
from utils.files import read_json

QUERIES, GALLERY = ["q0.png", "q1.png"], ["g0.png", "g1.png", "g2.png"]
GOOD = {"q0.png": ["g2.png", "g0.png"], "q1.png": ["g1.png", "g2.png"]}


def problems_of(path, content, fewest=None, top_k=2):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return list(submission_problems(path, QUERIES, GALLERY, top_k, fewest))


def test_what_is_written_is_read_and_passes_the_check(tmp_path):
    path = tmp_path / "out" / "submission.json"
    write_submission(path, QUERIES, GALLERY, np.array([[2, 0], [1, 2]]))
    assert read_json(path) == GOOD
    assert not list(submission_problems(path, QUERIES, GALLERY, top_k=2))
    assert [file.name for file in path.parent.iterdir()] == ["submission.json"]


def test_a_gallery_smaller_than_top_k_is_answered_whole(tmp_path):
    path = tmp_path / "submission.json"
    write_submission(path, QUERIES, GALLERY, np.array([[2, 0, 1], [1, 2, 0]]))
    assert not list(submission_problems(path, QUERIES, GALLERY, top_k=200))


@pytest.mark.parametrize(("queries", "gallery", "indices", "message"), [
    (QUERIES, GALLERY, [[0, 1]], "a row of indices for each of 2 queries, got 1"),
    (QUERIES, GALLERY, [[0.0], [1.0]], "a row of integer indices"),
    (QUERIES, GALLERY, [[0, 1], [1, 3]], "query 'q1.png', rank 2: gallery index 3 is out of range"),
    (QUERIES, GALLERY, [[0, 1], [-1, 1]], "query 'q1.png', rank 1: gallery index -1 is out of range"),
    (QUERIES, GALLERY, [[0, 1], [1, 1]], "query 'q1.png': gallery image 'g1.png' comes twice"),
    (["q", "q"], GALLERY, [[0], [1]], "query 'q' comes twice"),
    (QUERIES, ["g", "g"], [[0], [1]], "gallery image 'g' comes twice"),
])
def test_a_wrong_ranking_leaves_no_file(tmp_path, queries, gallery, indices, message):
    with pytest.raises(ValueError, match=message):
        write_submission(tmp_path / "submission.json", queries, gallery, np.array(indices))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "message"), [
    ("[", "not a JSON file"),
    ("[]", "expected an object"),
    ('{"q0.png": ["g0.png", "g1.png"], "q1.png": "g0.png"}', "query 'q1.png': expected a list of gallery names"),
    ('{"q0.png": ["g0.png", "g1.png"], "q0.png": ["g0.png", "g1.png"]}', "query 'q0.png': comes more than once"),
    (json.dumps({"q0.png": GOOD["q0.png"]}), "query 'q1.png': is missing (1 of 2 are)"),
    (json.dumps({**GOOD, "q2.png": []}), "query 'q2.png': is not among the queries"),
    (json.dumps({**GOOD, "q1.png": ["g1.png"]}), "query 'q1.png': 1 gallery names, expected 2"),
    (json.dumps({**GOOD, "q1.png": ["g1.png", "g1.png"]}), "rank 2: 'g1.png' comes twice, first at rank 1"),
    (json.dumps({**GOOD, "q1.png": ["g1.png", "g7.png"]}), "query 'q1.png', rank 2: 'g7.png' is not in the gallery"),
    (json.dumps({**GOOD, "q1.png": [None, "g7.png", "g8.png"]}),
     "query 'q1.png': 3 gallery names, expected 2"),
])
def test_the_first_problem_names_the_fault_and_the_query(tmp_path, text, message):
    assert message in problems_of(tmp_path / "s.json", text)[0].text


def test_all_problems_are_listed(tmp_path):
    pairs = [("q9.png", []), ("q0.png", ["g9.png", 7, "g0.png", "g8.png"]), ("q0.png", None)]
    text = "{" + ", ".join(f'"{query}": {json.dumps(names)}' for query, names in pairs) + "}"
    assert [problem.text for problem in problems_of(tmp_path / "s.json", text)] == [
        "query 'q9.png': is not among the queries",
        "query 'q0.png': 4 gallery names, expected 2",
        "query 'q0.png', rank 1: 'g9.png' is not in the gallery (and 1 more of its names)",
        "query 'q0.png', rank 2: expected a gallery name, got a number",
        "query 'q0.png': comes more than once",
        "query 'q0.png': expected a list of gallery names, got null",
        "query 'q1.png': is missing (1 of 2 are)",
    ]


@pytest.mark.parametrize(("fewest", "length", "fits"), [
    (None, 2, True), (None, 1, False), (None, 3, False),
    ({"q1.png": 1}, 1, True), ({"q1.png": 1}, 0, False), ({"q0.png": 1}, 1, False),
])
def test_a_list_may_be_as_short_as_its_query_is_allowed(tmp_path, fewest, length, fits):
    text = json.dumps({**GOOD, "q1.png": GALLERY[:length]})
    assert [problem.kind for problem in problems_of(tmp_path / "s.json", text, fewest)] == ["wrong length"] * (not fits)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not a JSON file"),
    (b"\xff\xfe{\0}\0", "not a JSON file: 'utf-8' codec"),
    (b"[" * 200_000, "nested too deeply"),
    (b'{"a":' * 100_000, "nested too deeply"),
    (b'{"q0.png": NaN}', "NaN is no JSON"),
    (b'{"q0.png": [-Infinity]}', "-Infinity is no JSON"),
    (b"null", "expected an object {query name: [gallery names]}, got null"),
    (b"[{}]", "got a list"),
    (b"{}{}", "not a JSON file: Extra data"),
    (b" " * 2_000_000, "2,000,000 bytes, where 2 queries × 2 names take"),
])
def test_a_file_that_cannot_be_read_is_one_problem(tmp_path, content, message):
    (problem,) = problems_of(tmp_path / "s.json", content)
    assert problem.kind == "unreadable file"
    assert message in problem.text
    assert "\n" not in problem.text


def test_a_number_of_very_many_digits_is_no_name(tmp_path):
    """Old releases of Python read it, later ones refuse the file; either way it is a problem and not a crash."""
    assert problems_of(tmp_path / "s.json", '{"q0.png": [' + "9" * 10_000 + "]}")


def test_a_byte_order_mark_is_reported_and_the_rest_is_checked(tmp_path):
    problems = problems_of(tmp_path / "s.json", b"\xef\xbb\xbf" + json.dumps({"q0.png": GOOD["q0.png"]}).encode())
    assert [problem.kind for problem in problems] == ["byte-order mark", "missing query"]


@pytest.mark.parametrize(("wrong", "meant"), [
    ("gallery/g1.png", "g1.png"), ("g1", "g1.png"), (" g1.png", "g1.png"), ("a\\g1.png", "g1.png"), ("G1.PNG", None),
])
def test_a_name_spelled_in_another_way_gets_a_hint(tmp_path, wrong, meant):
    (problem,) = problems_of(tmp_path / "s.json", json.dumps({**GOOD, "q1.png": ["g0.png", wrong]}))
    assert problem.text.endswith(f"; did you mean '{meant}'?" if meant else "is not in the gallery")


def test_a_hostile_name_stays_one_short_printable_line(tmp_path):
    for name in ("\ud800", "a\nb\x1b[31m", "x" * 100_000):
        problems = problems_of(tmp_path / "s.json", json.dumps({**GOOD, name: [name], "q1.png": ["g0.png", name]}))
        assert [problem.kind for problem in problems] == ["unknown gallery name", "unknown query"]
        for problem in problems:
            assert problem.text.isprintable()
            assert len(problem.text) < 200


NAMES = st.sampled_from([*QUERIES, *GALLERY, "", "x"])
ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
                        lambda part: st.lists(part, max_size=4) | st.dictionaries(NAMES, part, max_size=4))
NEARLY_RIGHT = st.dictionaries(st.sampled_from([*QUERIES, "x"]),
                               st.lists(st.sampled_from([*GALLERY, "x", 1]), min_size=1, max_size=3) | ANYTHING)
RIGHT = st.fixed_dictionaries({query: st.permutations(GALLERY).map(lambda names: names[:2]) for query in QUERIES})


@settings(max_examples=300, deadline=None)
@given(answer=ANYTHING | NEARLY_RIGHT | RIGHT)
def test_a_file_has_no_problem_exactly_if_it_is_right(tmp_path_factory, answer):
    right = (isinstance(answer, dict) and sorted(answer) == QUERIES
             and all(isinstance(names, list) and len(names) == 2 for names in answer.values())
             and all(name in GALLERY for names in answer.values() for name in names)
             and all(names[0] != names[1] for names in answer.values()))
    problems = problems_of(tmp_path_factory.mktemp("any") / "s.json", json.dumps(answer))
    assert bool(problems) != right


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=40) | st.text('{}[]",:q0.png1ge \ufeff', max_size=40).map(str.encode))
def test_no_content_makes_the_check_raise(tmp_path_factory, content):
    assert problems_of(tmp_path_factory.mktemp("any") / "s.json", content)


# ---------------------------------------------------------------- the score

def slow_score(answer, query_pids, gallery_pids, k):
    """A rank at a time, from the definitions."""
    rank1, precisions = [], []
    for query, pid in query_pids.items():
        matches = sum(other == pid for other in gallery_pids.values())
        if matches == 0:
            continue
        total = 0.0
        for rank in range(1, min(k, len(answer[query])) + 1):
            if gallery_pids[answer[query][rank - 1]] == pid:
                total += sum(gallery_pids[name] == pid for name in answer[query][:rank]) / rank
        precisions.append(total / min(matches, k))
        rank1.append(gallery_pids[answer[query][0]] == pid)
    return sum(rank1) / len(rank1), sum(precisions) / len(precisions)


@pytest.mark.parametrize(("k", "length"), [(1, 1), (5, 5), (5, 20), (20, 5), (40, 40), (200, 40)])
def test_the_score_is_that_of_the_definition_and_of_the_metrics(k, length):
    """Lists of 40 images of 6 identities for 10 queries of 7; whole lists are ranked as their distances are."""
    rng = random.Random(k)
    gallery_pids = {f"g{i}": f"person{rng.randrange(6)}" for i in range(40)}
    query_pids = {f"q{i}": f"person{i % 7}" for i in range(10)}
    orders = {query: rng.sample(sorted(gallery_pids), 40) for query in query_pids}
    answer = {query: order[:length] for query, order in orders.items()}
    figures = score_submission(answer, query_pids, gallery_pids, k)
    rank1, mean_ap = slow_score(answer, query_pids, gallery_pids, k)
    assert figures == {"rank1": pytest.approx(rank1), f"mAP@{k}": pytest.approx(mean_ap),
                     "naic_score": pytest.approx((rank1 + mean_ap) / 2), "num_valid": 9, "num_queries": 10}
    if length >= min(k, 40):
        pids = {pid: number for number, pid in enumerate(sorted({*gallery_pids.values(), *query_pids.values()}))}
        accumulator = RankAccumulator([pids[pid] for pid in query_pids.values()],
                                      [pids[pid] for pid in gallery_pids.values()], [0] * 10, [0] * 40, k=k,
                                      drop_same_camera=False)
        accumulator.update(slice(0, 10), np.array([[order.index(name) for name in gallery_pids]
                                                   for order in orders.values()], np.float32))
        result = accumulator.result()
        assert figures["rank1"] == pytest.approx(result.cmc[0])
        assert figures[f"mAP@{k}"] == pytest.approx(result.mAP_at_k)
        assert figures["naic_score"] == pytest.approx(result.naic_score)


def test_a_query_without_a_match_is_in_no_average_and_an_empty_list_finds_nothing():
    pids = {"g0": "a", "g1": "b"}
    assert score_submission({"q0": ["g0"], "q1": ["g0"]}, {"q0": "a", "q1": "z"}, pids, 5)["naic_score"] == 1
    assert score_submission({"q0": ["g0"], "q1": []}, {"q0": "a", "q1": "b"}, pids, 5)["naic_score"] == 0.5


@pytest.mark.parametrize(("answer", "message"), [
    ({"q0": ["g0"]}, "none of the 1 queries has an image of its identity"),
    ({}, "1 of 1 queries have no list, among them 'q0'"),
])
def test_what_cannot_be_scored_is_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        score_submission(answer, {"q0": "z"}, {"g0": "a"}, 5)


def test_matches_that_do_not_count_are_not_denied():
    with pytest.raises(ValueError, match="in the gallery that counts by the set's protocol"):
        score_submission({"q0": ["g0"]}, {"q0": "a"}, {"g0": "a"}, 5, {"q0": LeftOut(({"g0"},), 0)})
