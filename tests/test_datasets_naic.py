"""NAIC's layout: lists, identities, domains and ground truth, and an error with a place for whatever is wrong."""
import json
import logging
import os
import shlex
from pathlib import Path

import pytest
from set_files import load_kind, load_naic

from datasets.naic import TRAIN_SETS, data_root
from datasets.sets import list_files
from datasets.sets.naic_lists import MALFORMED, parse_line

LIST_LINE = {"2019": "train/{}.png {}\n", "2020": "{}.png:{}\n"}


@pytest.fixture
def root(tmp_path) -> Path:
    """A complete set: two identities of two images each in every training set, and two images a test list."""
    data = tmp_path / "MyDataSet"
    for name in TRAIN_SETS:
        images = data / f"train_{name}" / ("train" if name.startswith("2019") else "images")
        images.mkdir(parents=True)
        for image in "abcd":
            (images / f"{image}.png").touch()
        line = LIST_LINE[name[:4]]
        text = "".join(line.format(image, pid) for image, pid in zip("abcd", "7733", strict=True))
        (data / f"train_{name}" / "train_list.txt").write_text(text)
    test = data / "image_B_v1_1"
    for part in ("query", "gallery"):
        (test / part).mkdir(parents=True)
        for domain in ("green", "normal"):
            names = [f"{domain[0]}{number}.png" for number in (1, 2)]
            for name in names:
                (test / part / name).touch()
            (test / f"{part}_{domain}.txt").write_text("".join(f"{name}\n" for name in names))
    return tmp_path


def write_list(root: Path, text: str | bytes, name: str = "2020_cs", file: str = "train_list.txt") -> None:
    """Replace the list of one training set."""
    data = text if isinstance(text, bytes) else text.encode()
    (root / "MyDataSet" / f"train_{name}" / file).write_bytes(data)


def load_one(root: Path, name: str = "2020_cs", **options):
    """Load one training set: [(file, identity name)] in order."""
    data = load_naic(root, train_sets=[name], parts=("train",), **options)
    return [(sample.key.rsplit("/", 1)[1], data.pid_names[sample.pid]) for sample in data.train]


def fail(root: Path, name: str = "2020_cs", **options) -> list[str]:
    """The lines of the error that loading one training set raises."""
    with pytest.raises(ValueError) as error:
        load_naic(root, train_sets=[name], parts=("train",), **options)
    return str(error.value).splitlines()


def truth_of(root: Path, **changes: object) -> dict:
    """A truth file for `root`'s test folder; a change of None leaves the file out."""
    files = {f"{part}/{name}.png": {"pid": f"person/{name}", "camid": 1 + (part == "gallery")}
             for part in ("query", "gallery") for name in ("g1", "g2", "n1", "n2")}
    for key, value in changes.items():
        files[f"query/{key}.png"] = value
    return {"note": "…", "files": {key: value for key, value in files.items() if value is not None}}


# ------------------------------------------------------------------------------------------------------- training
def test_all_four_sets_in_their_order(root):
    data = load_naic(root, parts=("train",))
    assert [sample.key for sample in data.train] == [
        *[f"train_2019_cs/train/{image}.png" for image in "abcd"],
        *[f"train_2019_fs/train/{image}.png" for image in "abcd"],
        *[f"train_2020_cs/images/{image}.png" for image in "abcd"],
        *[f"train_2020_fs/images/{image}.png" for image in "abcd"],
    ]
    assert {sample.camid for sample in data.train} == {0}
    assert data.eval_sets == {}


def test_one_pid_in_two_sets_is_two_identities_and_classes_follow_their_names(root):
    data = load_naic(root, parts=("train",))
    assert data.pid_names == [f"train_{name}_{pid}" for name in TRAIN_SETS for pid in (3, 7)]
    assert data.num_classes == len(data.pid_names) == 8
    assert [sample.pid for sample in data.train] == [1, 1, 0, 0, 3, 3, 2, 2, 5, 5, 4, 4, 7, 7, 6, 6]


def test_root_may_be_the_data_folder_itself(root):
    assert load_naic(root / "MyDataSet") == load_naic(root) == load_naic(str(root) + os.sep)
    assert data_root(root) == data_root(root / "MyDataSet") == root / "MyDataSet"
    renamed = (root / "MyDataSet").rename(root / "naic")
    assert data_root(renamed) == renamed
    with pytest.raises(FileNotFoundError, match=r"no NAIC data in .*DATASETS\.ROOT_DIR"):
        data_root(root / "nowhere")


