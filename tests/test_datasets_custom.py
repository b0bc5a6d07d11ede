"""Sets of one's own: a tree of identity folders, and a CSV."""
from __future__ import annotations

import csv
import io

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


def test_pictures_in_sub_folders_belong_to_their_person(tmp_path):
    touch(tmp_path, "alice/cam1/1.jpg", "alice/cam2/day/1.tif", "bob/1.JFIF", "bob/2.gif", "bob/cam1/.cache/3.jpg")
    data = load_tree(tmp_path)
    assert named(data.train, data.pid_names) == [
        ("mine/alice/cam1/1.jpg", "mine/alice", 0), ("mine/alice/cam2/day/1.tif", "mine/alice", 0),
        ("mine/bob/1.JFIF", "mine/bob", 0), ("mine/bob/2.gif", "mine/bob", 0)]


def test_what_a_tree_passes_over_is_counted_and_named_in_one_warning(tmp_path, caplog):
    touch(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "train/a/3.heic", "train/a/notes.txt", "train/b/1.jpg",
          "train/c/cam1/1.heic", "train/loose.jpg", "train/.hidden", "train/a/Thumbs.db", "__MACOSX/a/1.jpg",
          "query/d/1.jpg", "gallery/d/1.jpg")
    (tmp_path / "gallery/e").mkdir()
    load_tree(tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        f"{tmp_path}: passed over 2 .heic, 1 .jpg, 1 .txt: loose.jpg, train/a/3.heic, train/a/notes.txt, … (4 in all); "
        "2 folders without an image: gallery/e, train/c; 1 of 2 people not trained on, since they have a single image: "
        "b"]
    caplog.clear()
    load_tree(tmp_path, ("test",))
    assert "1 folder without an image: gallery/e" in caplog.text
    assert "heic" not in caplog.text


