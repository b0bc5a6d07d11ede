"""The green/normal rule and the lists that the split writes."""
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.sets.domains import domain_of, split_domains
from tools.campaigns.tool_server import run_tool

LISTS = ("query_green", "query_normal", "gallery_green", "gallery_normal")


def store(path: Path, colour: tuple[int, int, int]) -> None:
    """A plain 4 x 3 picture; colour is B, G, R."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(".png", np.full((4, 3, 3), colour, np.uint8))[1].tofile(path)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Two green and one normal query, one green and two normal gallery images, and things that are no images."""
    query, gallery = tmp_path / "query", tmp_path / "gallery"
    for name in ("z.png", "行 人.png"):
        store(query / name, (66, 66, 66))
    store(query / "a.png", (65, 200, 200))
    store(gallery / "g.png", (100, 100, 100))
    store(gallery / "m.png", (200, 200, 20))
    store(gallery / "b.png", (200, 20, 200))
    store(gallery / ".hidden.png", (1, 1, 1))
    (gallery / "readme.txt").write_text("no image")
    return query, gallery


@pytest.mark.parametrize(("colour", "domain"), [
    ((66, 66, 66), "green"), ((65, 65, 65), "normal"), ((65, 255, 255), "normal"), ((255, 65, 255), "normal"),
    ((255, 255, 65), "normal"), ((0, 0, 0), "normal"), ((255, 255, 255), "green"),
])
def test_all_three_means_must_exceed_65(colour, domain):
    assert domain_of(np.full((5, 7, 3), colour, np.uint8)) == domain


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (49, 3), (128, 64), (105, 105), (257, 129), (343, 107)])
def test_a_mean_of_exactly_65_is_normal_and_one_grey_level_more_is_green(shape):
    image = np.full((*shape, 3), 65, np.uint8)
    if image.size > 3:  # the same mean from other values
        image[0, 0], image.reshape(-1, 3)[-1] = 35, 95
    assert domain_of(image) == "normal"
    image[0, 0] += 1
    assert domain_of(image) == "green"


def test_four_sorted_lists_are_written(folders, tmp_path):
    counts = split_domains(*folders, tmp_path / "new" / "lists", workers=1, progress=False)
    assert counts == {"query_green": 2, "query_normal": 1, "gallery_green": 1, "gallery_normal": 2}
    written = {name: (tmp_path / "new" / "lists" / f"{name}.txt").read_bytes().decode() for name in LISTS}
    assert written == {"query_green": "z.png\n行 人.png\n", "query_normal": "a.png\n", "gallery_green": "g.png\n",
                       "gallery_normal": "b.png\nm.png\n"}
    assert sorted(os.listdir(tmp_path / "new" / "lists")) == sorted(f"{name}.txt" for name in LISTS)


def test_lists_are_the_same_for_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.parallel._PROCESS_WORTH", 1)
    rng = np.random.default_rng(0)
    for part, number in (("query", 40), ("gallery", 110)):
        for index in range(number):
            store(tmp_path / part / f"{index:04d}.png", tuple(rng.integers(40, 140, 3).tolist()))
    written = []
    for workers in (1, 2, 3):
        folder = tmp_path / f"lists{workers}"
        split_domains(tmp_path / "query", tmp_path / "gallery", folder, workers, progress=False)
        written.append([(folder / f"{name}.txt").read_bytes() for name in LISTS])
    assert written[0] == written[1] == written[2]
    assert all(written[0])


def test_unreadable_images_are_all_named_and_nothing_is_written(folders, tmp_path):
    (folders[0] / "cut.png").write_bytes((folders[0] / "a.png").read_bytes()[:-29])
    (folders[1] / "empty.png").touch()
    (folders[1] / "page.jpg").write_text("<html>")
    with pytest.raises(ValueError) as error:
        split_domains(*folders, tmp_path / "lists", workers=1, progress=False)
    lines = str(error.value).splitlines()
    assert lines[0] == "images that cannot be split into domains: 3 problems"
    assert lines[1] == f"{folders[0] / 'cut.png'}: the PNG file is cut off"
    assert lines[2] == f"{folders[1] / 'empty.png'}: the file is empty"
    assert lines[3].startswith(f"{folders[1] / 'page.jpg'}: not a PNG")
    assert not (tmp_path / "lists").exists()


def test_a_name_that_cannot_stand_on_a_line_is_refused(folders, tmp_path):
    store(folders[0] / "two\nlines.png", (1, 1, 1))
    with pytest.raises(ValueError, match="line break"):
        split_domains(*folders, tmp_path / "lists", workers=1, progress=False)


def test_missing_and_empty_folders_are_named(folders, tmp_path):
    with pytest.raises(NotADirectoryError, match=r"gallery folder .*nowhere"):
        split_domains(folders[0], tmp_path / "nowhere", tmp_path / "lists", progress=False)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"query folder .*bare holds no image"):
        split_domains(tmp_path / "bare", folders[1], tmp_path / "lists", progress=False)
    with pytest.raises(ValueError, match="workers=0"):
        split_domains(*folders, tmp_path / "lists", workers=0)


def tool(tmp_path: Path, *options: object) -> subprocess.CompletedProcess:
    """The tool as a user runs it, from another folder."""
    return run_tool("split_domains", *options, cwd=tmp_path)


def test_tool_takes_a_trailing_slash_and_prints_one_line(folders, tmp_path):
    done = tool(tmp_path, "--data_dir_query", f"{folders[0]}/", "--data_dir_gallery", f"{folders[1]}/",
                    "--save_dir", "lists/", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "query_green: 2, query_normal: 1, gallery_green: 1, gallery_normal: 2 -> lists\n"
    assert (tmp_path / "lists" / "query_normal.txt").read_text() == "a.png\n"


def test_tool_reports_a_mistake_without_a_traceback(folders, tmp_path):
    (folders[0] / "empty.png").touch()
    done = tool(tmp_path, "--data_dir_query", folders[0], "--data_dir_gallery", folders[1], "--save_dir", "lists")
    assert done.returncode == 2
    assert "empty.png: the file is empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_tool_splits_the_test_folder_of_a_config_and_no_set_without_domains(folders, tmp_path):
    test = tmp_path / "MyDataSet" / "image_A"
    test.mkdir(parents=True)
    for folder in folders:
        folder.rename(test / folder.name)
    words = ["--save_dir", tmp_path / "lists", "DATASETS.ROOT_DIR", tmp_path, "DATASETS.TEST_DIR", "image_A"]
    done = run_tool("split_domains", *words, "DATASETS.NAMES", "market1501+naic")
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (tmp_path / "lists").iterdir()) == sorted(LISTS)
    for more, message in (
            (["DATASETS.NAMES", "tree:a+csv:b.csv"], "tree:a+csv:b.csv has no domains: only NAIC's test pictures are"),
            (["DATASETS.NAMES", "naic", "DATASETS.TEST_DIR", "image_C"], "no test folder "),
            (["--data_dir_query", test], "name both --data_dir_query and --data_dir_gallery")):
        done = run_tool("split_domains", *words, *more)
        assert done.returncode == 2
        assert f"error: {message}" in done.stderr