def test_names_are_sorted_as_texts(root):
    for image in "ef":
        (root / "MyDataSet/train_2020_cs/images" / f"{image}.png").touch()
    write_list(root, "a.png:9\nb.png:9\nc.png:10\nd.png:10\ne.png:2\nf.png:2\n")
    data = load_naic(root, train_sets=["2020_cs"], parts=("train",))
    assert data.pid_names == ["train_2020_cs_10", "train_2020_cs_2", "train_2020_cs_9"]


def test_class_indices_do_not_depend_on_the_order_of_lines(root):
    before = load_naic(root, parts=("train",))
    for name in TRAIN_SETS:
        path = root / "MyDataSet" / f"train_{name}" / "train_list.txt"
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    after = load_naic(root, parts=("train",))
    assert before.pid_names == after.pid_names
    assert sorted(before.train) == sorted(after.train)
    assert [sample.key[-5] for sample in after.train[:4]] == list("dcba")


@pytest.mark.parametrize("text", [
    b"a.png:7\nb.png:7\nc.png:3\nd.png:3\n",
    b"a.png:7\nb.png:7\nc.png:3\nd.png:3",
    b"a.png:7\r\nb.png:7\r\nc.png:3\r\nd.png:3\r\n",
    b"a.png:7\r\nb.png:7\r\nc.png:3\r\nd.png:3",
    b"\xef\xbb\xbfa.png:7\nb.png:7\nc.png:3\nd.png:3\n",
    b"\xef\xbb\xbfa.png:7\r\nb.png:7\r\nc.png:3\r\nd.png:3",
    b"\n\na.png:7\n  \t\nb.png:7\n\r\nc.png:3\nd.png:3\n\n\n",
    b"a.png 7\nb.png 7\nc.png 3\nd.png 3\n",
    b"a.png:7\nb.png 7\n  c.png : 3 \nd.png\t3\n",
    b"a.png: 7\nb.png  7\nc.png :3\nd.png  :  3\n",
    b"a.png:007\nb.png 07\nc.png:03\nd.png:3\n",
])
def test_every_way_to_write_a_list_means_the_same(root, text):
    write_list(root, text)
    assert load_one(root) == [("a.png", "train_2020_cs_7"), ("b.png", "train_2020_cs_7"),
                              ("c.png", "train_2020_cs_3"), ("d.png", "train_2020_cs_3")]


def test_both_separators_are_read_in_a_2019_list(root):
    write_list(root, "train/a.png:7\ntrain/b.png 7\ntrain/c.png: 3\ntrain/d.png 3", "2019_fs")
    assert [pid for _, pid in load_one(root, "2019_fs")] == ["train_2019_fs_7"] * 2 + ["train_2019_fs_3"] * 2


def test_a_line_is_split_at_its_last_separator(root):
    images = root / "MyDataSet/train_2020_cs/images"
    names = ["two words.png", "c1:s2 0.png", "行人 甲.png", "12:30:00.png", "1 2"]
    for name in names:
        (images / name).touch()
    write_list(root, "".join(f"{name}{':' if number % 2 else ' '}5\n" for number, name in enumerate(names)))
    assert load_one(root) == [(name, "train_2020_cs_5") for name in names]


def test_pid_zero_and_a_very_long_pid_are_pids(root):
    long = "9" * 5000
    write_list(root, f"a.png:0\nb.png:00\nc.png:{long}\nd.png:{long}\n")
    assert [pid for _, pid in load_one(root)] == ["train_2020_cs_0"] * 2 + [f"train_2020_cs_{long}"] * 2


