"""The validation split: who is chosen, what the file holds, and what a training and a test make of it."""
from __future__ import annotations

import json
import random
import shutil
from collections import Counter

import pytest
from conftest import TINY
from set_files import load_naic, write_image

from datasets.bases import ReIDData, Sample
from datasets.files.images import FolderSource, decode
from datasets.sets.domains import domain_of
from datasets.validation.cut import SplitRequest, choose_queries, cut
from datasets.validation.people import people_of
from datasets.validation.split import leave_out, read_split, write_split

SETTINGS = {"sets": "tree", "seed": 5}


def make_data(root, identities, camids=(0,)):
    """identities: [(green images, normal images)] -> ReIDData below `root`, with cameras in turn."""
    samples = []
    for pid, counts in enumerate(identities):
        for green, count in zip((True, False), counts, strict=True):
            for number in range(count):
                key = f"{pid:02}/{'green' if green else 'normal'}{number}.png"
                write_image(root / key, pid, number, green)
                samples.append(Sample(key, pid, camids[number % len(camids)]))
    names = [f"p{pid:02}" for pid in range(len(identities))]
    return ReIDData(samples, len(names), names)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """8 green identities of 3 images, 8 normal ones of 4 with a green image each, and 4 of a single green image."""
    root = tmp_path_factory.mktemp("mixed")
    return make_data(root, [(3, 0)] * 8 + [(1, 4)] * 8 + [(1, 0)] * 4), FolderSource(root)


PLAN = SplitRequest(identities=6, distractors=4, green=0.5, queries=2, seed=5)


def names_of(side, pair):
    return Counter(pair.pid_names[sample.pid] for sample in side)


def test_the_plan_is_met_in_identities_shares_and_queries(mixed):
    split = cut(*mixed, PLAN, SETTINGS)
    assert (len(split.queried), len(split.distractors)) == (6, 4)
    assert not set(split.queried) & set(split.distractors)
    for domain, main in (("green", range(8)), ("normal", range(8, 16))):
        pair = split.eval_sets[domain]
        queries = names_of(pair.query, pair)
        assert len(queries) == 3
        assert set(queries) <= {f"p{pid:02}" for pid in main} & set(split.queried)
        assert set(queries.values()) == {2}
        gallery = names_of(pair.gallery, pair)
        assert all(gallery[name] >= 1 for name in queries)
    distractors = [int(name[1:]) for name in split.distractors]
    assert sum(pid < 8 or pid >= 16 for pid in distractors) == 2


def test_every_image_of_the_chosen_stands_in_the_evaluation_of_its_own_domain(mixed):
    data, source = mixed
    split = cut(data, source, PLAN, SETTINGS)
    listed = [sample.key for pair in split.eval_sets.values() for sample in (*pair.query, *pair.gallery)]
    chosen = set(split.pid_names)
    assert sorted(listed) == [sample.key for sample in data.train if data.pid_names[sample.pid] in chosen]
    for domain, pair in split.eval_sets.items():
        for sample in (*pair.query, *pair.gallery):
            assert domain_of(decode(source.read(sample.key))) == domain
    # A green picture of a normal identity matches no green query.
    green = split.eval_sets["green"]
    assert any(name >= "p08" for name in names_of(green.gallery, green))


def test_without_domains_no_image_is_read_and_there_is_one_evaluation(mixed):
    split = cut(mixed[0], None, SplitRequest(6, 4, None, compare=False), SETTINGS)
    assert list(split.eval_sets) == ["validation"]
    assert len(split.eval_sets["validation"].query) == 6


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_lists(mixed):
    data, source = mixed
    shuffled = random.Random(3).sample(data.train, len(data.train))
    assert cut(ReIDData(shuffled, data.num_classes, data.pid_names), source, PLAN, SETTINGS) == cut(
        data, source, PLAN, SETTINGS)
    others = [cut(data, source, SplitRequest(6, 4, 0.5, 2, seed), SETTINGS).queried for seed in range(4)]
    assert len({tuple(queried) for queried in others}) == 4


