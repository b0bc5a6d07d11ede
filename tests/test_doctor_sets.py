"""The doctor examines every set that can be trained on, and says where there is nothing to train on."""
from pathlib import Path

import pytest
from doctor_data import images_of, list_of, make_naic
from set_files import IMAGES, write_image, write_set
from test_doctor_examine import texts_of

from datasets.bases import Places
from datasets.naic import TRAIN_SETS
from datasets.registry import ChosenSets, parse_names
from processor.doctor.examine import DoctorOptions, examine
from tools.campaigns.tool_server import run_tool

QUICK = {"progress": False, "workers": 1}


def examined(root: Path, names: str, tested: str = "", **options):
    """The report on the sets that a config would name."""
    sets = ChosenSets(parse_names(names), parse_names(tested or names), Places(root))
    return examine(sets, root.parent / "doctor", DoctorOptions(**QUICK, **options))


def write_csv(root: Path, *lines: str) -> None:
    """data.csv, and the pictures that it names: `path,pid,camid,split`, where a path is a number."""
    for number, line in enumerate(lines):
        path, pid = line.split(",")[:2]
        if not (root / path).exists():
            write_image(root / path, int(pid), number)
    (root / "data.csv").write_text("\n".join(["path,pid,camid,split", *lines]) + "\n")


# -------------------------------------------------------------------------------------------------- nothing to train on
def raw_download(root: Path) -> None:
    write_image(root / "train/images/a.png", 1)
    (root / "train/label.txt").write_text("a.png:1\n")
    write_image(root / "image_A/query/b.png", 1)


def empty_lists(root: Path) -> None:
    data = make_naic(root)
    for name in TRAIN_SETS:
        list_of(data, name).write_text("")


def lists_alone(root: Path) -> None:
    data = make_naic(root)
    for name in TRAIN_SETS:
        for path in images_of(data, name).iterdir():
            path.unlink()


def tree(root: Path) -> None:
    for pid in (1, 2):
        for number in range(2):
            write_image(root / f"people/person{pid}/{number}.png", pid, number)


BARREN = {
    "an empty MyDataSet": (lambda root: (root / "MyDataSet").mkdir(), "there is nothing"),
    "a raw download": (raw_download, "train/ (images/, label.txt); train/ is a training set of NAIC 2020: call it"),
    "empty lists": (empty_lists, "train_2020_fs/ (images/, train_list.txt)"),
    "lists without their images": (lists_alone, "train_2020_fs/ (images/, train_list.txt)"),
    "a folder of people": (tree, "people/ (person1/, person2/). It looks like DATASETS.NAMES tree:people"),
    "a CSV": (lambda root: write_csv(root, "1.png,1,1,train", "2.png,1,2,train"),
              "2.png, data.csv. It looks like DATASETS.NAMES csv:data.csv"),
    **{f"a root of {name}": (lambda root, name=name: write_set(root, name), f"It looks like DATASETS.NAMES {name}")
       for name in ("market1501", "dukemtmc", "msmt17", "veri")},
    "Market-1501's own folder": (lambda root: write_set(root, "market1501", "."), "NAMES market1501"),
}


@pytest.mark.parametrize("kind", BARREN)
def test_nothing_to_train_on_stops_a_training_and_what_lies_there_is_named(kind, tmp_path):
    make, text = BARREN[kind]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    report = examine(root, tmp_path / "out", DoctorOptions(**QUICK))
    assert report.stops
    (lack,) = texts_of(report)["nothing to train on"]
    assert lack.startswith("naic: no image of an identity, looked for in train_2019_cs/train_list.txt, ")
    assert text in lack


@pytest.mark.parametrize(("names", "kinds"), [
    ("market1501", {"unreadable set", "nothing to train on", "absent"}),
    ("tree:people", {"nothing to train on", "absent"}),
    ("csv:none.csv", {"unreadable set", "nothing to train on", "absent"}),
    ("csv:data.csv", {"nothing to train on", "absent"}),
])
def test_another_set_of_which_nothing_is_there_stops_a_training_too(names, kinds, tmp_path):
    root = tmp_path / "data"
    (root / "people/empty").mkdir(parents=True)
    (root / "data.csv").write_text("path,pid,camid,split\n")
    make_naic(root)
    report = examined(root, names)
    assert report.stops
    assert set(texts_of(report)) == kinds
    assert texts_of(report)["nothing to train on"][0].endswith("DATASETS.NAMES naic") == (names != "tree:people")


def test_a_training_set_that_is_named_and_absent_stops_a_training(tmp_path):
    make_naic(tmp_path)
    (tmp_path / "MyDataSet/train_2019_fs").rename(tmp_path / "elsewhere")
    for names, stops in (((), False), (("2019_cs",), False), (("2019_fs", "2020_fs"), True)):
        report = examine(tmp_path, tmp_path / "out", DoctorOptions(**QUICK, train_sets=names))
        assert report.stops == stops


