"""Samples, the collected error, and the statistics table."""
import pytest

from datasets.bases import Problems, QueryGallery, ReIDData, Sample, format_names, set_of_trial, statistics, trial_name


def test_statistics_count_each_set_and_each_side():
    train = [Sample("train_2019_cs/train/a.png", 0, 0), Sample("train_2019_cs/train/b.png", 0, 0),
             Sample("unlabel/images/c.png", 1, 0), Sample("unlabel/images/d.png", 2, 0)]
    pair = QueryGallery([Sample("t/query/q.png", 5, 1)], [Sample("t/gallery/g.png", 5, 2),
                                                          Sample("t/gallery/h.png", 6, 3)], True, list("abcdefg"))
    rows = [line.split() for line in statistics(ReIDData(train, 3, ["x", "y", "z"], {"green": pair})).splitlines()]
    assert rows == [
        ["subset", "images", "identities", "cameras"],
        ["train_2019_cs", "2", "1", "-"],
        ["unlabel", "2", "2", "-"],
        ["train,", "all", "4", "3", "-"],
        ["green", "query", "1", "1", "1"],
        ["green", "gallery", "2", "2", "2"],
    ]


def test_statistics_show_no_identities_without_truth():
    pair = QueryGallery([Sample("t/query/q.png", -1, 0)], [Sample("t/gallery/g.png", -1, 0)], False)
    assert [line.split()[2:] for line in statistics(ReIDData(eval_sets={"normal": pair})).splitlines()[1:]] == [
        ["1", "-", "-"], ["1", "-", "-"]]


def test_one_trial_stands_for_all_in_the_statistics():
    pair = QueryGallery([Sample("v/1.jpg", 0, 0)], [Sample("v/2.jpg", 0, 0)], True, ["v/5"])
    data = ReIDData(eval_sets={trial_name("v", number): pair for number in (1, 2)})
    assert [line.split()[:3] for line in statistics(data).splitlines()[1:]] == [["v", "query", "1"],
                                                                               ["v", "gallery", "1"]]
    assert [set_of_trial(name) for name in (*data.eval_sets, "v", "v_trial", "v_trial1")] == ["v", "v", "", "", ""]


def test_class_count_and_names_must_agree():
    with pytest.raises(AssertionError):
        ReIDData([], 2, ["only one"])


def test_problems_are_raised_together_and_cut_at_twenty():
    problems = Problems()
    problems.raise_if_any("lists")
    for number in range(1, 24):
        problems.add(f"a.txt:{number}: wrong")
    with pytest.raises(ValueError) as error:
        problems.raise_if_any("lists", "Correct them.")
    lines = str(error.value).splitlines()
    assert lines[0] == "lists: 23 problems"
    assert lines[1:21] == [f"a.txt:{number}: wrong" for number in range(1, 21)]
    assert lines[21:] == ["… and 3 more", "Correct them."]


def test_names_in_a_message_are_the_first_of_the_sorted():
    assert format_names(["b", "a"]) == "a, b"
    assert format_names("edcba") == "a, b, c, … (5 in all)"