@pytest.mark.parametrize(("line", "problem"), [
    ("a.png", "expected 'name:pid' or 'name pid' with a pid of digits, got 'a.png'"),
    ("a.png:", "expected 'name:pid' or 'name pid' with a pid of digits, got 'a.png:'"),
    (":7", "expected 'name:pid' or 'name pid' with a pid of digits, got ':7'"),
    ("7", "expected 'name:pid' or 'name pid' with a pid of digits, got '7'"),
    ("a.png:x", "expected 'name:pid' or 'name pid' with a pid of digits, got 'a.png:x'"),
    ("a.png:-1", "expected 'name:pid' or 'name pid' with a pid of digits, got 'a.png:-1'"),
    ("a.png:1.0", "expected 'name:pid' or 'name pid' with a pid of digits, got 'a.png:1.0'"),
    ("a.png 7 # seven", "expected 'name:pid' or 'name pid' with a pid of digits, got 'a.png 7 # seven'"),
    ("a.png:²", "expected 'name:pid' or 'name pid' with a pid of digits, got 'a.png:²'"),
    ("a.png::7", "expected 'name:pid' or 'name pid' with a pid of digits, got 'a.png::7'"),
    ("a.png,7", "expected 'name:pid' or 'name pid' with a pid of digits, got 'a.png,7'"),
    ("../a.png:7", "a list may only name files inside its own folder, got '../a.png'"),
    ("x/../../a.png:7", "a list may only name files inside its own folder, got 'x/../../a.png'"),
    ("/etc/passwd:7", "a list may only name files inside its own folder, got '/etc/passwd'"),
    ("C:/a.png:7", "a list may only name files inside its own folder, got 'C:/a.png'"),
    ("..\\a.png:7", r"a list may only name files inside its own folder, got '..\\a.png'"),
    ("./a.png:7", "a list may only name files inside its own folder, got './a.png'"),
    ("none.png:7", "no such image: 'none.png' in {images}"),
    ("a.png/b.png:7", "no such image (Not a directory): 'a.png/b.png' in {images}"),
    ("sub/b.png:7", "no such image (No such file or directory): 'sub/b.png' in {images}"),
    ("A.png:7", "no such image (there is 'a.png'): 'A.png' in {images}"),
    ("a.png:8", "'a.png' is identity 8 here and identity 7 in line 1"),
])
def test_a_wrong_line_is_named_with_its_place(root, line, problem):
    write_list(root, f"a.png:7\nb.png:7\n\n{line}\nc.png:3\nd.png:3\n")
    images = root / "MyDataSet/train_2020_cs/images"
    assert fail(root)[:2] == ["training lists: 1 problem",
                              f"train_2020_cs/train_list.txt:4: {problem.format(images=images)}"]


def test_a_2019_name_begins_with_its_folder(root):
    write_list(root, "train/a.png 7\nb.png 7\n", "2019_cs")
    assert fail(root, "2019_cs")[1] == ("train_2019_cs/train_list.txt:2: expected a name that begins with 'train/', "
                                        "got 'b.png'")


def test_all_wrong_lines_of_all_lists_are_in_one_error(root):
    write_list(root, "train/a.png\ntrain/b.png x\n", "2019_cs")
    write_list(root, "".join(f"none{number}.png:1\n" for number in range(30)), "2020_fs")
    with pytest.raises(ValueError) as error:
        load_naic(root, parts=("train",))
    lines = str(error.value).splitlines()
    assert lines[0] == "training lists: 32 problems"
    assert [line.split(": ")[0] for line in lines[1:21]] == [
        "train_2019_cs/train_list.txt:1", "train_2019_cs/train_list.txt:2",
        *[f"train_2020_fs/train_list.txt:{number}" for number in range(1, 19)]]
    assert lines[21] == "… and 12 more"


def test_a_very_long_line_is_quoted_in_part(root):
    write_list(root, "x" * 10_000)
    assert 200 < len(fail(root)[1]) < 400


def test_a_line_that_no_name_and_pid_take_is_not_decoded(root):
    write_list(root, f"a.png:7\nb.png:7\n9.png:{'7' * 100_000}\n")
    assert fail(root)[1] == ("train_2020_cs/train_list.txt:3: a line of 100,006 bytes, where a name and a pid take "
                             "16,384 at most")


def test_a_file_far_larger_than_a_list_is_not_read(root, monkeypatch):
    monkeypatch.setattr(list_files, "read_file", lambda _: pytest.fail("it was read"))
    path = root / "MyDataSet/train_2020_cs/train_list.txt"
    os.truncate(path, 2**31)
    assert fail(root) == [f"{path}: 2,147,483,648 bytes, where a list has 1,073,741,824 at most; is it a list?"]


@pytest.mark.parametrize("line", ["a {}:: ::", "a{}", "a :{}7:", "{}7", "a{}: :7"])
def test_blanks_of_a_line_are_read_once(line):
    """A pattern that may share them out on both sides of the colon takes hours for these."""
    assert parse_line(1, line.format(" " * 1_000_000), "").fault == MALFORMED


