"""The answer file: what is written, and what is refused."""
import json

import numpy as np
import pytest

from processor.retrieval.submission import check_submission, read_submission, write_submission

QUERIES, GALLERY = ["q0.png", "q1.png"], ["g0.png", "g1.png", "g2.png"]
GOOD = {"q0.png": ["g2.png", "g0.png"], "q1.png": ["g1.png", "g2.png"]}


def test_what_is_written_is_read_and_passes_the_check(tmp_path):
    path = tmp_path / "out" / "submission.json"
    write_submission(path, QUERIES, GALLERY, np.array([[2, 0], [1, 2]]))
    assert read_submission(path) == GOOD
    check_submission(path, QUERIES, GALLERY, top_k=2)
    assert [file.name for file in path.parent.iterdir()] == ["submission.json"]


def test_a_gallery_smaller_than_top_k_is_answered_whole(tmp_path):
    path = tmp_path / "submission.json"
    write_submission(path, QUERIES, GALLERY, np.array([[2, 0, 1], [1, 2, 0]]))
    check_submission(path, QUERIES, GALLERY, top_k=200)


@pytest.mark.parametrize(("queries", "gallery", "indices", "message"), [
    (QUERIES, GALLERY, [[0, 1]], "a row of indices for each of 2 queries, got 1"),
    (QUERIES, GALLERY, [[0.0], [1.0]], "a row of integer indices"),
    (QUERIES, GALLERY, [[0, 1], [1, 3]], "query 'q1.png', rank 2: gallery index 3 is out of range"),
    (QUERIES, GALLERY, [[0, 1], [-1, 1]], "query 'q1.png', rank 1: gallery index -1 is out of range"),
    (QUERIES, GALLERY, [[0, 1], [1, 1]], "query 'q1.png': gallery names: 'g1.png' comes twice"),
    (["q", "q"], GALLERY, [[0], [1]], "query names: 'q' comes twice"),
    (QUERIES, ["g", "g"], [[0], [1]], "gallery names: 'g' comes twice"),
])
def test_a_wrong_ranking_leaves_no_file(tmp_path, queries, gallery, indices, message):
    with pytest.raises(ValueError, match=message):
        write_submission(tmp_path / "submission.json", queries, gallery, np.array(indices))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "message"), [
    ("[", "submission.json: not a JSON file"),
    ("[]", "expected an object"),
    ('{"q0.png": "g0.png"}', "query 'q0.png': expected a list of gallery names"),
    ('{"q0.png": [], "q0.png": []}', "query names: 'q0.png' comes twice"),
    (json.dumps({"q0.png": GOOD["q0.png"]}), "1 of 2 queries are missing, the first is 'q1.png'"),
    (json.dumps({**GOOD, "q2.png": []}), "1 unknown queries, among them 'q2.png'"),
    (json.dumps({**GOOD, "q1.png": ["g1.png"]}), "query 'q1.png': 1 gallery names, expected 2"),
    (json.dumps({**GOOD, "q1.png": ["g1.png", "g1.png"]}), "'g1.png' comes twice"),
    (json.dumps({**GOOD, "q1.png": ["g1.png", "g7.png"]}), "query 'q1.png', rank 2: 'g7.png' is not in the gallery"),
])
def test_a_wrong_file_is_told_apart(tmp_path, text, message):
    path = tmp_path / "submission.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        check_submission(path, QUERIES, GALLERY, top_k=2)
