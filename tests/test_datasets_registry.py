"""Names of data sets, several sets together, and where their images come from."""
from __future__ import annotations

import os
import pickle

import pytest
from set_files import load_naic, write_image, write_set

from datasets.bases import Places, Reference
from datasets.files.images import FolderSource, MountedSource
from datasets.naic import unlabel_folder
from datasets.registry import DATASETS, PSEUDO, DatasetEntry, combine, load_sets, open_folders, parse_names, parse_roots
from datasets.sets.domains import split_domains
from datasets.sets.numbering import number_training
from datasets.sets.unlabelled import find_unlabelled


def load(names, root, parts=("train", "test"), **places):
    return load_sets(parse_names(names), Places(root, **places), parts)


def spoil_csv(root):
    with open(root / "people.csv", "a") as file:
        file.write("\n../x.jpg,1,3,train\npeople/1/none.jpg,1,3,train\npeople/1/1.jpg,1,x,train\n")
    return 3


def spoil_tree(root):
    (root / "people/1/9.jpg").symlink_to("/etc/passwd")
    (root / "people/elsewhere").symlink_to("/etc")
    return 2


def spoil_layout(root):
    folder = root / "Market-1501-v15.09.15/bounding_box_train"
    (folder / "0002_c1s1_000001_00.jpg").symlink_to("/etc/passwd")
    (folder / "thumbnail.jpg").write_bytes(b"")
    return 2


@pytest.mark.parametrize(("name", "spoil"), [("csv:people.csv", spoil_csv), ("tree:people", spoil_tree),
                                             ("market1501", spoil_layout)])
def test_what_is_wrong_in_a_training_set_is_left_out_where_that_is_asked(root, name, spoil, caplog):
    sound = load(name, root, ("train",))[0]
    count = spoil(root)
    with pytest.raises(ValueError, match=rf"(?s): {count} problems\n.*DATALOADER\.ON_BAD_IMAGE skip"):
        load(name, root, ("train",))
    assert load(name, root, ("train",), skip=True)[0] == sound
    assert f": {count} problems\n" in caplog.text
    if name != "market1501":  # its test part lies in other folders
        with pytest.raises(ValueError, match=f": {count} problems") as error:
            load(name, root, skip=True)
        assert "ON_BAD_IMAGE" not in str(error.value)


@pytest.fixture
def root(tiny_data, tmp_path):
    """NAIC (the tiny demo set), Market-1501, DukeMTMC-reID, a tree and a CSV under one root."""
    (tmp_path / "MyDataSet").symlink_to(tiny_data / "MyDataSet")
    write_set(tmp_path, "market1501")
    write_set(tmp_path, "dukemtmc")
    for pid in (1, 2):
        for number in (1, 2):
            write_image(tmp_path / "people" / str(pid) / f"{number}.jpg", pid, number)
    lines = ["path,pid,camid,split", *(f"people/{pid}/{number}.jpg,{pid},{3 * pid},train" for pid in (1, 2)
                                       for number in (1, 2))]
    (tmp_path / "people.csv").write_text("\n".join(lines))
    return tmp_path


GBK = os.fsdecode("张三".encode("gbk"))  # as a Windows archive unpacks it


def rename(path):
    return path.rename(path.with_name(f"{GBK}{path.suffix}"))


