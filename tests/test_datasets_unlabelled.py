"""Folders of pictures without labels, and what lists beside them tell."""
import json
import logging

import pytest

from datasets.bases import UNKNOWN_PID
from datasets.sets.unlabelled import find_unlabelled


def folder_of(path, *names):
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_bytes(name.encode())
    return path


def known(unlabelled):
    """{key: number of its identity, None where nobody tells}."""
    return {sample.key: None if sample.pid == UNKNOWN_PID else sample.pid for sample in unlabelled.samples}


def test_queries_come_first_and_folders_have_names_of_their_own(tmp_path):
    query = folder_of(tmp_path / "a", "2.png", "1.png")
    galleries = [folder_of(tmp_path / name, "1.png") for name in ("z", "b")]
    found = find_unlabelled([query], galleries)
    assert [sample.key for sample in found.samples] == [
        "query/1.png", "query/2.png", "gallery/1.png", "gallery2/1.png"]
    assert found.num_query == 2
    assert found.source().read("gallery2/1.png") == b"1.png"
    assert found.path(found.samples[-1]) == tmp_path / "b/1.png"
    assert set(known(found).values()) == {None}


def test_a_training_list_beside_a_folder_tells_who_is_on_its_images(tmp_path):
    first = folder_of(tmp_path / "train_2020_cs/images", "a.png", "b.png", "c.png")
    (first.parent / "train_list.txt").write_text("a.png:3\nb.png:3\n")
    second = folder_of(tmp_path / "train_2019_cs/train", "a.png")
    (second.parent / "train_list.txt").write_text("train/a.png 3\n")
    found = find_unlabelled([], [first, second])
    assert known(found) == {"gallery/a.png": 1, "gallery/b.png": 1, "gallery/c.png": None, "gallery2/a.png": 0}
    assert found.num_query == 0


@pytest.mark.parametrize("place", ["test/ground_truth.json", "ground_truth.json"])
def test_the_ground_truth_of_a_test_folder_tells_who_is_on_its_images(tmp_path, place):
    folders = [folder_of(tmp_path / "test" / part, "a.png") for part in ("query", "gallery")]
    files = {f"{part}/a.png": {"pid": "anna", "camid": 1} for part in ("query", "gallery")}
    (tmp_path / place).write_text(json.dumps({"files": files}))
    assert known(find_unlabelled(folders[:1], folders[1:])) == {"query/a.png": 0, "gallery/a.png": 0}


def test_a_truth_of_other_images_is_no_reason_to_stop(tmp_path, caplog):
    gallery = folder_of(tmp_path / "gallery", "a.png")
    (tmp_path / "ground_truth.json").write_text('{"files": {}}')
    with caplog.at_level(logging.WARNING):
        assert known(find_unlabelled([], [gallery])) == {"gallery/a.png": None}
    assert "cannot be measured" in caplog.text


def test_the_digest_changes_with_names_and_sizes(tmp_path):
    folder = folder_of(tmp_path / "a", "1.png", "2.png")
    digests = [find_unlabelled([], [folder]).digest(), find_unlabelled([folder], []).digest()]
    (folder / "1.png").write_bytes(b"longer than before")
    digests.append(find_unlabelled([], [folder]).digest())
    (folder / "1.png").rename(folder / "3.png")
    digests.append(find_unlabelled([], [folder]).digest())
    assert len(set(digests)) == 4


def test_what_cannot_be_labelled_is_named(tmp_path):
    full, empty = folder_of(tmp_path / "full", "a.png"), folder_of(tmp_path / "empty", "notes.txt")
    for gallery, message in (([], "no folder"), ([full, full], "named twice"), ([empty], "holds no image")):
        with pytest.raises(ValueError, match=message):
            find_unlabelled([], gallery)
    with pytest.raises(NotADirectoryError, match="nowhere"):
        find_unlabelled([tmp_path / "nowhere"], [full])
    (tmp_path / "train_list.txt").write_text("a.png\n")
    with pytest.raises(ValueError, match=r"train_list.txt:1: expected 'name:pid'"):
        find_unlabelled([], [full])