def test_identities_that_share_a_picture_are_one_person_and_stay_together(tmp_path, caplog):
    caplog.set_level("INFO")
    data = make_data(tmp_path, [(4, 0)] * 6)
    for one, other in (("00/green1", "02/green3"), ("02/green0", "05/green2")):  # 00, 02 and 05 are one
        shutil.copy(tmp_path / f"{one}.png", tmp_path / f"{other}.png")
    source = FolderSource(tmp_path)
    people = people_of(data, source)
    assert [person.names for person in people] == [["p00", "p02", "p05"], ["p01"], ["p03"], ["p04"]]
    keys = [sample.key for sample in people[0].samples]
    assert len(keys) == 10
    assert not {"02/green3.png", "05/green2.png"} & set(keys)
    assert "2 of 6 identities share a picture" in caplog.text
    assert [person.names for person in people_of(data, None)] == [[name] for name in data.pid_names]

    splits = [cut(data, source, SplitRequest(2, 1, 1.0, seed=seed), SETTINGS) for seed in range(8)]
    for names in (names for split in splits for names in (split.queried, split.distractors)):
        assert len({"p00", "p02", "p05"} & set(names)) in (0, 3)
    asked = next(split for split in splits if "p00" in split.queried)
    pair = asked.eval_sets["green"]
    assert (len(asked.queried), names_of(pair.query, pair)["p00"], names_of(pair.gallery, pair)["p00"]) == (4, 1, 9)
    assert not {"p02", "p05"} & set(names_of(pair.gallery, pair))


def test_a_single_camera_cuts_a_split_whose_queries_have_a_match(tmp_path, caplog):
    data = make_data(tmp_path, [(0, 4)] * 4, camids=(3,))
    pair = cut(data, FolderSource(tmp_path), SplitRequest(2, 0, None), SETTINGS).eval_sets["validation"]
    assert not pair.drop_same_camera
    assert {sample.pid for sample in pair.query} <= {sample.pid for sample in pair.gallery}
    assert "all images are from one camera" in caplog.text
    each_its_own = [Sample(key, pid, pid + 1) for key, pid, *_ in data.train]
    with pytest.raises(ValueError, match=r"2 with a match for a query in validation .where cameras are known, a match"):
        cut(ReIDData(each_its_own, 4, data.pid_names), FolderSource(tmp_path), SplitRequest(2, 0, None), SETTINGS)


def test_the_demos_shared_identities_are_found(tiny_data):
    data = load_naic(tiny_data, parts=("train",))
    people = people_of(data, FolderSource(tiny_data / "MyDataSet"))
    together = [person.names for person in people if len(person.names) > 1]
    assert len(together) == TINY.shared
    assert [name.rsplit("_", 1)[0] for name in together[0]] == ["train_2020_cs", "train_2020_fs"]


@pytest.mark.parametrize(("plan", "fault"), [
    (SplitRequest(18, 0, 0.5), "missing are 1 with a match for a query in green"),
    (SplitRequest(1, 18, 1.0), r"missing are \d+ as distractors in green"),
    (SplitRequest(10, 10, 0.5), "10 identities and 10 distractors of 20 leave none"),
])
def test_a_plan_that_cannot_be_met_says_what_is_missing(mixed, plan, fault):
    with pytest.raises(ValueError, match=fault):
        cut(*mixed, plan, SETTINGS)


@pytest.mark.parametrize("values", [(0, 1, 0.5, 1, 0), (1, -1, 0.5, 1, 0), (1, 1, 1.5, 1, 0), (1, 1, None, 0, 0)])
def test_a_plan_of_no_meaning_is_refused(values):
    with pytest.raises(ValueError, match=r"at least 1|no share"):
        SplitRequest(*values)


def test_an_identity_with_an_unreadable_image_is_passed_over(tmp_path, caplog):
    data = make_data(tmp_path, [(3, 0)] * 4)
    (tmp_path / "02/green1.png").write_bytes(b"no picture")
    split = cut(data, FolderSource(tmp_path), SplitRequest(2, 1, 1.0), SETTINGS)
    assert "p02" not in split.pid_names
    assert "identity p02 is passed over: 02/green1.png: not a PNG" in caplog.text


@pytest.mark.parametrize(("camids", "expected"), [
    ([1, 1, 1], 0), ([1, 1, 2], 2), ([1, 2], 1), ([1, 2, 3], 2), ([1, 2, 2, 1], 2), ([0, 0, 0], 2), ([0, 0], 1),
    ([0], 0), ([1, 2, 1, 2], 2),
])
def test_every_query_keeps_a_match_from_another_camera(camids, expected):
    samples = [Sample(str(number), 0, camid) for number, camid in enumerate(camids)]
    queries = choose_queries(samples, 2)
    rest = [sample for sample in samples if sample not in queries]
    assert len(queries) == expected
    for query in queries:
        assert any(0 in (query.camid, other.camid) or query.camid != other.camid for other in rest)


