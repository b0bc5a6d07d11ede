"""tools/gallery.py: a gallery from the command line."""
import json
import re
import signal
import socket
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from gallery_server import Client, embed_colours, png

from processor.gallery import open_gallery
from tools import gallery as tool
from tools.campaigns.tool_server import run_tool, start_tool


class ColourEmbedder:
    """In the place of Embedder: rows are mean colours."""

    dim, info = 16, SimpleNamespace(model_id="colours", thresholds={})

    def embed(self, items):
        return embed_colours([item if isinstance(item, np.ndarray) else cv2.imread(str(item))[:, :, ::-1]
                              for item in items])


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run(word, argument ...) -> what it prints; `gallery` is the place."""
    monkeypatch.setattr(tool, "load_embedder", lambda args: ColourEmbedder() if getattr(args, "model", None) else None)

    def run(word, *arguments):
        there = ["--gallery", str(tmp_path / "gallery")]
        monkeypatch.setattr(sys, "argv", ["gallery.py", word, *there, *map(str, arguments)])
        capsys.readouterr()
        tool.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def people(run, tmp_path):
    """A gallery of ada (red, two pictures) and bob (blue)."""
    for name, colour in (("ada_c1.png", "red"), ("ada_c2.png", "red"), ("bob_c1.png", "blue")):
        (tmp_path / "shots").mkdir(exist_ok=True)
        (tmp_path / "shots" / name).write_bytes(png(colour))
    run("create", "--model", "m")
    added = run("add", "--model", "m", tmp_path / "shots", "--pattern", r"(?P<person>[a-z]+)_c(?P<camera>\d)")
    assert added == "3 rows added\n"
    return tmp_path / "shots"


def rows(run, *filters) -> list[dict]:
    return [json.loads(line) for line in run("scan", "--json", *filters).splitlines()]


def test_a_folder_is_added_once_and_found(run, people):
    assert run("add", "--model", "m", people) == "0 rows added, 3 were there already\n"
    found = run("search", "--model", "m", people / "bob_c1.png", "-k", 2, "--json").splitlines()
    assert [json.loads(line)["person"] for line in found] == ["bob", "ada"]
    text = run("search", "--model", "m", people / "bob_c1.png", "--cameras", 2)
    assert re.fullmatch(r"\S+/bob_c1.png\n0\.\d{4}  ada +camera 2  \?  ada_c2.png\n", text)
    assert "  bob  similarity 1.0000" in run("identify", "--model", "m", people / "bob_c1.png", "--threshold", 0.9)
    assert "  nobody known  " in run("identify", "--model", "m", people / "ada_c1.png", "--threshold", 0.99, "--people",
                                     "bob")
    assert json.loads(run("info", "--json"))["rows"] == 3
    nowhere = run("search", "--model", "m", people / "bob_c1.png", "--cameras", 9)
    assert nowhere == f"{people / 'bob_c1.png'}: nothing found\n"


def test_another_picture_of_a_known_name_is_not_passed_over(run, people):
    (people / "bob_c1.png").write_bytes(png("green"))
    with pytest.raises(ValueError, match=r"another picture bob_c1\.png; give these a set of their own with --set"):
        run("add", "--model", "m", people)
    assert run("add", "--model", "m", people, "--set", "tuesday") == "3 rows added\n"


@pytest.mark.parametrize("words", [("remove", "--ids", 7), ("assign", "--ids", 7, "--person", "eve"),
                                   ("split", "--ids", 7)])
def test_an_unknown_row_is_one_message(run, people, words):
    with pytest.raises(ValueError, match="id 7 is not in the gallery"):
        run(*words)


def test_people_are_assigned_merged_and_removed_and_changes_undone(run, people):
    ids = [row["id"] for row in rows(run, "--people", "ada")]
    run("assign", "--ids", ids[0], "--person", "eve")
    assert [row["person"] for row in rows(run, "--people", "eve")] == ["eve"]
    run("merge", "bob", "eve")
    assert len(rows(run, "--people", "bob")) == 2
    assert run("undo").startswith("undone: merge")
    assert [len(rows(run, "--people", name)) for name in ("ada", "bob", "eve")] == [1, 1, 1]
    number = rows(run, "--people", "eve")[0]["identity"]
    assert len(rows(run, "--people", f"#{number}")) == 1
    run("assign", "--ids", ids[0])
    assert rows(run)[[row["id"] for row in rows(run)].index(ids[0])]["identity"] is None
    assert re.fullmatch(r"1 row split off as #\d+\n", run("split", "--ids", ids[1]))
    assert len(rows(run, "--people", "ada")) == 0
    assert run("undo").startswith("undone: split 1 row")
    assert [row["id"] for row in rows(run, "--people", "ada")] == [ids[1]]
    held = rows(run)
    assert run("remove", "--people", "bob", "ada") == "2 rows removed\n"
    assert run("undo") == "undone: remove 2 rows\n"
    assert rows(run) == held
    assert run("remove", "--people", "bob", "--erase") == "1 row erased\n"
    with pytest.raises(ValueError, match="undo: erase 1 row: what was erased"):
        run("undo")
    assert run("remove", "--ids", ids[1]) == "1 row removed\n"
    assert int(run("compact").split()[0]) > 0
    assert run("purge", "--older-than", 1) == "0 rows erased\n"  # times that are not known are not old
    with pytest.raises(SystemExit) as ended:
        run("verify")
    assert ended.value.code == 0


@pytest.mark.parametrize(("words", "message"), [
    (("remove",), "give either --ids, or filters"), (("remove", "--ids", 1, "--cameras", 2), "give either --ids"),
    (("split",), "give --ids"),
    (("assign", "--person", "x"), "give --ids"), (("merge", "ada", "nobody"), "nobody in the gallery is called nobody"),
    (("search", "x.png"), "name it with --model"), (("scan", "--since", "noon"), "time: expected ms since 1970"),
    (("create",), "give either --model or --dim"), (("serve", "--host", "0.0.0.0"), "wants a token: set GALLERY_TOKEN"),
    (("serve", "--host", "::"), "wants a token"), (("identify", "--model", "m", "ada_c1.png"), "give a threshold")])
def test_what_is_wrong_with_a_command_is_told(run, people, words, message, monkeypatch):
    monkeypatch.delenv("GALLERY_TOKEN", raising=False)
    monkeypatch.chdir(people)
    with pytest.raises(ValueError, match=message):
        run(*words)


def test_a_gallery_that_is_not_there_is_not_made_by_asking(run, tmp_path):
    with pytest.raises((ValueError, OSError)):
        run("info")
    assert not (tmp_path / "gallery").exists()
    done = run_tool("gallery", "info", "--gallery", tmp_path / "gallery")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def stdout_of(running) -> str:
    try:
        return running.stdout()
    except FileNotFoundError:  # it has just been forked
        return ""


def test_the_service_starts_answers_and_ends_when_it_is_told_to(run, people, tmp_path):
    pytest.importorskip("fastapi")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        done = run_tool("gallery", "serve", "--gallery", tmp_path / "gallery", "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "Address already in use; name another" in done.stderr
    running = start_tool("gallery", "serve", "--gallery", tmp_path / "gallery", "--port", 0)
    while running.poll() is None and "http" not in stdout_of(running):
        time.sleep(0.02)
    client = Client(int(re.search(r"http://127.0.0.1:(\d+)/  3 rows", running.stdout())[1]))
    assert client.post("/v1/search", {"vectors": [np.eye(16)[0].tolist()]})[0] == 200
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 0
    assert running.stderr() == ""


def test_rows_of_nobody_get_people(run, people, tmp_path):
    for name, colour in (("x1.png", "red"), ("x2.png", "green"), ("x3.png", "green")):
        (tmp_path / "more").mkdir(exist_ok=True)
        (tmp_path / "more" / name).write_bytes(png(colour))
    run("add", "--model", "m", tmp_path / "more")
    with pytest.raises(ValueError, match="link: give a --threshold, or a --model"):
        run("link")
    assert run("link", "--threshold", "0.9") == "2 rows joined, 1 new people, 0 merged, 0 moved\n"
    held = {row["name"]: row["identity"] for row in rows(run)}
    assert held["x1.png"] == held["ada_c1.png"]
    assert held["x2.png"] == held["x3.png"] not in (None, held["bob_c1.png"])
    assert run("link", "--threshold", "0.9") == "0 rows joined, 0 new people, 0 merged, 0 moved\n"


def test_another_models_gallery_is_made_of_pictures_and_thumbnails_and_the_tool_tells_of_which(run, people, monkeypatch,
                                                                                             tmp_path):
    class Other(ColourEmbedder):
        info = SimpleNamespace(model_id="other", thresholds={})

    (people / "bob_c1.png").unlink()
    monkeypatch.setattr(tool, "load_embedder", lambda args: Other() if getattr(args, "model", None) else None)
    with pytest.raises(ValueError, match="name the other model with --model"):
        run("re-embed", "--into", tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        run("re-embed", "--into", tmp_path / "new", "--model", "o", "--pictures", tmp_path / "nowhere")
    text = run("re-embed", "--into", tmp_path / "new", "--model", "o", "--pictures", people)
    assert text == f"{tmp_path}/new: 2 rows from pictures, 1 from thumbnails, 0 of a run before, 0 left out\n"
    held = rows(run)
    with open_gallery(tmp_path / "new", model="other") as made:
        assert [row["id"] for row in held] == [str(row) for batch in made.scan() for row in batch.ids]
        assert set(made.ledger.names().values()) == {"ada", "bob"}
