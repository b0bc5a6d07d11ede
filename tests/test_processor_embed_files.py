"""Rows of many pictures, and of the boxes of tracks, in files."""
import signal
import time

import cv2
import numpy as np
import pytest
from conftest import tiny_options
from processes import run_together
from test_processor_embedder import PARTS, write_checkpoint

from processor import embed_files
from processor.embed_files import Request, embed_pictures
from processor.embedder import Embedder
from processor.embedding import rows_file
from processor.embedding.picture_lists import find_pictures
from tools.campaigns.tool_server import run_tool, start_tool
from utils.files import read_json

SCRIPT = """
import os, signal, sys
from pathlib import Path
from processor.embedder import Embedder
from processor.embedding import rows_file
from utils.dist import worker_group

folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
rows_file._SECONDS_BETWEEN_FLUSHES = 0

class Items(list):
    def __getitem__(self, index):
        if index == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

with worker_group() as workers:
    embedder = Embedder.load(folder / "latest.pth", precision="float32", batch_size=2, threads=1)
    embedder.embed_into(folder / "feats.npy", Items(sorted((folder / "in").glob("*"))), on_error="none",
                        workers=workers)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, [*tiny_options(folder, folder), *PARTS])
    return folder / "latest.pth"


@pytest.fixture(scope="module")
def embedder(model):
    return Embedder.load(model, precision="float32", batch_size=2, threads=1)


def write_pictures(folder, count=12, bad=()):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    paths = [folder / f"{number:03d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        picture = random.integers(0, 255, (40, 24, 3), np.uint8)
        path.write_bytes(b"hello" if number in bad else cv2.imencode(".png", picture)[1].tobytes())
    return paths


def test_rows_in_a_file_are_those_in_memory(embedder, tmp_path):
    paths = write_pictures(tmp_path / "in", 5)
    assert embedder.embed_into(tmp_path / "feats.npy", paths) == []
    assert np.array_equal(np.load(tmp_path / "feats.npy"), embedder.embed(paths))
    embedder.embed_into(tmp_path / "raw.npy", paths, raw=True)
    for branch, feat in embedder.embed(paths, raw=True).items():
        assert np.array_equal(np.load(tmp_path / f"raw.{branch}.npy"), feat)
    assert sorted(path.name for path in tmp_path.glob("*")) == ["feats.npy", "in", "raw.global.npy", "raw.merged.npy"]
    with pytest.raises(FileExistsError, match=r"feats.npy is there already"):
        embedder.embed_into(tmp_path / "feats.npy", paths)


@pytest.mark.parametrize("processes", [1, 2])
def test_after_a_kill_the_rows_are_those_of_a_run_that_was_not_killed(model, embedder, tmp_path, processes):
    paths = write_pictures(tmp_path / "in", bad=[1])
    (tmp_path / "latest.pth").symlink_to(model)
    (tmp_path / "script.py").write_text(SCRIPT)
    codes, _, errors = run_together(processes, tmp_path / "script.py", tmp_path, 10)
    assert -signal.SIGKILL in codes, errors
    assert not (tmp_path / "feats.npy").exists()
    done = (tmp_path / "feats.npy.partial" / "done").read_bytes()
    assert 0 < sum(done) < 6
    walked = []
    rest = Embedder(embedder.runtime, embedder.info, 2, 1)
    rest.runtime = type("Counting", (), {"precision": embedder.runtime.precision, "rows": lambda _, images, sides: (
        walked.append(len(images)), embedder.runtime.rows(images, sides))[1]})()
    problems = rest.embed_into(tmp_path / "feats.npy", paths, on_error="none")
    assert len(walked) == 6 - sum(done)
    assert [index for index, _ in problems] == [1]
    assert np.array_equal(np.load(tmp_path / "feats.npy"), embedder.embed(paths, on_error="none")[0], equal_nan=True)


def test_processes_share_the_work(model, embedder, tmp_path):
    paths = write_pictures(tmp_path / "in")
    (tmp_path / "latest.pth").symlink_to(model)
    (tmp_path / "script.py").write_text(SCRIPT)
    codes, _, errors = run_together(2, tmp_path / "script.py", tmp_path, -1)
    assert codes == [0, 0], errors
    assert np.array_equal(np.load(tmp_path / "feats.npy"), embedder.embed(paths))
    assert not (tmp_path / "feats.npy.partial").exists()


def test_a_list_is_the_same_wherever_the_command_is_called(embedder, tmp_path, monkeypatch):
    write_pictures(tmp_path / "in", 3, bad=[2])
    write_pictures(tmp_path / "other" / "in", 3)
    names = ["in/000.png", "in/001.png", "in/002.png"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="item 2"):
        embedder.embed_into(tmp_path / "feats.npy", names)
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(ValueError, match="begun with pictures"):
        embedder.embed_into(tmp_path / "feats.npy", names)
    embedder.embed_into(tmp_path / "feats.npy", [tmp_path / name for name in names], on_error="none")


def test_work_of_another_list_or_batch_size_is_not_gone_on_with(embedder, tmp_path):
    paths = write_pictures(tmp_path / "in", 6, bad=[5])
    with pytest.raises(ValueError, match="item 5"):
        embedder.embed_into(tmp_path / "feats.npy", paths)
    with pytest.raises(ValueError, match=r"begun with rows 6 \(now 5\), pictures"):
        embedder.embed_into(tmp_path / "feats.npy", paths[:5])
    other = Embedder(embedder.runtime, embedder.info, 3, 1)
    with pytest.raises(ValueError, match=r"begun with batch_size 2 \(now 3\); "):
        other.embed_into(tmp_path / "feats.npy", paths)
    other.embed_into(tmp_path / "feats.npy", paths[:5], restart=True)
    assert len(np.load(tmp_path / "feats.npy")) == 5
    with pytest.raises(ValueError, match="no picture"):
        embedder.embed_into(tmp_path / "none.npy", [])


def test_a_full_disk_leaves_nothing_that_looks_whole(embedder, tmp_path, monkeypatch):
    paths = write_pictures(tmp_path / "in", 2)

    def refuse(*_):
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(rows_file, "make_mapped_array", refuse)
        with pytest.raises(OSError, match="no room"):
            embedder.embed_into(tmp_path / "feats.npy", paths)
    embedder.embed_into(tmp_path / "feats.npy", paths)


def test_a_stop_signal_ends_the_command_with_75_and_the_command_goes_on(model, embedder, tmp_path):
    paths = write_pictures(tmp_path / "in", 150)
    words = ["--model", model, "--images", tmp_path / "in", "--output", tmp_path / "out", "--precision", "float32",
             "--batch-size", 2, "--threads", 1]
    running = start_tool("embed", *words)
    while not (tmp_path / "out" / "feats.npy.partial" / "begun.json").exists():
        assert running.poll() is None, running.stderr()
        time.sleep(0.002)
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 75, running.stderr()
    assert "stopped (SIGTERM); the rows that are done are kept; the same command goes on" in running.stderr()
    assert sum((tmp_path / "out" / "feats.npy.partial" / "done").read_bytes()) > 0
    done = run_tool("embed", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out' / 'feats.npy'}: 150 x {embedder.dim}\n"
    assert np.array_equal(np.load(tmp_path / "out" / "feats.npy"), embedder.embed(paths))


def test_a_folder_gets_rows_and_names_with_all_below_it(embedder, tmp_path):
    write_pictures(tmp_path / "in" / "b", 2)
    write_pictures(tmp_path / "in" / "a" / "deep", 1)
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "in" / "b" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    written = embed_pictures(embedder, tmp_path / "in", Request(tmp_path / "out"))
    assert written == f"{tmp_path / 'out' / 'feats.npy'}: 4 x {embedder.dim}"
    names = (tmp_path / "out" / "names.txt").read_text().splitlines()
    assert names == ["000.png", "a/deep/000.png", "b/000.png", "b/001.png"]
    assert np.array_equal(np.load(tmp_path / "out" / "feats.npy"),
                          embedder.embed([tmp_path / "in" / name for name in names]))
    assert read_json(tmp_path / "out" / "info.json")["model_id"] == embedder.info.model_id


def test_a_list_and_a_csv_name_pictures_relative_to_themselves(tmp_path):
    paths = write_pictures(tmp_path / "in", 2)
    (tmp_path / "in" / "list.txt").write_text(f"001.png\n\n{paths[0]}\n001.png\n")
    assert find_pictures(tmp_path / "in" / "list.txt").names == ["001.png", str(paths[0]), "001.png"]
    assert find_pictures(tmp_path / "in" / "list.txt").paths == [str(paths[1]), str(paths[0]), str(paths[1])]
    assert find_pictures(paths[0]).paths == [str(paths[0])]
    assert find_pictures(tmp_path / "in").names == ["000.png", "001.png"]


def test_the_columns_of_a_csv_stand_beside_its_rows(embedder, tmp_path):
    write_pictures(tmp_path / "in", 2)
    (tmp_path / "in" / "shots.csv").write_text('\ufeffpid,path,note\nx,001.png,"a, b"\ny,000.png,\n', "utf-8")
    embed_pictures(embedder, tmp_path / "in" / "shots.csv", Request(tmp_path / "out"))
    assert (tmp_path / "out" / "rows.csv").read_text() == 'pid,path,note\nx,001.png,"a, b"\ny,000.png,\n'
    assert (tmp_path / "out" / "names.txt").read_text() == "001.png\n000.png\n"


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.csv", b"file,pid\n1.png,2\n", "a.csv:1: expected a header with a column path, got 'file, pid'"),
    ("a.csv", b"path,pid\n1.png\n", "a.csv:2: expected 2 columns"),
    ("a.csv", b"path\n\xff\n", "a.csv:2: not UTF-8"), ("a.csv", b"", "a.csv:1: expected a header"),
    ("a.csv", b'path\n"a\nb.png"\n', "a.csv:3: a name may not hold a line break"),
    ("a.txt", b"\n\n", "names no picture"), ("a.txt", b"\x89PNG\x0a\xff", "not UTF-8"), ("a.txt", None, "a.txt"),
])
def test_a_list_that_cannot_be_used_says_where(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        find_pictures(tmp_path / name)


def test_names_that_are_no_line_are_refused(tmp_path):
    write_pictures(tmp_path, 1)[0].rename(tmp_path / "a\nb.png")
    with pytest.raises(ValueError, match="may not hold a line break"):
        find_pictures(tmp_path)


def test_bad_pictures_are_rows_of_nan_if_they_may_be(embedder, tmp_path):
    paths = write_pictures(tmp_path / "in", 9, bad=range(2, 9))
    paths[3].write_bytes(b"")
    cv2.imwrite(str(paths[4]), np.zeros((1, 1, 3), np.uint8))
    paths[5].write_bytes(paths[0].read_bytes()[:900])
    with pytest.raises(ValueError, match=r"item 2: .*002.png: not a PNG.*--skip-bad"):
        embed_pictures(embedder, tmp_path / "in", Request(tmp_path / "out"))
    written = embed_pictures(embedder, tmp_path / "in", Request(tmp_path / "out", skip_bad=True))
    assert written.endswith(f"; 7 pictures could not be used, see {tmp_path / 'out' / 'problems.txt'}")
    rows = np.load(tmp_path / "out" / "feats.npy")
    assert np.isnan(rows[2:]).all()
    assert np.array_equal(rows[:2], embedder.embed(paths[:2]))
    lines = (tmp_path / "out" / "problems.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == [[str(row), f"00{row}.png"] for row in range(2, 9)]
    for line, reason in zip(lines, ("not a PNG", "the file is empty", "1 x 1 pixels", "cut off"), strict=False):
        assert reason in line


def test_a_whole_folder_is_left_alone_and_another_one_not_overwritten(embedder, tmp_path, monkeypatch):
    write_pictures(tmp_path / "in", 2)
    request = Request(tmp_path / "out")
    written = embed_pictures(embedder, tmp_path / "in", request)
    before = (tmp_path / "out" / "feats.npy").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(embed_files, "fill_rows", None)
        assert embed_pictures(embedder, tmp_path / "in", request) == written
    write_pictures(tmp_path / "in", 3)
    with pytest.raises(FileExistsError, match="made with another rows, pictures"):
        embed_pictures(embedder, tmp_path / "in", request)
    assert (tmp_path / "out" / "feats.npy").read_bytes() == before
    embed_pictures(embedder, tmp_path / "in", request._replace(restart=True))
    assert len(np.load(tmp_path / "out" / "feats.npy")) == 3
