"""The same people for another model: what is carried over, what is named, and what an interruption leaves."""
import json

import cv2
import numpy as np
import pytest
from galleries import open_engine
from gallery_server import draw, png

from processor.embedding.gallery_files import decode_picture
from processor.gallery import open_gallery, reembed
from processor.gallery.reembed import Pictures, re_embed
from processor.gallery.service.answers import make_thumbnail

DIM = 12  # of the other model
COLOURS = ("red", "green", "blue", "grey")
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


def embed_small(pictures) -> np.ndarray:
    """[N, DIM] of length 1, of another kind than `embed_colours`: 2 x 2 pixels of each picture."""
    rows = np.array([cv2.resize(picture, (2, 2), interpolation=cv2.INTER_AREA).reshape(-1) for picture in pictures],
                    float)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pictures_in(*folders, embed=embed_small) -> Pictures:
    return Pictures(folders, lambda data: decode_picture(data, 10**6), make_thumbnail, embed)


def jpeg(*colours) -> bytes:
    return make_thumbnail(draw(*colours))


@pytest.fixture
def source(gallery_engine, gallery_place, tmp_path):
    """Rows 0 .. 3: 0 and 1 have a picture and a thumbnail, 2 a thumbnail alone, 3 a picture alone."""
    how = {} if gallery_engine == "folder" else {"state": tmp_path / "state"}
    with open_engine(gallery_engine, gallery_place, model="old", **how) as gallery:
        gallery.add(range(4), np.eye(4, 16), {
            "camera": [1, 2, 3, 4], "time": [5, 6, -1, 8], "set": ["a", "", "b", ""], "identity": [1, 1, 2, -1],
            "name": ["shots/0.png", "1.png", "frame.png", "3.png"], "data": ['{"x": "é"}', "{}", "{}", "{}"]})
        gallery.ledger.put_thumbnails(range(3), [jpeg(colour) for colour in COLOURS[:3]])
        gallery.ledger.name(1, "Ada")
        gallery.ledger.assign([3], 2, who="Eve")
        yield gallery


@pytest.fixture
def shots(tmp_path):
    for name, colour in (("shots/0.png", "red"), ("1.png", "green"), ("3.png", "grey")):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour))
    (tmp_path / "pictures" / "frame.png").write_bytes(png("blue", "red"))  # row 2 is a crop of it
    return tmp_path / "pictures"


def described(gallery) -> list:
    return [(row, *(batch.facts[name][at] for name in sorted(batch.facts)), gallery.ledger.thumbnail(row),
             bool(gallery.ledger.by_human([row])[0]))
            for batch in gallery.scan() for at, row in enumerate(batch.ids.tolist())]


def test_all_but_the_vectors_is_carried_over_and_the_log_goes_on(source, shots, tmp_path):
    report = re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new")
    assert (report.pictures, report.thumbnails, report.earlier, report.left) == (3, 1, 0, {})
    assert not (tmp_path / "new.part").exists()
    with open_gallery(tmp_path / "new", model="new") as made:
        assert described(made) == described(source)
        assert made.ledger.names() == {1: "Ada"}
        expected = embed_small([draw("red"), draw("green"), decode_picture(jpeg("blue"), 10**6), draw("grey")])
        np.testing.assert_array_equal(made.fetch(range(4)).vectors, expected)
        assert made.verify() == []
        assert (made.ledger.undo().what, made.fetch([3]).facts["identity"].tolist()) == ("assign 1 row to 2", [-1])
        assert made.ledger.new_identity() > 2
    assert source.fetch([3]).facts["identity"].tolist() == [2]