NOT_UTF8 = {
    "a picture of a tree": lambda root: rename(root / "people/1/1.jpg") and load("tree:people", root, ("train",)),
    "a person of a tree": lambda root: rename(root / "people/1") and load("tree:people", root, ("train",)),
    "a folder below a person": lambda root: (root / "people/1" / GBK).mkdir() or load("tree:people", root, ("train",)),
    "a picture of a CSV": lambda root: rename(root / "people/1/1.jpg") and load("csv:people.csv", root, ("train",)),
    "a folder of a CSV": lambda root: rename(root / "people/1") and load("csv:people.csv", root, ("train",)),
    "Market-1501": lambda root: (root / f"Market-1501-v15.09.15/query/{GBK}.jpg").touch() or load("market1501", root),
    "a picture of an MSMT17 list": lambda root: rename(next(write_set(root, "msmt17").glob("train/0000/*"))) and load(
        "msmt17", root),
    "a picture of a NAIC list": lambda root: rename(next(own_naic(root).glob("train_2020_cs/images/*"))) and load(
        "naic", root, ("train",), train_sets=["2020_cs"]),
    "NAIC's test folder": lambda root: rename(next(own_naic(root).glob("image_B_v1_1/query/*.png"))) and load(
        "naic", root, ("test",)),
    "a pseudo-labelled set": lambda root: rename(next(labelled(root / "unlabel").glob("images/*"))) and load_sets(
        [PSEUDO], Places(root, unlabel_dir=root / "unlabel"), ("train",)),
    "a folder without labels": lambda root: rename(root / "people/1/1.jpg") and find_unlabelled(
        [], [root / "people/1"]),
    "splitting domains": lambda root: rename(root / "people/1/1.jpg") and split_domains(
        root / "people/1", root / "people/2", root),
}


def own_naic(root):
    (root / "MyDataSet").unlink()
    for folder in ("train_2020_cs/images", "image_B_v1_1/query", "image_B_v1_1/gallery"):
        for name in ("a.png", "b.png"):
            write_image(root / "MyDataSet" / folder / name, 1)
    (root / "MyDataSet/train_2020_cs/train_list.txt").write_text("a.png:1\nb.png:1\n")
    return root / "MyDataSet"


@pytest.mark.parametrize("reader", NOT_UTF8)
def test_a_name_that_is_not_utf8_is_named_with_the_cure_when_a_set_is_read(reader, root):
    with pytest.raises(ValueError, match=r"\\xd5\\xc5\\xc8\\xfd.* is not UTF-8 .*convmv -f gbk") as error:
        NOT_UTF8[reader](root)
    str(error.value).encode("utf-8")  # it can be printed


# ------------------------------------------------------------------ names
def test_names_are_joined_with_plus():
    assert parse_names("naic + market1501+tree:shots/2020+csv:lists/mine.csv+tree") == [
        Reference("naic", "naic"), Reference("market1501", "market1501"), Reference("tree", "2020", "shots/2020"),
        Reference("csv", "mine", "lists/mine.csv"), Reference("tree", "tree", "tree")]
    assert parse_names("csv") == [Reference("csv", "csv", "data.csv")]


@pytest.mark.parametrize(("text", "name", "place"), [
    ("tree:people/", "people", "people"), ("tree:./people", "people", "people"),
    ("tree:my people", "my people", "my people"), ("tree:数据/人员 1", "人员 1", "数据/人员 1"),
    ("tree:people (2)", "people (2)", "people (2)"),
    ("csv:./lists/My List.CSV", "My List", "lists/My List.CSV"),
])
def test_a_folder_may_be_called_as_people_call_folders(text, name, place):
    assert parse_names(text) == [Reference(text.split(":")[0], name, place)]


@pytest.mark.parametrize(("text", "fault"), [
    ("market", "'market' is not one of csv, cuhk03, "), ("naic+", "'' is not one of"),
    ("naic:x", "'naic:x' is not one of"), ("market1501+market1501", "two sets are called 'market1501'"),
    ("tree:a/x+csv:b/x.csv", "two sets are called 'x'"), ("tree:../x", "must be a path below"),
    ("csv:/x.csv", "must be a path below"), ("tree:/data/people", "DATASETS.ROOT_DIR /data, and tree:people"),
    ("csv:C:/x.csv", "must be a path below"), ("tree:", "must be a path below"),
    ("tree:market1501", "cannot be called 'market1501'"), ("tree:train_2019_cs", "cannot be called 'train_2019_cs'"),
    ("tree:green", "cannot be called 'green'"), ("csv:all.csv", "cannot be called 'all'"),
    ("unlabel", "'unlabel' is not one of csv,"), ("tree:unlabel", "cannot be called 'unlabel'"),
    ("tree:my/photos!", "cannot be called 'photos!'"),
    ("tree:new [2]", "round brackets"), ("tree:(2) new", "the first a letter or digit"),
    ("tree:./", "must be a path below"),
    ("tree:人\udcc8", r"cannot be called '人\\udcc8'"),
])
def test_a_bad_name_is_refused_with_the_key_that_holds_it(text, fault):
    with pytest.raises(ValueError, match=f"DATASETS.TEST_NAMES=.*{fault}"):
        parse_names(text, "DATASETS.TEST_NAMES")