def slowly_chosen(samples: list[Sample], most: int) -> list[Sample]:
    """As the words say it: each query has a match among those that are none."""
    queries: list[Sample] = []
    for sample in samples:
        tried = [*queries, sample]
        rest = [other for other in samples if other not in tried]
        if len(queries) < most and all(any(0 in (query.camid, other.camid) or query.camid != other.camid
                                           for other in rest) for query in tried):
            queries = tried
    return queries


def test_queries_are_chosen_as_their_definition_has_it():
    draw = random.Random(0)
    for _ in range(500):
        samples = [Sample(str(number), 0, draw.choice([0, 1, 1, 1, 2, 3][draw.randrange(2):]))
                   for number in range(draw.randint(1, 7))]
        assert choose_queries(samples, 4) == slowly_chosen(samples, 4)


def test_an_identity_of_a_hundred_thousand_images_of_one_camera_is_looked_at_once():
    """Each image beside each other would be ten billion comparisons."""
    assert choose_queries([Sample(str(number), 0, 1) for number in range(100_000)], 1) == []


# ------------------------------------------------------------------ the file
@pytest.mark.parametrize("camids", [(0,), (1, 2, 3), (0, 2)])
def test_the_file_reads_back_to_the_split(tmp_path, camids):
    split = cut(make_data(tmp_path, [(3, 0)] * 6, camids), FolderSource(tmp_path), SplitRequest(3, 1, None), SETTINGS)
    write_split(tmp_path / "split.json", split)
    read = read_split(tmp_path / "split.json")
    assert read == split
    assert read.eval_sets["validation"].drop_same_camera == (0 not in camids)


def test_the_file_is_the_same_to_the_byte(mixed, tmp_path):
    for name in ("a", "b"):
        write_split(tmp_path / name, cut(*mixed, PLAN, SETTINGS))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def damage(content, *path):
    *inner, last, value = path
    for key in inner:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(("change", "fault"), [
    (("what", "demo"), "not a file of tools/split_validation.py"), (("format", 2), "format 2, this version reads 1"),
    (("evaluations", "green", "query", {}), "an evaluation without query"),
    (("evaluations", {}), "an evaluation without query"),
    (("evaluations", "green", "query", {"../x.png": "p00", "a.png": "p00"}), r"outside their sets' folders: \.\./x"),
    (("left_out", "queried", []), "damaged"), (("left_out", None), "damaged"), (("evaluations", []), "damaged"),
    (("cameras", {"a": "1"}), "a camera is no number"),
])
def test_a_damaged_file_is_refused(mixed, tmp_path, change, fault):
    split = cut(*mixed, SplitRequest(4, 1, 1.0), SETTINGS)
    write_split(tmp_path / "split.json", split)
    content = json.loads((tmp_path / "split.json").read_text())
    if change[-1] and isinstance(change[-1], dict):
        change = (*change[:-1], {key: split.queried[0] if name == "p00" else name for key, name in change[-1].items()})
    damage(content, *change)
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=fault):
        read_split(tmp_path / "split.json")


def test_a_missing_file_is_named_with_the_tool(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"DATASETS\.VALIDATION.*split_validation\.py"):
        read_split(tmp_path / "nowhere.json")


# ------------------------------------------------------------------ its use
def test_training_keeps_no_image_of_the_split_whether_listed_or_not(mixed):
    data, source = mixed
    split = cut(data, source, PLAN, SETTINGS)
    gone = set(split.pid_names)
    more = ReIDData([*data.train, Sample("new.png", data.pid_names.index(split.queried[0]), 0)], data.num_classes,
                    data.pid_names)
    left = leave_out(more, split)
    assert left.pid_names == [name for name in data.pid_names if name not in gone]
    assert [(sample.key, left.pid_names[sample.pid]) for sample in left.train] == [
        (sample.key, data.pid_names[sample.pid]) for sample in data.train if data.pid_names[sample.pid] not in gone]
    assert {sample.pid for sample in left.train} == set(range(left.num_classes))


def test_a_split_of_other_sets_is_warned_of_and_one_that_leaves_nothing_is_refused(mixed, caplog):
    data, source = mixed
    split = cut(data, source, PLAN, SETTINGS)
    leave_out(ReIDData([Sample("a", 0, 0)], 1, ["x"]), split)
    assert "none of its identities" in caplog.text
    with pytest.raises(ValueError, match="leaves no identity to train on"):
        leave_out(ReIDData([Sample("a", 0, 0)], 1, split.pid_names[:1]), split)
