"""Rows for a gallery out of folders, lists and what tools/embed.py wrote; pictures that are sent by strangers."""
import csv
import io
import json
import re
import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from gallery_server import embed_colours, png
from PIL import Image

from datasets.files.images import BadImage
from processor.embedding.gallery_files import Told, decode_picture, model_of, read_rows, row_id


@pytest.fixture
def embedder():
    return SimpleNamespace(dim=16, embed=lambda paths: embed_colours([cv2.imread(path)[:, :, ::-1] for path in paths]))


@pytest.fixture
def pictures(tmp_path):
    for name, colour in (("ada/1_c2.png", "red"), ("ada/2_c3.png", "red"), ("bob/1_c2.png", "blue")):
        (tmp_path / "shots" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shots" / name).write_bytes(png(colour))
    return tmp_path / "shots"


def write_csv(path, *rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def read(place, embedder, **told):
    rows, = read_rows(place, embedder, Told(**told))
    return rows


def test_a_folder_is_read_and_a_pattern_takes_facts_from_names(pictures, embedder):
    rows = read(pictures, embedder, set="s", pattern=re.compile(r"(?P<person>\w+)/\d+_c(?P<camera>\d+)"))
    assert rows.facts["name"] == ["ada/1_c2.png", "ada/2_c3.png", "bob/1_c2.png"]
    assert (rows.facts["camera"], rows.persons) == ([2, 3, 2], ["ada", "ada", "bob"])
    assert rows.ids == [row_id("s", name) for name in rows.facts["name"]]
    assert rows.vectors.shape == (3, 16)
    assert read(pictures, embedder, camera=7).facts["camera"] == [7, 7, 7]
    with pytest.raises(ValueError, match="fits no name, the first is ada/1_c2"):
        read(pictures, embedder, pattern=re.compile(r"(?P<camera>\d+)x"))
    with pytest.raises(ValueError, match="name it with --model"):
        read(pictures, None)


def test_a_csv_tells_camera_time_person_and_set_and_the_rest_is_kept(pictures, embedder):
    table = write_csv(pictures / "t.csv", ("path", "camid", "time", "pid", "split", "shoe"),
                      ("ada/1_c2.png", "4", "1700000000000", "Ada", "train", "43"),
                      ("bob/1_c2.png", "", "2023-11-14T22:13:20Z", "-1", "", ""))
    rows = read(table, embedder, set="s", camera=9)
    assert rows.facts == {"camera": [4, 9], "time": [1700000000000] * 2, "identity": [-1, -1], "set": ["train", "s"],
                          "name": ["ada/1_c2.png", "bob/1_c2.png"], "data": ['{"shoe": "43"}', '{"shoe": ""}']}
    assert rows.persons == ["Ada", ""]
    bad = write_csv(pictures / "bad.csv", ("path", "camera", "time"), ("ada/1_c2.png", "front", "1"),
                    ("bob/1_c2.png", "1", "yesterday"))
    with pytest.raises(ValueError, match=r"(?s)bad.csv:2: camera.*'front'.*bad.csv:3: time.*'yesterday'"):
        read(bad, embedder)


def test_what_tools_embed_wrote_is_read_without_a_model_and_bad_pictures_are_left_out(tmp_path):
    np.save(tmp_path / "feats.npy", np.float32([[1, 0], [np.nan, np.nan], [0, 1]]))
    (tmp_path / "names.txt").write_text("a.png\nb.png\nc.png\n")
    write_csv(tmp_path / "rows.csv", ("path", "camera"), ("a.png", 1), ("b.png", 2), ("c.png", 3))
    rows = read(tmp_path, None)
    assert (rows.facts["name"], rows.facts["camera"], rows.paths) == (["a.png", "c.png"], [1, 3], ["", ""])
    np.testing.assert_array_equal(rows.vectors, np.eye(2, dtype=np.float32))
    (tmp_path / "names.txt").write_text("a.png\n")
    with pytest.raises(ValueError, match="3 rows, but 1 names"):
        read(tmp_path, None)


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("rows.csv", b"path,camera\na.png,1\n", "not a line for each"),
    ("rows.csv", b"path,camera\na.png,1\nb.png\n", "not a line for each"),
    ("rows.csv", b"path,camera\na.png,\xff\n", "not UTF-8"),
    ("names.txt", b"a.png\n\xff.png\n", "not UTF-8"),
    ("feats.npy", b"\x93NUMPY", r"not a whole \.npy"),
    ("info.json", b"[]", "expected a JSON object"),
])
def test_what_tools_embed_wrote_and_is_damaged_is_named(tmp_path, name, content, reason):
    np.save(tmp_path / "feats.npy", np.eye(2, dtype=np.float32))
    (tmp_path / "names.txt").write_text("a\u2028.png\nb.png\n")  # a line break to Python alone
    write_csv(tmp_path / "rows.csv", ("path", "camera"), ("a\u2028.png", 1), ("b.png", 2))
    assert read(tmp_path, None).facts["name"] == ["a\u2028.png", "b.png"]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*{reason}"):
        model_of(tmp_path) if name == "info.json" else read(tmp_path, None)


# ------------------------------------------------------------------------------------------------------------- bombs
def encoded(kind: str, width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (width, height)).save(out, kind)
    return out.getvalue()


def huge_png() -> bytes:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b""))


def patched(kind: str, *places: tuple[int, str, int]) -> bytes:
    """A small picture whose header promises another size."""
    data = bytearray(encoded(kind, 16, 16))
    for place, form, value in places:
        struct.pack_into(form, data, place if place >= 0 else data.index(b"\xff\xc0") - place, value)
    return bytes(data)


BOMBS = {
    "png": huge_png, "jpeg": lambda: patched("JPEG", (-5, ">H", 65000), (-7, ">H", 65000)),
    "bmp": lambda: patched("BMP", (18, "<i", 60000), (22, "<i", 60000)),
    "bmp upside down": lambda: patched("BMP", (18, "<i", 60000), (22, "<i", -60000)),
    "gif": lambda: patched("GIF", (6, "<H", 65000), (8, "<H", 65000)),
    "pnm": lambda: b"P5\n60000 60000\n255\n" + bytes(100), "tiff": lambda: encoded("TIFF", 2000, 2000),
    "webp": lambda: encoded("WEBP", 2000, 2000), "jpeg 2000": lambda: encoded("JPEG2000", 2000, 2000),
    "pillow's own limit": lambda: b"P5\n200000 200000\n255\n" + bytes(100),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(kind, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(BadImage, match=r"pixels, more than 1000000|header cannot be read"):
        decode_picture(BOMBS[kind](), 10**6)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"<svg/>", b"RIFF\0\0\0\0WEBP",
                                  b"BM" + bytes(60), json.dumps({}).encode(), png("red")[:60]])
def test_what_is_no_picture_is_refused_with_a_reason(data):
    with pytest.raises(BadImage):
        decode_picture(data, 10**6)


def test_a_picture_within_the_limit_is_decoded():
    assert decode_picture(png("red", "blue"), 48 * 48).shape == (48, 48, 3)
    with pytest.raises(BadImage, match="48 x 48 pixels, more than 2303"):
        decode_picture(png("red", "blue"), 48 * 48 - 1)