# ------------------------------------------------------------------ together
def test_two_sets_below_a_torchreid_root_are_combined(tmp_path):
    write_set(tmp_path, "market1501", "market1501/Market-1501-v15.09.15")
    write_set(tmp_path, "dukemtmc", "dukemtmc-reid/DukeMTMC-reID")
    data, folders = load("market1501+dukemtmc", tmp_path)
    assert folders == {"market1501": tmp_path / "market1501/Market-1501-v15.09.15",
                       "dukemtmc": tmp_path / "dukemtmc-reid/DukeMTMC-reID"}
    assert (data.num_classes, list(data.eval_sets)) == (4, ["market1501", "dukemtmc"])


def test_sets_may_lie_under_roots_of_their_own(root, tiny_data, tmp_path):
    """As a folder that holds the set, or the set's own; keys, names and everything else stay the same."""
    names, derived = "naic+market1501+dukemtmc+tree:people", tiny_data / "derived"
    together = load(names, root, derived_dir=derived)[0]
    places = {name: tmp_path.parent / f"{tmp_path.name}_{name}" for name in ("naic", "market1501", "people", "none")}
    for name, folder in (("naic", "MyDataSet"), ("market1501", "Market-1501-v15.09.15"), ("people", "people")):
        places[name].mkdir()
        (root / folder).rename(places[name] / folder)
    data, folders = load(names, root, derived_dir=derived, roots=places)
    assert data == together
    assert folders["people"] == places["people"] / "people"
    assert folders["dukemtmc"] == root / "DukeMTMC-reID"
    with pytest.raises(FileNotFoundError, match=r"no dukemtmc in .*none: expected"):
        load("dukemtmc", root, roots={"dukemtmc": places["none"]})