def test_a_tree_without_anything_odd_is_read_without_a_warning(tmp_path, caplog):
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "a/Thumbs.db", "a/.DS_Store", ".ipynb_checkpoints/1.jpg")
    load_tree(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(("folders", "renames"), [
    (("train", "query", "test"), "rename test/ to gallery/"), (("Train", "Query", "Gallery"), "Train/ to train/"),
    (("train", "val"), "val/ to query/ and gallery/"),
    (("training", "testing"), "testing/ to gallery/, training/ to train/"),
    (("train", "probe", "gallery"), "probe/ to query/"),
    (("bounding_box_train", "query", "bounding_box_test"), "bounding_box_test/ to gallery/"),
])
def test_splits_by_other_names_are_not_read_as_people(folders, renames, tmp_path):
    touch(tmp_path, *(f"{folder}/a/{n}.jpg" for folder in folders for n in (1, 2)))
    with pytest.raises(ValueError, match=renames):
        load_tree(tmp_path)


def test_a_person_may_be_called_test(tmp_path):
    touch(tmp_path, "test/1.jpg", "test/2.jpg", "a/1.jpg", "a/2.jpg")
    assert load_tree(tmp_path).pid_names == ["mine/a", "mine/test"]


def test_a_folder_unzipped_into_itself_is_not_one_person(tmp_path):
    touch(tmp_path, "people/a/1.jpg", "people/a/2.jpg", "people/b/1.jpg")
    with pytest.raises(ValueError, match=rf"single folder, people/.*name {tmp_path.name}/people in DATASETS.NAMES"):
        load_tree(tmp_path)


def test_a_missing_tree_is_named(tmp_path):
    (tmp_path / "People").mkdir()
    with pytest.raises(NotADirectoryError, match=r"no folder .*nowhere.*tree:FOLDER.*\(folders there: People\)"):
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
    ("i/7.jpg,dora,1,val", "split 'val' is not one of .*; it takes columns is_query and is_gallery"),
    ("i/7.jpg,,1,train", "the pid is empty"),
    ("i/7.jpg,dora,-1,train", "expected a camid such as 3 or cam3, or none, got '-1'"),
    ("i/7.jpg,dora,1.5,train", "expected a camid such as"),
    ("i/7.jpg,dora,a,train", "expected a camid such as"),
    ("i/8.jpg,dora,1,train", "no such image: 'i/8.jpg'"),
    ("i/7.JPEG,dora,1,train", r"no such image \(there is '7.jpg'\): 'i/7.JPEG'"),
    ("I/7.jpg,dora,1,train", r"no such image \(No such file or directory\) \(there is 'i'\): 'I/7.jpg'"),
    ("D:\\\\i\\\\7.jpg,dora,1,train", "only name files inside .*'D:/+i/+7.jpg'"),
    ("./i/0.jpg,dora,1,train", "'i/0.jpg' is in train already, in line 2"),
    ("i/7.jpg,dora,1,train,x", "5 cells, where the header has 4; one that holds ',' needs quotes"),
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
    for text, fault in (("path,pid\n", "it lacks split and has 'path', 'pid': .* add .*split: train, query or gallery"),
                        ("", "has nothing"),
                        ("i/0.jpg,alice,1,train\n", "put the line path,pid,camid,split"),
                        ("path,id,label,split\n", "'id' and 'label' could both be the pid; rename the right"),
                        ("file,image,pid,split\n", "'file' and 'image' could both be the path"),
                        ("pid,PID,path,split\n", "'pid' and 'PID' could both be the pid")):
        with pytest.raises(ValueError, match=rf"list\.csv:1: .*{fault}"):
            load_csv(write_csv(tmp_path, text))
    with pytest.raises(ValueError, match=r"list\.csv:2: not UTF-8"):
        load_csv(write_csv(tmp_path, HEADER.encode() + b"\xff\xfe"))
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.csv.*\(there: list\.csv\)"):
        load_csv(tmp_path / "nowhere.csv")


def rows_of(**changes):
    """The cells of GOOD's lines without the header; changes: of a column, what becomes of its cells."""
    rows = [dict(zip(HEADER.strip().split(","), line, strict=True)) for line in csv.reader(GOOD.splitlines()[1:])]
    return [{column: str(changes.get(column, str)(cell)) for column, cell in row.items()} for row in rows]


def table(rows, header="path,pid,camid,split", delimiter=","):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(header.split(","))
    writer.writerows(row.values() for row in rows)
    return out.getvalue()


@pytest.mark.parametrize("text", [
    table(rows_of(), delimiter=";"), table(rows_of(), delimiter="\t"), table(rows_of(), delimiter="|"),
    "sep=;\r\n" + table(rows_of(), delimiter=";"),
    "# made by hand\r\n#\n" + table(rows_of()), "#" + table(rows_of()), "# a path, made by hand\n# " + table(rows_of()),
    table(rows_of(), delimiter="\t").encode("utf-16"), "\n" + table(rows_of()),
    table(rows_of(), "Path,PID,CamID,Split"), table(rows_of(), "path, pid, camid, split"),
    table(rows_of(), "img_path,Person ID,camera_id,set"), table(rows_of(), "filename,identity,Camera,subset"),
    table(rows_of(), "image,id,cam,split"), GOOD.replace(",", " ,  ").replace('"bob ,   jr"', '"bob, jr"'),
    table(rows_of(path="./{}".format)), table(rows_of(path=lambda path: path.replace("/", "\\"))),
    table(rows_of(path=".\\{}".format)), table(rows_of(path=lambda path: path.replace("/", "//"))),
    table(rows_of(camid=lambda camid: int(camid) - 1)), table(rows_of(camid="cam{}".format)),
    table(rows_of(camid="c{:0>3}".format)), table(rows_of(camid="{}.0".format)),
    table(rows_of(camid="Camera {}".format)), table(rows_of(camid=lambda camid: " abc"[int(camid)])),
    table(rows_of(split=str.upper)),
    table([{"": number, **row} for number, row in enumerate(rows_of())], "Unnamed: 0," + HEADER.strip()),
    table([{**row, "label": "x"} for row in rows_of()], "path,pid,camid,split,label"),
])
def test_what_is_unambiguous_in_a_csv_is_read(text, tmp_path):
    data, wanted = load_csv(write_csv(tmp_path, text)), load_csv(write_csv(tmp_path, GOOD))
    assert data == wanted


def test_paths_into_the_csvs_folder_may_be_whole(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    wanted = load_csv(write_csv(tmp_path / "real", GOOD))
    for folder in ("real", "link"):
        text = table(rows_of(path=f"{tmp_path / folder}/{{}}".format))
        (tmp_path / "real/list.csv").write_text(text)
        assert load_csv(tmp_path / folder / "list.csv") == wanted


def test_the_log_says_which_columns_of_a_csv_are_read(tmp_path, caplog):
    with caplog.at_level("INFO"):
        load_csv(write_csv(tmp_path, table([{**row, "x": "1"} for row in rows_of()], "Image,label,cam,set,age")))
    assert "read path from 'Image', pid from 'label', camid from 'cam', split from 'set'; passed over: " in caplog.text


def test_people_of_a_csv_who_are_not_trained_on_are_named(tmp_path, caplog):
    path = write_csv(tmp_path, GOOD + "i/6.jpg,dora,1,train\ni/7.jpg,-1,1,train\n")
    load_csv(path)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{path}: 1 image of -1, which is junk; 1 of 3 people not trained on, since they have a single image: dora"]


def test_a_csv_without_a_column_of_cameras_has_unknown_ones(tmp_path):
    rows = [{column: cell for column, cell in row.items() if column != "camid"} for row in rows_of()]
    data = load_csv(write_csv(tmp_path, table(rows, "path,pid,split")))
    assert {sample.camid for sample in data.train} == {0}
    assert not data.eval_sets["mine"].drop_same_camera


def test_a_number_that_pandas_wrote_as_a_fraction_is_that_number(tmp_path):
    lines = ["path,pid,camid,split", "i/0.jpg,3.0,1.0,train", "i/1.jpg,3,,train", "i/2.jpg,-1.0,1.0,train",
             "i/3.jpg,v1.0,nan,train", "i/4.jpg,v1.0,2.0,train"]
    data = load_csv(write_csv(tmp_path, "\n".join(lines)))
    assert named(data.train, data.pid_names) == [("mine/i/0.jpg", "mine/3", 1), ("mine/i/1.jpg", "mine/3", 0),
                                                 ("mine/i/3.jpg", "mine/v1.0", 0), ("mine/i/4.jpg", "mine/v1.0", 2)]


OML = """,label,path,split,is_query,is_gallery{}
0,3,i/0.jpg,train,,{}
1,3,i/1.jpg,train,,{}
2,5,i/2.jpg,validation,True,False{}
3,5,i/3.jpg,validation,True,True{}
4,5,i/4.jpg,validation,0.0,1.0{}
"""


def test_open_metric_learnings_columns_are_understood(tmp_path):
    data = load_csv(write_csv(tmp_path, OML.format(*[""] * 6)))
    pair = data.eval_sets["mine"]
    assert data.pid_names == ["mine/3"]
    assert [sample.key[7] for sample in pair.query] == ["2", "3"]
    assert [sample.key[7] for sample in pair.gallery] == ["3", "4"]
    with pytest.raises(ValueError, match=r"list.csv:4: .*'validation', and neither is_query nor is_gallery is true"):
        load_csv(write_csv(tmp_path, OML.format(*[""] * 6).replace("True,False", "False,False")))
    boxes = OML.format(",x_1,y_1,x_2,y_2", *[",1,2,30,40"] * 5)
    with pytest.raises(ValueError, match=r"list.csv:2: the columns x_1, y_1, x_2, y_2 are boxes in larger pictures"):
        load_csv(write_csv(tmp_path, boxes))
    assert load_csv(write_csv(tmp_path, OML.format(",x_1,y_1,x_2,y_2", *[",,,,"] * 5))) == data