def test_a_name_of_very_many_folders_is_looked_for_from_above(root, monkeypatch):
    listed, listing = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or listing(path))
    write_list(root, f"a.png:7\nb.png:7\n{'x/' * 4000}1.png:7\n{'y/' * 500}1.png:7\n")
    assert len(fail(root)) == 4
    assert len(listed) == 5  # the image folder; of each line its folder, and the first that is missing


def test_a_list_that_is_not_utf8_is_named_with_its_line(root):
    write_list(root, "a.png:7\n行人.png:7\n".encode("gbk"))
    assert fail(root)[1].startswith("train_2020_cs/train_list.txt:2: not UTF-8 text (byte 0xd0)")


def test_a_line_break_is_a_line_feed_only(root):
    """A file name may hold other characters that Unicode calls line breaks."""
    name = "a\u2028b\x0b.png"
    (root / "MyDataSet/train_2020_cs/images" / name).touch()
    write_list(root, f"{name}:7\na.png:7\n")
    assert [file for file, _ in load_one(root)] == [name, "a.png"]


def test_links_that_leave_the_folder_are_refused_with_their_line(root):
    (root / "secret").mkdir()
    (root / "secret" / "s.png").touch()
    images = root / "MyDataSet/train_2020_cs/images"
    (images / "out.png").symlink_to(root / "secret" / "s.png")
    (images / "sub").symlink_to(root / "secret", target_is_directory=True)
    (images / "in.png").symlink_to(images / "a.png")
    (images / "broken.png").symlink_to(images / "none.png")
    write_list(root, "out.png:7\nsub/s.png:7\nin.png:7\na.png:7\nbroken.png:7\n")
    lines = fail(root)
    assert lines[0] == "training lists: 3 problems"
    outside = "a list may only name files inside its own folder, and"
    assert lines[1] == (f"train_2020_cs/train_list.txt:1: {outside} this is a link that leads out of it: 'out.png' in "
                        f"{images}")
    assert lines[2].startswith(f"train_2020_cs/train_list.txt:2: {outside} a link leads out of it: 'sub/s.png'")
    assert lines[3].startswith("train_2020_cs/train_list.txt:5: a link to no file: 'broken.png'")


def test_the_image_folder_itself_may_be_a_link(root):
    """A user keeps the sets on several disks."""
    images = root / "MyDataSet/train_2020_cs/images"
    images.rename(root / "disk")
    images.symlink_to(root / "disk", target_is_directory=True)
    assert len(load_one(root)) == 4


def test_images_in_sub_folders_are_found(root):
    sub = root / "MyDataSet/train_2020_cs/images/cam1"
    sub.mkdir()
    (sub / "a.png").touch()
    write_list(root, "cam1/a.png:7\na.png:7\n")
    data = load_naic(root, train_sets=["2020_cs"], parts=("train",))
    assert [sample.key for sample in data.train] == ["train_2020_cs/images/cam1/a.png", "train_2020_cs/images/a.png"]