def test_a_csv_may_lie_under_a_root_of_its_own(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("people", "people.csv"):
        (root / name).rename(tmp_path / "elsewhere" / name)
    for place in ("elsewhere", "elsewhere/people.csv"):
        assert load("csv:people.csv", root, ("train",), roots={"people": tmp_path / place})[0].num_classes == 2


def test_a_root_may_be_the_trees_own_folder(root):
    for place in (root, root / "people"):
        data, folders = load("tree:people", "/nowhere", ("train",), roots={"people": place})
        assert (data.num_classes, folders) == (2, {"people": root / "people"})
    with pytest.raises(NotADirectoryError, match="no folder /nowhere/people"):
        load("tree:people", "/nowhere", ("train",))


def test_roots_name_sets_in_use_or_public_ones():
    references = parse_names("naic+tree:people")
    assert parse_roots(["people=~/a"]) == {"people": os.path.expanduser("~/a")}
    assert parse_roots(["cuhk03=/a"]) == {"cuhk03": "/a", "cuhk03_labeled": "/a"}
    assert parse_roots(["vehicleid_1600=/b", "vehicleid=/a"], references) == {
        name: "/b" if name == "vehicleid_1600" else "/a" for name in DATASETS if name.startswith("vehicleid")}
    assert parse_roots(["people=/a", "veri=/b=c"], references) == {"people": "/a", "veri": "/b=c"}
    with pytest.raises(ValueError, match=r"ROOTS names market, which is none of the sets in use \(naic, people"):
        parse_roots(["market=/a"], references)


@pytest.mark.parametrize("names", ["market1501+dukemtmc", "vehicleid+vehicleid_1600"])
def test_a_folder_is_trained_on_as_one_set(names, tmp_path):
    name = names.split("+")[0]
    folder = write_set(tmp_path, name)
    if name == "vehicleid":
        (folder / "train_test_split/test_list_1600.txt").write_text("0007000 700\n0007001 700\n")
        assert len(load(names, folder, ("test",))[0].eval_sets) == 20
    with pytest.raises(ValueError, match=rf"{names.replace('+', ' and ')} are both read from {folder}; .*ROOTS"):
        load(names, folder, ("train",))


def test_naic_alone_is_what_it_was(tiny_data):
    data, folders = load("naic", tiny_data, derived_dir=tiny_data / "derived")
    assert data == load_naic(tiny_data, derived_dir=tiny_data / "derived")
    assert folders == {"": tiny_data / "MyDataSet"}
    assert isinstance(open_folders(folders), FolderSource)


def test_combined_sets_share_no_identity_and_no_camera(root):
    names = ("naic", "market1501", "dukemtmc", "tree:people")
    data, _ = load("+".join(names), root, ("train",))
    alone = [load(name, root, ("train",))[0] for name in names]
    assert data.num_classes == sum(one.num_classes for one in alone)
    assert data.pid_names == sorted(name for one in alone for name in one.pid_names)
    assert [(sample.key, data.pid_names[sample.pid]) for sample in data.train] == [
        (sample.key, one.pid_names[sample.pid]) for one in alone for sample in one.train]
    cameras = [{sample.camid for sample in data.train if sample.key.startswith(f"{name}/")} for name in names[1:3]]
    assert cameras == [{1, 2, 3, 6}, {6 + 2, 6 + 5, 6 + 8}]
    assert {sample.camid for sample in data.train if not sample.key.startswith(names[1:3])} == {0}


def test_what_a_set_is_combined_with_changes_neither_its_keys_nor_its_names(root):
    one, two = (load(names, root, ("train",))[0] for names in ("market1501", "dukemtmc+naic+market1501"))
    named = [{sample.key: data.pid_names[sample.pid] for sample in data.train if sample.key.startswith("market1501/")}
             for data in (one, two)]
    assert named[0] == named[1]
    assert len(named[0]) == 4


def test_a_source_of_several_sets_reads_the_images_of_each(root):
    data, folders = load("naic+market1501+tree:people", root, ("train",))
    source = pickle.loads(pickle.dumps(open_folders(folders)))  # loader workers get a copy
    assert isinstance(source, MountedSource)
    places = {"market1501": root / "Market-1501-v15.09.15", "people": root / "people"}
    for sample in data.train:
        first, _, rest = sample.key.partition("/")
        path = places[first] / rest if first in places else root / "MyDataSet" / sample.key
        assert source.read(sample.key) == path.read_bytes()


@pytest.mark.parametrize("key", ["market1501/../people/1/1.jpg", "market1501//etc/passwd", "people/../x"])
def test_a_key_cannot_leave_its_sets_folder(key, root):
    source = open_folders(load("market1501+tree:people", root, ("train",))[1])
    with pytest.raises(ValueError, match="leads out"):
        source.read(key)


def test_a_key_of_no_set_is_refused(root):
    source = open_folders(load("market1501+tree:people", root, ("train",))[1])
    with pytest.raises(ValueError, match="'dukemtmc/x' begins with none of the sets market1501, people"):
        source.read("dukemtmc/x")


def test_a_folder_of_naics_with_another_sets_name_is_refused(root):
    (root / "image_B_v1_1").mkdir()
    for number in (1, 2):
        write_image(root / "image_B_v1_1/a" / f"{number}.jpg", 1, number)
    folders = load("naic+tree:image_B_v1_1", root, ("train",))[1]
    with pytest.raises(ValueError, match="are both called image_B_v1_1; rename one"):
        open_folders(folders)


def test_every_set_keeps_its_own_evaluation_and_protocol(root, tiny_data):
    data, _ = load("naic+market1501+dukemtmc", root, ("test",), derived_dir=tiny_data / "derived")
    assert {name: pair.drop_same_camera for name, pair in data.eval_sets.items()} == {
        "green": False, "normal": False, "market1501": True, "dukemtmc": True}
    alone = load("dukemtmc", root, ("test",))[0].eval_sets
    assert data.eval_sets["dukemtmc"] == alone["dukemtmc"]


def test_a_set_without_a_test_part_is_passed_over_beside_one_that_has(root, caplog):
    assert list(load("tree:people+market1501", root, ("test",))[0].eval_sets) == ["market1501"]
    assert "people" in caplog.text
    with pytest.raises(ValueError, match=r"nothing to test on: .*people"):
        load("tree:people", root, ("test",))


def test_a_set_without_training_images_is_named(root):
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match=r"nothing to train on: empty .*; a tree has a folder of pictures for each"):
        load("market1501+tree:empty", root, ("train",))


