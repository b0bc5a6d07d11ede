"""Sets of one's own: a tree of identity folders, and a CSV."""
from __future__ import annotations

import pytest
from set_files import load_kind


def load_tree(folder, parts=("train", "test")):
    return load_kind("tree", folder.parent, parts, "mine", folder.name)


def load_csv(path):
    return load_kind("csv", path.parent, name="mine", place=path.name)


def touch(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def named(samples, pid_names):
    return [(sample.key, pid_names[sample.pid], sample.camid) for sample in samples]


# ------------------------------------------------------------------ tree
def test_a_plain_tree_is_for_training(tmp_path):
    touch(tmp_path, "bob/2.jpg", "bob/1.png", "alice/1.jpg", "alice/2.jpg", "alice/notes.txt", ".hidden/1.jpg",
          "carol/1.jpg", "readme.md", "张三/1.jpg", "张三/2.jpg")
    data = load_tree(tmp_path)
    assert data.pid_names == ["mine/alice", "mine/bob", "mine/张三"]  # carol has one image
    assert named(data.train, data.pid_names) == [
        ("mine/alice/1.jpg", "mine/alice", 0), ("mine/alice/2.jpg", "mine/alice", 0), ("mine/bob/1.png", "mine/bob", 0),
        ("mine/bob/2.jpg", "mine/bob", 0), ("mine/张三/1.jpg", "mine/张三", 0), ("mine/张三/2.jpg", "mine/张三", 0)]
    assert data.eval_sets == {}


def test_a_tree_with_splits_has_an_evaluation_in_which_the_unknown_camera_counts(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "query/b/1.jpg", "gallery/b/1.jpg", "gallery/c/1.jpg")
    data = load_tree(tmp_path)
    pair = data.eval_sets["mine"]
    assert named(data.train, data.pid_names) == [("mine/train/a/1.jpg", "mine/a", 0),
                                                 ("mine/train/a/2.jpg", "mine/a", 0)]
    assert named(pair.query, pair.pid_names) == [("mine/query/b/1.jpg", "mine/b", 0)]
    assert named(pair.gallery, pair.pid_names) == [("mine/gallery/b/1.jpg", "mine/b", 0),
                                                   ("mine/gallery/c/1.jpg", "mine/c", 0)]
    assert not pair.drop_same_camera
    assert load_tree(tmp_path, ("train",)).eval_sets == {}
    assert load_tree(tmp_path, ("test",)).train == []


def test_a_tree_of_splits_and_identities_is_refused(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "alice/1.jpg")
    with pytest.raises(ValueError, match="has both train and alice"):
        load_tree(tmp_path)


def test_an_identity_that_is_a_link_out_of_the_tree_is_refused(tmp_path):
    touch(tmp_path, "tree/a/1.jpg", "elsewhere/1.jpg")
    (tmp_path / "tree" / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="b: is a link that leads out"):
        load_tree(tmp_path / "tree")


def test_a_missing_tree_is_named(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"no folder .*nowhere.*tree:FOLDER"):
        load_tree(tmp_path / "nowhere")


# ------------------------------------------------------------------ CSV
HEADER = "path,pid,camid,split\n"


def write_csv(folder, text):
    touch(folder, *(f"i/{n}.jpg" for n in range(8)))
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "list.csv").write_bytes(data)
    return folder / "list.csv"


GOOD = HEADER + """\
i/0.jpg,alice,1,train
i/1.jpg,alice,2,train
i/2.jpg,"bob, jr",1,train
i/3.jpg,"bob, jr",3,train
i/4.jpg,carol,1,query
i/4.jpg,carol,1,gallery
i/5.jpg,carol,2,gallery
i/6.jpg,-1,2,gallery
"""


@pytest.mark.parametrize("encode", [
    str.encode, lambda text: text.encode("utf-8-sig"), lambda text: text.replace("\n", "\r\n").encode()])
def test_a_csv_is_read_whatever_its_line_ends(tmp_path, encode):
    data = load_csv(write_csv(tmp_path, encode(GOOD)))
    assert named(data.train, data.pid_names) == [
        ("mine/i/0.jpg", "mine/alice", 1), ("mine/i/1.jpg", "mine/alice", 2), ("mine/i/2.jpg", "mine/bob, jr", 1),
        ("mine/i/3.jpg", "mine/bob, jr", 3)]
    pair = data.eval_sets["mine"]
    assert named(pair.query, pair.pid_names) == [("mine/i/4.jpg", "mine/carol", 1)]
    assert [sample.key for sample in pair.gallery] == ["mine/i/4.jpg", "mine/i/5.jpg"]  # i/6.jpg is junk
    assert pair.drop_same_camera


def test_columns_may_stand_in_any_order_beside_others(tmp_path):
    text = "split,note,camid,pid,path\ntrain,x,,7,i/0.jpg\ntrain,y,,7,i/1.jpg\n"
    data = load_csv(write_csv(tmp_path, text))
    assert named(data.train, data.pid_names) == [("mine/i/0.jpg", "mine/7", 0), ("mine/i/1.jpg", "mine/7", 0)]


def test_an_evaluation_with_an_unknown_camera_keeps_every_camera(tmp_path):
    text = GOOD.replace("i/5.jpg,carol,2", "i/5.jpg,carol,")
    assert not load_csv(write_csv(tmp_path, text)).eval_sets["mine"].drop_same_camera


@pytest.mark.parametrize(("line", "fault"), [
    ("i/7.jpg,dora,1,test", "split 'test' is not one of train, query, gallery"),
    ("i/7.jpg,,1,train", "the pid is empty"),
    ("i/7.jpg,dora,0,train", "expected a camid from 1"),
    ("i/7.jpg,dora,-1,train", "expected a camid from 1"),
    ("i/7.jpg,dora,a,train", "expected a camid from 1"),
    ("i/8.jpg,dora,1,train", "no such image: 'i/8.jpg'"),
    ("../list.csv,dora,1,train", "only name files inside"),
    ("/etc/passwd,dora,1,train", "only name files inside"),
    ("i/0.jpg,dora,1,train", "is in train already, in line 2"),
    ("i/7.jpg,dora", "split '' is not one of"),
])
def test_a_bad_line_is_named_with_its_number(line, fault, tmp_path):
    path = write_csv(tmp_path, GOOD + line + "\n")
    with pytest.raises(ValueError, match=rf"list\.csv:10: .*{fault}"):
        load_csv(path)


def test_a_missing_column_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"list\.csv:1: .*it lacks camid, split"):
        load_csv(write_csv(tmp_path, "path,pid\n"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_csv(write_csv(tmp_path, HEADER.encode() + b"\xff\xfe"))
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.csv"):
        load_csv(tmp_path / "nowhere.csv")
