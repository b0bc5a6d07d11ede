"""tools/campaign.py inputs: a short run finds nothing, and what is planted is found."""
import contextlib
import io
import json
import pickle
import random
import sqlite3
import zipfile
import zlib

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from tools.campaigns.inputs.arrays import change_zip
from tools.campaigns.inputs.bombs import crc_of_zeros, zlib_zeros
from tools.campaigns.inputs.mutate import _KINDS, mutate
from tools.campaigns.inputs.raw import Payload
from tools.campaigns.inputs.values import Means, means_of
from tools.campaigns.tool_server import run_tool
from utils.files import read_json

PLANTED = """
import ctypes, pickle, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from pathlib import Path
from tools.campaigns.inputs import trial

def eats(begin):
    begin()
    return np.ones(90_000_000).sum()  # 700 MB

def runs(begin):
    begin()
    raise KeyError("a")

def dies(begin):
    ctypes.string_at(0)

def hangs(begin):
    begin()
    while True: pass

def refuses(begin):
    begin()
    raise ValueError("refused")

trial.MOST_MEMORY = 3 * 2**28
def reads(begin):
    begin()  # so that its memory is counted from here
    return [1, "a"]

cases = [reads, runs, refuses, dies, eats, reads]
for some, seconds in ((cases, 50), ([hangs], 1)):
    for outcome in trial.try_cases(some, Path(sys.argv[1]), seconds):
        print(outcome.fault or outcome.error or outcome.value[:8])
"""


def test_a_short_run_over_what_takes_no_model_finds_nothing(tmp_path):
    done = run_tool("campaign", "inputs", "--quick", "--seconds", 150, "--output", tmp_path, seconds=190)
    report = read_json(tmp_path / "inputs" / "findings.json")
    assert (done.returncode, report["findings"]) == (0, []), done.stderr
    assert sum(report["tried"].values()) == len(report["tried"]) == 19


def test_tracebacks_deaths_hangs_and_memory_are_noticed_and_the_next_case_goes_on(tmp_path):
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(root=str(run_tool.__globals__["ROOT"])))
    done = run_tool(script, tmp_path, seconds=190)
    first, *others, last, hung = done.stdout.split()
    assert [*others, hung] == ["traceback", "refused", "crash", "memory", "hang"], done.stderr
    assert first == last


def test_the_payload_of_a_pickle_makes_the_canary(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("data", [b"abc", json.dumps({"a": [1, {"b": 2}]}).encode(), b"MODEL:\n  NAME: x\n",
                                  pickle.dumps(np.eye(3))])
def test_damage_is_a_function_of_the_draw_and_changes_the_file(tmp_path, data):
    made = [[mutate(data, random.Random(seed), means_of(tmp_path / "canary", [b"other"])) for seed in range(60)]
            for _ in range(2)]
    assert made[0] == made[1]
    assert len({changed for changed, _ in made[0]}) > 20
    assert sum(changed == data for changed, _ in made[0]) < 15
    assert not (tmp_path / "canary").exists()


def avi_of(folder):
    """A video of two frames, a JPEG each."""
    writer = cv2.VideoWriter(str(folder / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    for value in (50, 90):
        writer.write(np.full((32, 32, 3), value, np.uint8))
    writer.release()
    return (folder / "a.avi").read_bytes()


def specimens_of(folder):
    """{kind of file: (a small one, the changes that its kind has)}."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8))
    made = {}
    for kind, options in (("PNG", {}), ("JPEG", {"progressive": True}), ("BMP", {}), ("GIF", {}), ("TIFF", {}),
                          ("WEBP", {}), ("PPM", {}), ("JPEG2000", {})):
        out = io.BytesIO()
        picture.save(out, kind, **options)
        made[kind] = out.getvalue()
    for kind, write in (("npy", lambda file: np.save(file, np.eye(3))),
                        ("torch", lambda file: torch.save({"model": {"a": torch.ones(3)}}, file))):
        out = io.BytesIO()
        write(out)
        made[kind] = out.getvalue()
    made["safetensors"] = safetensors.torch.save({"a": torch.ones(3), "b": torch.ones(2)})
    with contextlib.closing(sqlite3.connect(folder / "a.sqlite")) as db:
        db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, name TEXT)")
        db.execute("INSERT INTO rows VALUES (1, 'a'), (2, 'b')")
        db.commit()
    made["SQLite"] = (folder / "a.sqlite").read_bytes()
    made["AVI"] = avi_of(folder)
    made["YAML"] = b"MODEL:\n  NAME: x\nSOLVER:\n  STEPS: [1, 2]\n"
    made["CSV"] = b"path,pid,camid\na.png,1,2\nb.png,3,4\n"
    made["JSON"] = b'{"a": [1, {"b": "x"}], "c": null}'
    return made


def test_every_change_fits_the_files_that_it_is_for(tmp_path):
    means = means_of(tmp_path / "canary", [b"other"], seed=1)
    tried = set()
    for kind, data in specimens_of(tmp_path).items():
        changes = {change for fits, some in _KINDS if fits(data) for change in some}
        assert changes, kind
        for change in changes:
            made = []
            for number in range(40):
                with contextlib.suppress(Exception):  # what is drawn does not fit each file
                    made.append(change(data, random.Random(number), means))
            assert len(made) > 25, (kind, change)
            assert len({changed for changed, _ in made}) > 8, (kind, change)
            tried.add(change)
    every = {change for _, some in _KINDS for change in some}
    assert {change.__name__ for change in every - tried} == {"change_onnx", "change_openvino"}
    assert not (tmp_path / "canary").exists()


def test_bombs_are_what_they_say_and_are_small():
    assert zlib.decompress(zlib_zeros(9)) == bytes(9 << 20)
    assert len(zlib_zeros(3000)) < 4 << 20
    assert crc_of_zeros(2) == zlib.crc32(bytes(2 << 20))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a", b"x")
    draws = (change_zip(archive.getvalue(), random.Random(number), Means(None, [], [], [])) for number in range(200))
    bomb = next(data for data, done in draws if "bomb" in done and len(data) < 1 << 18)
    with zipfile.ZipFile(io.BytesIO(bomb)) as read, read.open("a") as member:
        assert read.getinfo("a").file_size == 100 << 20
        assert sum(map(len, iter(lambda: member.read(1 << 20), b""))) == 100 << 20  # and its checksum is right


def test_values_of_hypothesis_are_those_of_their_seed(tmp_path):
    first, again, other = (means_of(tmp_path, [], seed) for seed in (3, 3, 4))
    assert repr(first.values) == repr(again.values) != repr(other.values)
    assert len(first.texts) > 100
    assert any(isinstance(value, dict) and value for value in first.values[-400:])