def test_a_single_person_is_nobody_to_be_told_from(root):
    (root / "people/2").rename(root / "elsewhere")
    with pytest.raises(ValueError, match=r"nothing to learn: people/1 is the only identity"):
        load("tree:people", root, ("train",))
    assert load("tree:people+market1501", root, ("train",))[0].num_classes == 3


def test_tree_alone_may_be_the_root_itself(root):
    data, folders = load("tree", root / "people", ("train",))
    assert folders == {"tree": root / "people"}
    assert data.pid_names == ["tree/1", "tree/2"]


def test_a_set_joins_the_others_by_one_line(root, monkeypatch):
    def load_trio(reference, places, parts):
        return number_training([(f"{reference.name}/{n}.jpg", "trio/one", 1) for n in range(3)])

    entry = DatasetEntry(load_trio, lambda reference, places: places.root / "people")
    monkeypatch.setitem(DATASETS, "trio", entry)
    data, folders = load("market1501+trio", root, ("train",))
    assert data.pid_names == ["market1501/2", "market1501/7", "trio/one"]
    assert [tuple(sample) for sample in data.train[-3:]] == [(f"trio/{n}.jpg", 2, 6 + 1, 0) for n in range(3)]
    assert folders["trio"] == root / "people"


def test_one_set_is_combined_into_itself():
    assert set(DATASETS) >= {"naic", "market1501", "msmt17", "cuhk03", "dukemtmc", "veri", "tree", "csv"}
    sentinel = object()
    assert combine([sentinel]) is sentinel


# ------------------------------------------------------------------ pseudo-labels
def labelled(folder):
    for number in (1, 2):
        write_image(folder / "images" / f"{number}.jpg", 1, number)
    (folder / "label.txt").write_text("1.jpg:0\n2.jpg:0\n")
    return folder


@pytest.mark.parametrize("names", ["naic", "market1501", "naic+market1501"])
def test_a_pseudo_labelled_set_joins_any_other(root, tmp_path, names):
    place = labelled(tmp_path / "labels")
    places = Places(root, unlabel_dir=place)
    alone, _ = load_sets(parse_names(names), places, ("train",))
    data, folders = load_sets([*parse_names(names), PSEUDO], places, ("train",))
    assert data.pid_names == [*alone.pid_names, "train_2020_fs_unlabel_0"]
    assert data.train == [*alone.train, *[(f"unlabel/images/{n}.jpg", alone.num_classes, 0, 0) for n in (1, 2)]]
    assert open_folders(folders).read("unlabel/images/1.jpg") == (place / "images/1.jpg").read_bytes()


def test_a_pseudo_labelled_set_is_looked_for_where_it_was_said_to_be_then_beside_the_sets_then_derived(tmp_path):
    for data in (tmp_path, tmp_path / "MyDataSet"):
        data.mkdir(exist_ok=True)
        own, derived, named = data / "unlabel", tmp_path / "derived/unlabel", tmp_path / "named"
        places = Places(tmp_path, derived_dir=tmp_path / "derived")
        assert unlabel_folder(PSEUDO, places) == own  # what a message about a missing one names
        derived.mkdir(parents=True)
        assert unlabel_folder(PSEUDO, places) == derived
        own.mkdir()
        assert unlabel_folder(PSEUDO, places) == own
        assert unlabel_folder(PSEUDO, Places(tmp_path, derived_dir=tmp_path / "derived", unlabel_dir=named)) == named
        own.rmdir(), derived.rmdir()


def test_a_named_pseudo_labelled_set_wins_over_naics_own(tmp_path):
    labelled(tmp_path / "MyDataSet/unlabel")
    place = labelled(tmp_path / "labels")
    (place / "images/1.jpg").write_bytes(b"another")
    source = open_folders({"": tmp_path / "MyDataSet", PSEUDO.mount: place})
    assert source.read("unlabel/images/1.jpg") == b"another"