def test_each_image_folder_is_listed_once(root, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    load_one(root)
    assert listed == ["images"]


def test_a_repeated_line_counts_once(root, caplog):
    write_list(root, "a.png:7\nb.png:7\na.png:7\na.png 007\nc.png:3\nc.png:3\n")
    with caplog.at_level(logging.INFO):
        assert load_one(root) == [("a.png", "train_2020_cs_7"), ("b.png", "train_2020_cs_7")]
    assert "train_2020_cs/train_list.txt: dropped 3 lines that repeat another" in caplog.text
    assert "train_2020_cs: dropped 1 of 2 identities, with one image each" in caplog.text


def test_an_identity_with_one_image_is_dropped_before_classes_are_counted(root, caplog):
    write_list(root, "a.png:1\nb.png:2\nc.png:3\nd.png:3\n")
    with caplog.at_level(logging.INFO):
        data = load_naic(root, train_sets=["2020_cs"], parts=("train",))
    assert data.pid_names == ["train_2020_cs_3"]
    assert [sample.pid for sample in data.train] == [0, 0]
    assert "train_2020_cs: dropped 2 of 3 identities" in caplog.text


@pytest.mark.parametrize("text", ["", "a.png:1\nb.png:2\n"])
def test_nothing_to_train_on_is_an_error(root, text):
    write_list(root, text)
    assert "nothing to train on" in fail(root)[0]


def test_mislabelled_images_of_2019_fs_are_dropped_there_only(root, caplog):
    wrong = ("105180993", "829283568", "943445997")
    for name in ("2019_cs", "2019_fs"):
        for image in wrong[:2]:  # the third is in the list only
            (root / "MyDataSet" / f"train_{name}" / "train" / f"{image}.png").touch()
    text = "".join(f"train/{image}.png 7\n" for image in ("a", *wrong[:2], "b"))
    write_list(root, text + f"train/{wrong[2]}.png 7\n", "2019_fs")
    write_list(root, text, "2019_cs")
    with caplog.at_level(logging.INFO):
        assert [file for file, _ in load_one(root, "2019_fs")] == ["a.png", "b.png"]
    assert "dropped 3 images known to be mislabelled" in caplog.text
    assert len(load_one(root, "2019_cs")) == 4


# ------------------------------------------------------------------------------- cleaned lists and the unlabelled set
@pytest.mark.parametrize(("name", "cleaned", "line"), [
    ("2019_cs", "new_2019_cs_train_list.txt", "train/{}.png 5\n"),
    ("2019_fs", "new_2019_fs_train_list.txt", "train/{}.png 5\n"),
    ("2020_cs", "new_train_list.txt", "{}.png:5\n"),
])
def test_a_cleaned_list_wins(root, caplog, name, cleaned, line):
    derived = root / "derived"
    derived.mkdir()
    assert len(load_one(root, name, derived_dir=derived)) == 4
    (derived / cleaned).write_text(line.format("a") + line.format("b"))
    assert [pid for _, pid in load_one(root, name, derived_dir=derived)] == [f"train_{name}_5"] * 2
    assert len(load_one(root, name)) == 4
    caplog.clear()
    write_list(root, line.format("a") + line.format("b") + line.format("c"), name, cleaned)
    with caplog.at_level(logging.INFO):
        assert len(load_one(root, name, derived_dir=derived)) == 3
    assert "the set's own folder wins" in caplog.text
    (root / "MyDataSet" / f"train_{name}" / "train_list.txt").unlink()
    assert len(load_one(root, name)) == 3


def test_a_fault_in_a_derived_list_is_named_with_its_whole_path(root):
    (root / "derived").mkdir()
    (root / "derived/new_train_list.txt").write_text("a.png\n")
    assert fail(root, derived_dir=root / "derived")[1].startswith(f"{root / 'derived/new_train_list.txt'}:1: expected")


def test_sets_without_a_cleaned_list_ignore_one(root):
    write_list(root, "a.png:5\nb.png:5\n", "2020_fs", "new_train_list.txt")
    assert len(load_one(root, "2020_fs")) == 4


def test_a_pseudo_labelled_set_has_identities_of_its_own_behind_those_of_the_others(root):
    images = root / "labels/images"
    images.mkdir(parents=True)
    for image in "abc":
        (images / f"{image}.png").touch()
    (images.parent / "label.txt").write_text("a.png:7\nb.png:7\nc.png:8")
    data = load_kind("unlabel", root, ("train",), unlabel_dir=root / "labels")
    assert [(sample.key, data.pid_names[sample.pid]) for sample in data.train] == [
        ("unlabel/images/a.png", "train_2020_fs_unlabel_7"), ("unlabel/images/b.png", "train_2020_fs_unlabel_7")]
    assert data.pid_names > load_naic(root, parts=("train",)).pid_names[-1:]


def test_a_missing_or_broken_pseudo_labelled_set_is_an_error(root):
    with pytest.raises(FileNotFoundError, match=r"no pseudo-labelled set in .*labels.*tools/pseudo_label.py makes one"):
        load_kind("unlabel", root, ("train",), unlabel_dir=root / "labels")
    (root / "labels/images").mkdir(parents=True)
    (root / "labels/label.txt").write_text("a.png:7\n../b.png:7\n")
    with pytest.raises(ValueError, match=r"labels/label.txt:1: no such image: 'a.png'") as error:
        load_kind("unlabel", root, ("train",), unlabel_dir=root / "labels")
    assert "labels/label.txt:2: a list may only name files inside its own folder" in str(error.value)


# ----------------------------------------------------------------------------------------------------- which sets
def test_a_missing_set_is_an_error_unless_the_sets_are_named(root):
    (root / "MyDataSet/train_2019_fs").rename(root / "elsewhere")
    (root / "MyDataSet/train_2020_fs/train_list.txt").unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_naic(root, parts=("train",))
    message = str(error.value)
    assert f"no folder {root / 'MyDataSet/train_2019_fs'}" in message
    assert f"no list {root / 'MyDataSet/train_2020_fs/train_list.txt'}" in message
    assert "DATASETS.TRAIN_SETS" in message
    data = load_naic(root, train_sets=["2020_cs", "2019_cs"], parts=("train",))
    assert data.pid_names == ["train_2019_cs_3", "train_2019_cs_7", "train_2020_cs_3", "train_2020_cs_7"]
    assert data.train[0].key.startswith("train_2019_cs/")
    with pytest.raises(FileNotFoundError, match="train_2019_fs"):
        load_naic(root, train_sets=["2019_fs"], parts=("train",))


def test_a_missing_image_folder_is_named_once(root):
    (root / "MyDataSet/train_2020_cs/images").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no image folder .*images"):
        load_naic(root, parts=("train",))


def test_the_list_of_a_download_is_read_where_there_is_no_other(root):
    folder, wanted = root / "MyDataSet/train_2020_fs", load_naic(root, parts=("train",))
    (folder / "train_list.txt").rename(folder / "label.txt")
    assert load_naic(root, parts=("train",)) == wanted
    write_list(root, "a.png:1\nb.png:1\n", "2020_fs")
    assert load_one(root, "2020_fs") == [("a.png", "train_2020_fs_1"), ("b.png", "train_2020_fs_1")]


@pytest.mark.parametrize(("paths", "parts", "hint"), [
    (("train/images/a.png", "train/label.txt"), "train", "train/ is a training set of NAIC 2020: call it train_2020_c"),
    (("images/a.png", "label.txt"), "train", "download/ is a training set of NAIC 2020: call it"),
    (("train/train/a.png", "train/train_list.txt"), "train", "train/ is a training set of NAIC 2019, as DMT had it"),
    (("image_A/query/a.png", "image_A/gallery/a.png"), "test", "image_A/ is a test folder: DATASETS.TEST_DIR image_A"),
    (("test/query_a/a.png", "test/gallery_a/a.png", "test/query_a_list.txt"), "test",
     "test/ holds a test set: call query_a/ query/ and gallery_a/ gallery/, and set DATASETS.TEST_DIR test"),
    (("query_b/a.png", "gallery_b/a.png"), "test", "call query_b/ query/"),
    (("bounding_box_train/a.png",), "train", "there is bounding_box_train/"),
    ((), "train", "there is nothing"),
])
def test_a_download_is_told_what_to_be_called(paths, parts, hint, tmp_path):
    (tmp_path / "download").mkdir()
    for path in paths:
        (tmp_path / "download" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "download" / path).touch()
    with pytest.raises(FileNotFoundError) as error:
        load_naic(tmp_path / "download", (parts,))
    assert hint in str(error.value)


def test_what_a_test_folder_holds_beside_images_is_counted(root, caplog):
    for name in ("a.heic", "more", "Thumbs.db"):
        (root / "MyDataSet/image_B_v1_1/query" / name).touch()
    load_naic(root, ("test",))
    assert "image_B_v1_1: passed over 1 .heic, 1 without suffix: a.heic, more" in caplog.text


def test_an_unknown_set_is_answered_with_the_choices(root):
    with pytest.raises(ValueError, match=r"unknown set '2018_cs'; choose from 2019_cs, 2019_fs, 2020_cs, 2020_fs"):
        load_naic(root, train_sets=["2020_cs", "2018_cs"])
    with pytest.raises(ValueError, match="parts="):
        load_naic(root, parts=("val",))


def test_training_needs_no_test_folder_and_testing_no_training_set(root):
    (root / "MyDataSet/image_B_v1_1").rename(root / "test")
    assert load_naic(root, parts=("train",)).num_classes == 8
    for name in TRAIN_SETS:
        (root / "MyDataSet" / f"train_{name}").rename(root / name)
    (root / "test").rename(root / "MyDataSet/image_B_v1_1")
    data = load_naic(root, parts=("test",))
    assert data.train == []
    assert list(data.eval_sets) == ["green", "normal"]


# ----------------------------------------------------------------------------------------------------------- test
def test_domains_without_truth_have_unknown_pids(root):
    pair = load_naic(root, parts=("test",)).eval_sets["green"]
    assert pair.query == [("image_B_v1_1/query/g1.png", -1, 0, 0), ("image_B_v1_1/query/g2.png", -1, 0, 0)]
    assert pair.gallery == [("image_B_v1_1/gallery/g1.png", -1, 0, 0), ("image_B_v1_1/gallery/g2.png", -1, 0, 0)]
    assert not pair.has_truth
    assert pair.pid_names == []


def test_another_test_folder_can_be_named(root):
    (root / "MyDataSet/image_B_v1_1").rename(root / "MyDataSet/image_A")
    assert load_naic(root, test_dir="image_A").eval_sets["normal"].query[0].key == "image_A/query/n1.png"
    with pytest.raises(FileNotFoundError, match=r"no test folder .*image_B_v1_1.*DATASETS\.TEST_DIR"):
        load_naic(root)
    with pytest.raises(ValueError, match=r"DATASETS\.TEST_DIR='\.\./x'"):
        load_naic(root, test_dir="../x")


def test_domain_lists_are_read_as_whole_stripped_lines_in_any_order(root):
    test = root / "MyDataSet/image_B_v1_1"
    (test / "query" / "行 人:1.png").touch()
    (test / "query_green.txt").write_bytes("\ufeffg2.png\r\n\r\n 行 人:1.png \r\ng1.png".encode())
    pair = load_naic(root, parts=("test",)).eval_sets["green"]
    assert [sample.key.rsplit("/")[-1] for sample in pair.query] == ["g1.png", "g2.png", "行 人:1.png"]


def test_files_that_are_no_images_do_not_count(root):
    for name in (".DS_Store", "Thumbs.db", ".hidden.png"):
        (root / "MyDataSet/image_B_v1_1/query" / name).touch()
    assert len(load_naic(root, parts=("test",)).eval_sets) == 2


def test_missing_domain_lists_are_answered_with_the_command(root):
    test = root / "MyDataSet/image_B_v1_1"
    (test / "query_green.txt").unlink()
    derived = root / "my lists"
    with pytest.raises(FileNotFoundError, match=r"lacks query_green\.txt") as error:
        load_naic(root, parts=("test",), derived_dir=derived)
    command = str(error.value).splitlines()[-1].strip()
    assert shlex.split(command) == ["python", "tools/split_domains.py", "--data_dir_query", str(test / "query"),
                                    "--data_dir_gallery", str(test / "gallery"), "--save_dir", str(derived)]
    with pytest.raises(FileNotFoundError) as error:
        load_naic(root, parts=("test",))
    assert str(error.value).endswith(f"--save_dir {test}")


def test_derived_domain_lists_are_used_where_the_test_folder_lacks_one(root):
    test, derived = root / "MyDataSet/image_B_v1_1", root / "derived"
    derived.mkdir()
    for path in list(test.glob("*.txt")):
        path.rename(derived / path.name)
    # A list alone in the test folder is not mixed with those of another place.
    (test / "query_green.txt").write_text("n1.png\n")
    pair = load_naic(root, parts=("test",), derived_dir=derived).eval_sets["green"]
    assert [sample.key[-6:] for sample in pair.query] == ["g1.png", "g2.png"]


@pytest.mark.parametrize(("green", "fault"), [
    ("g1.png\n", "query: 1 image in neither list: g2.png"),
    ("", "query: 2 images in neither list: g1.png, g2.png"),
    ("g1.png\ng2.png\nn2.png\n", "query: 1 image in both lists: n2.png"),
    ("g1.png\ng2.png\nx.png\n", "query: 1 image listed, but not in {query}: x.png"),
    ("g1.png\ng2.png\n../a.png\n", "query: 1 image listed, but not in {query}: ../a.png"),
])
def test_domain_lists_cover_the_folder_exactly(root, green, fault):
    test = root / "MyDataSet/image_B_v1_1"
    (test / "query_green.txt").write_text(green)
    with pytest.raises(ValueError) as error:
        load_naic(root, parts=("test",))
    lines = str(error.value).splitlines()
    assert lines[0].endswith(": 1 problem")
    assert lines[1] == fault.format(query=test / "query")
    assert lines[-1].strip().startswith("python tools/split_domains.py ")


@pytest.mark.parametrize("part", ["query", "gallery"])
def test_a_domain_without_query_or_gallery_is_left_out(root, part, caplog):
    test = root / "MyDataSet/image_B_v1_1"
    (test / f"{part}_normal.txt").write_text("")
    for name in ("n1.png", "n2.png"):
        (test / part / name).unlink()
    assert list(load_naic(root, parts=("test",)).eval_sets) == ["green"]
    counts = "0 query and 2" if part == "query" else "2 query and 0"
    assert f"domain normal of {test} is left out: it has {counts} gallery images" in caplog.text


def test_no_domain_at_all_is_an_error(root):
    test = root / "MyDataSet/image_B_v1_1"
    for part, domain in (("query", "green"), ("gallery", "normal")):
        (test / f"{part}_{domain}.txt").write_text("")
        for path in (test / part).glob(f"{domain[0]}?.png"):
            path.unlink()
    with pytest.raises(ValueError, match="nothing to test"):
        load_naic(root, parts=("test",))


@pytest.mark.parametrize("place", ["MyDataSet/image_B_v1_1", "MyDataSet"])
def test_ground_truth_is_found_inside_and_beside_the_test_folder(root, place):
    (root / place / "ground_truth.json").write_text(json.dumps(truth_of(root)), encoding="utf-8")
    data = load_naic(root, parts=("test",))
    names = ["person/g1", "person/g2", "person/n1", "person/n2"]
    assert [sample[1:3] for sample in data.eval_sets["green"].query] == [(0, 1), (1, 1)]
    assert data.eval_sets["normal"].gallery == [("image_B_v1_1/gallery/n1.png", 2, 2, 0),
                                                ("image_B_v1_1/gallery/n2.png", 3, 2, 0)]
    assert all(pair.has_truth and pair.pid_names == names for pair in data.eval_sets.values())


def test_the_truth_inside_the_test_folder_wins(root):
    (root / "MyDataSet/ground_truth.json").write_text("no JSON")
    truth = truth_of(root, g1={"pid": 5, "camid": 9})
    (root / "MyDataSet/image_B_v1_1/ground_truth.json").write_text(json.dumps(truth))
    pair = load_naic(root, parts=("test",)).eval_sets["green"]
    assert (pair.pid_names[pair.query[0].pid], pair.query[0].camid) == ("5", 9)


@pytest.mark.parametrize(("changes", "problem"), [
    ({"g1": None}, "1 test image not in it: query/g1.png"),
    ({"g1": None, "g2": None, "n1": None, "n2": None},
     "4 test images not in it: query/g1.png, query/g2.png, query/n1.png, … (4 in all)"),
    ({"g1": {"pid": "1"}}, "query/g1.png: expected"), ({"g1": {"camid": 1}}, "query/g1.png: expected"),
    ({"g1": {"pid": "1", "camid": "2"}}, "query/g1.png: expected"), ({"g1": 7}, "query/g1.png: expected"),
    ({"g1": {"pid": "1", "camid": -1}}, "query/g1.png: expected"),
    ({"g1": {"pid": True, "camid": 1}}, "query/g1.png: expected"),
])
def test_a_faulty_truth_is_an_error(root, changes, problem):
    path = root / "MyDataSet/ground_truth.json"
    path.write_text(json.dumps(truth_of(root, **changes)))
    with pytest.raises(ValueError) as error:
        load_naic(root, parts=("test",))
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path}: 1 problem"
    assert lines[1].startswith(problem)


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": []}', "no JSON", ""])
def test_a_truth_of_another_shape_is_an_error(root, text):
    (root / "MyDataSet/ground_truth.json").write_text(text)
    with pytest.raises(ValueError, match=r"ground_truth\.json: "):
        load_naic(root, parts=("test",))


def test_truth_for_other_files_does_not_matter(root):
    truth = truth_of(root)
    truth["files"]["query/other.png"] = {"pid": "aaa", "camid": 1}
    (root / "MyDataSet/ground_truth.json").write_text(json.dumps(truth))
    assert "aaa" not in load_naic(root, parts=("test",)).eval_sets["green"].pid_names


def test_nothing_is_written_into_the_data(root):
    before = sorted(root.rglob("*"))
    load_naic(root, derived_dir=root / "derived")
    assert sorted(root.rglob("*")) == before


def test_a_data_set_that_was_unpacked_into_a_folder_of_its_own_name_is_found(tiny_data, tmp_path):
    (tmp_path / "MyDataSet").mkdir()
    (tmp_path / "MyDataSet/MyDataSet").symlink_to(tiny_data / "MyDataSet")
    assert data_root(tmp_path) == data_root(tmp_path / "MyDataSet") == tmp_path / "MyDataSet/MyDataSet"
    (tmp_path / "MyDataSet/train_2020_cs").mkdir()
    assert data_root(tmp_path) == tmp_path / "MyDataSet"