def test_a_row_without_a_picture_is_named_before_anything_is_embedded(source, shots, tmp_path):
    (shots / "3.png").unlink()
    with pytest.raises(ValueError, match=r"^no picture in the folders .* of 1 row: 3 \(3\.png\); name more folders"):
        re_embed(source, tmp_path / "new", pictures_in(shots, embed=None), DIM, "new")
    assert not (tmp_path / "new.part").exists()
    report = re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new", leave_out=True)
    assert report.left == {3: ("3.png", "no picture and no thumbnail")}
    with open_gallery(tmp_path / "new") as made:
        assert described(made) == described(source)[:3]
        assert made.ledger.undo().what == "assign 1 row to 2"  # of the row that is not there nothing is left


def test_a_picture_that_cannot_be_read_is_named_and_the_rest_is_kept_for_the_next_run(source, shots, tmp_path):
    (shots / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no picture that can be read of 1 row: 3 \(3\.png: not a picture"):
        re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new")
    (shots / "3.png").write_bytes(png("grey"))
    report = re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new")
    assert report.earlier + report.pictures + report.thumbnails == 4
    assert (tmp_path / "new").is_dir()


def test_another_picture_of_the_same_name_is_not_taken_and_a_name_never_leads_out(source, shots, tmp_path):
    (shots / "shots" / "0.png").write_bytes(png("blue"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1.png").write_bytes(png("grey"))
    report = re_embed(source, tmp_path / "new", pictures_in(tmp_path / "other", shots), DIM, "new")
    assert (report.pictures, report.thumbnails) == (2, 2)
    for name in ("../pictures/1.png", str(shots / "1.png"), "", "1\0.png", "shots"):
        assert pictures_in(shots).paths(name) == []


@pytest.mark.parametrize("killed", ["embed", "backup", "forget"])
def test_what_a_kill_leaves_is_not_a_gallery_and_is_gone_on_with(source, shots, tmp_path, monkeypatch, killed):
    monkeypatch.setattr(reembed, "BATCH", 1)
    calls = []

    def embed(pictures):
        calls.append(len(pictures))
        if killed == "embed" and len(calls) == 3:
            raise KeyboardInterrupt
        return embed_small(pictures)

    def fail(*_, **__):
        raise KeyboardInterrupt

    if killed == "backup":
        monkeypatch.setattr(source.ledger, "copy_to", fail)
    elif killed == "forget":
        monkeypatch.setattr("processor.gallery.ledger.Ledger.forget", fail)
    with pytest.raises(KeyboardInterrupt):
        re_embed(source, tmp_path / "new", pictures_in(shots, embed=embed), DIM, "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises((ValueError, OSError)):
        open_gallery(tmp_path / "new.part")
    monkeypatch.undo()
    source.assign([0], camera=9)
    source.add([7], np.eye(1, 16), {"name": ["1.png"]})
    source.remove([1])
    report = re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new")
    assert (report.earlier > 0, report.left) == (True, {})
    with open_gallery(tmp_path / "new", model="new") as made:
        assert described(made) == described(source)


def test_what_was_begun_for_another_model_or_is_there_already_is_refused(source, shots, tmp_path):
    with pytest.raises(ValueError, match="holds vectors of model old already"):
        re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "old")
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="no re-embedding that was broken off; move it away"):
        re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new")
    (tmp_path / "new.part" / "mine.txt").unlink()
    (tmp_path / "new.part" / "of.json").write_text(json.dumps({"source": "elsewhere", "model": "new"}))
    with pytest.raises(ValueError, match="begun from elsewhere with model new; remove it to begin anew"):
        re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new")
    (tmp_path / "new.part" / "of.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"of\.json: damaged, or of another program"):
        re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new")
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match="is there already; name a folder"):
        re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new")


def test_what_was_removed_before_does_not_come_back_in_the_new_gallery(source, shots, tmp_path):
    source.ledger.remove([0])
    re_embed(source, tmp_path / "new", pictures_in(shots), DIM, "new")
    with open_gallery(tmp_path / "new") as made:
        with pytest.raises(ValueError, match="undo: remove 1 row: what was erased, or whose room was freed"):
            made.ledger.undo()
        assert made.ledger.undo().what == "assign 1 row to 2"
    assert source.ledger.undo().what == "remove 1 row"