def test_fewer_identities_than_a_batch_takes_stop_a_training(tmp_path):
    tree(tmp_path)
    assert not examined(tmp_path, "tree:people").stops
    texts = texts_of(examined(tmp_path, "tree:people", least_identities=8))
    assert texts["too few identities"] == ["2 with two images, where a batch takes 8"]
    (tmp_path / "people/person2/1.png").unlink()
    assert texts_of(examined(tmp_path, "tree:people")).keys() == {"too few identities", "one image", "absent"}
    write_set(tmp_path, "market1501")
    assert not examined(tmp_path, "tree:people+market1501").stops


# ----------------------------------------------------------------------------------------------------- every set
@pytest.mark.parametrize("name", IMAGES)
def test_a_public_set_is_examined_and_a_cut_off_gallery_image_of_it_is_found(name, tmp_path):
    home = write_set(tmp_path / "data", name)
    report = examined(tmp_path / "data", name)
    assert not report.stops
    assert [(row.name, row.images) for row in report.figures] == [
        (f"{name} {part}", len(images)) for part, images in IMAGES[name].items()]
    assert report.figures[0].cameras == len({camid for _, camid in IMAGES[name]["train"].values()} - {0})
    path = sorted(home / path for path in list(IMAGES[name].values())[-1])[-1]
    path.write_bytes(path.read_bytes()[:-60])
    report = examined(tmp_path / "data", name)
    assert report.stops
    kind = {".jpg": "JPEG", ".png": "PNG"}[path.suffix]
    assert texts_of(report)["truncated image"] == [
        f"{name}/{path.relative_to(home).as_posix()}: the {kind} file is cut off"]


def test_faults_of_a_users_own_set_are_found(tmp_path):
    write_csv(tmp_path / "data", "1.png,1,1,train", "2.png,1,2,train", "3.png,2,1,train", "4.png,3,1,train",
              "5.png,3,1,train", "6.png,7,1,query", "7.png,7,1,gallery", "8.png,8,1,query", "5.png,9,2,query",
              "9.png,9,1,gallery")
    (tmp_path / "data/2.png").write_bytes((tmp_path / "data/4.png").read_bytes())
    texts = texts_of(examined(tmp_path / "data", "csv"))
    assert texts.pop("one image") == ["csv/2"]
    assert texts.pop("no match") == ["csv/6.png: in the gallery its person was seen by its own camera only",
                                     "csv/8.png: in the gallery its person is missing"]
    assert texts.pop("test picture in training") == ["csv/5.png = csv/5.png, byte for byte"]
    assert texts.pop("picture of two identities") == ["csv/2.png = csv/4.png, byte for byte",
                                                      "csv/5.png = csv/5.png, byte for byte"]
    assert texts == {}


def test_a_query_is_no_match_of_itself(tmp_path):
    write_csv(tmp_path / "data", "1.png,1,,train", "2.png,1,,train", "3.png,2,,query", "3.png,2,,gallery",
              "4.png,3,,gallery")
    texts = texts_of(examined(tmp_path / "data", "csv"))
    assert texts["no match"] == ["csv/3.png: in the gallery its person is missing"]


def test_what_a_reader_refuses_is_told_and_the_rest_is_examined(tmp_path):
    home = write_set(tmp_path / "data", "market1501")
    write_image(home / "bounding_box_train/IMG_1.jpg", 5)
    (home / "bounding_box_train/0007_c2s3_070952_01.jpg").write_bytes(b"")
    texts = texts_of(examined(tmp_path / "data", "market1501"))
    assert texts.keys() == {"unreadable set", "truncated image"}
    assert "bounding_box_train/IMG_1.jpg" in texts["unreadable set"][0]


def test_sets_are_compared_with_each_other(tmp_path):
    data, home = make_naic(tmp_path), write_set(tmp_path, "market1501")
    shared = home / "bounding_box_train/0002_c1s1_000451_03.jpg"
    shared.write_bytes((images_of(data, "2020_fs") / "7_1.png").read_bytes())
    report = examined(tmp_path, "market1501+naic", tested="market1501")
    assert [row.name for row in report.figures] == ["market1501 train", "market1501 query", "market1501 gallery",
                                                    *TRAIN_SETS]
    assert texts_of(report)["same person"] == ["market1501/2 = 2020_fs 7: 1 picture shared"]
    assert set(texts_of(report)) == {"same person", "picture in two sets", "misnamed format"}


# ----------------------------------------------------------------------------------------------------------------- tool
def test_the_tool_takes_a_config_and_ends_with_1_where_a_training_would_stop(tmp_path):
    home = write_set(tmp_path / "data", "market1501")
    words = ("--root", tmp_path / "data", "--output", tmp_path / "out", "--workers", 1, "DATASETS.NAMES", "market1501")
    done = run_tool("doctor", *words)
    assert done.returncode == 0, done.stderr
    assert "market1501 gallery       4           3" in done.stdout
    (home / "bounding_box_test/0001_c2s1_000301_01.jpg").write_bytes(b"")
    done = run_tool("doctor", *words)
    assert done.returncode == 1, done.stderr
    assert "9 of 10 images are known from an earlier run" in done.stderr
    done = run_tool("doctor", *words, "--write-clean-lists")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2, "error: cleaned lists are made of NAIC's training sets, and none of them is among the sets here: market1501")
    done = run_tool("doctor", "--root", tmp_path / "data", "--output", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "It looks like DATASETS.NAMES market1501" in done.stdout
