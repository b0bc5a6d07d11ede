"""Rows of the boxes of tracks, cut out of frames or a video."""
import struct
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import tiny_options
from test_processor_embedder import PARTS, write_checkpoint

from configs import load_cfg
from datasets.files.images import decode
from datasets.make_dataloader import make_sets
from processor.embed_files import Boxes, Request, embed_boxes_of
from processor.embedder import Embedder
from processor.embedding.tracks import FrameFolder, TrackCrops, Video, read_tracks
from tools import embed
from tools.campaigns.inputs.bombs import zlib_zeros
from utils.checkpoint import save_checkpoint
from utils.logger import run_tool

TRACKS = """\
1, 7, 11, 6, 20, 30, 1, -1, -1, -1
1,3,-4,1,20,60,0.5
3 7 12.5 6 20 30
2,7,11,6,20,30,1
3,3,41,11,90,90,0.2
"""
# x0, y0, x1, y1 in numpy's indices of the lines above
CUTS = [(10, 5, 30, 35), (0, 0, 15, 60), (11, 5, 32, 35), (10, 5, 30, 35), (40, 10, 80, 60)]
FRAMES = [1, 1, 3, 2, 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, [*tiny_options(folder, folder), *PARTS])
    return folder / "latest.pth"


@pytest.fixture(scope="module")
def embedder(model):
    return Embedder.load(model, precision="float32", batch_size=2, threads=1)


def write_frames(folder, names=("000001.png", "000002.png", "000003.png")):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    frames = [cv2.resize(random.integers(0, 255, (6, 8, 3), np.uint8), (80, 60)) for _ in names]
    for name, frame in zip(names, frames, strict=True):
        cv2.imwrite(str(folder / name), frame)
    return [frame[:, :, ::-1] for frame in frames]


def write_tracks(path, text=TRACKS):
    path.write_text(text)
    return path


def test_boxes_count_pixels_and_frames_from_one_and_rows_follow_the_lines(embedder, tmp_path):
    frames = write_frames(tmp_path / "img1")
    tracks = write_tracks(tmp_path / "gt.txt")
    written = embed_boxes_of(embedder, Boxes(tracks, tmp_path / "img1"), Request(tmp_path / "out"))
    assert written == f"{tmp_path / 'out' / 'feats.npy'}: 5 x {embedder.dim}"
    crops = [frames[frame - 1][y0:y1, x0:x1] for frame, (x0, y0, x1, y1) in zip(FRAMES, CUTS, strict=True)]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "feats.npy"), embedder.embed(crops), atol=1e-6)
    names = (tmp_path / "out" / "names.txt").read_text().splitlines()
    assert names == ["000001_7", "000001_3", "000003_7", "000002_7", "000003_3"]
    assert (tmp_path / "out" / "rows.csv").read_text().splitlines()[:3] == [
        "frame,id,x,y,w,h,conf", "1,7,11.0,6.0,20.0,30.0,1.0", "1,3,-4.0,1.0,20.0,60.0,0.5"]


def test_boxes_may_count_from_zero_and_be_left_out_by_their_conf(embedder, tmp_path):
    frames = write_frames(tmp_path / "img1")
    boxes = Boxes(write_tracks(tmp_path / "gt.txt"), tmp_path / "img1", origin=0, min_conf=1)
    embed_boxes_of(embedder, boxes, Request(tmp_path / "out"))
    np.testing.assert_allclose(np.load(tmp_path / "out" / "feats.npy"), embedder.embed(
        [frames[0][6:36, 11:31], frames[2][6:36, 12:33], frames[1][6:36, 11:31]]), atol=1e-6)


def test_a_tracklet_is_the_unit_mean_of_its_boxes(embedder, tmp_path):
    write_frames(tmp_path / "img1")
    tracks = write_tracks(tmp_path / "gt.txt", TRACKS + "2,-1,1,1,9,9\n4,3,1,1,9,9\n")
    request = Request(tmp_path / "out", skip_bad=True)
    boxes = Boxes(tracks, tmp_path / "img1", tracklets=True)
    written = embed_boxes_of(embedder, boxes, request)
    assert f"feats.npy: 2 x {embedder.dim}; 1 pictures could not be used" in written
    rows, tracks = (np.load(tmp_path / "out" / name) for name in ("boxes.npy", "feats.npy"))
    for track, own in zip(tracks, (rows[[1, 4]], rows[[0, 2, 3]]), strict=True):
        np.testing.assert_allclose(track, own.mean(0) / np.linalg.norm(own.mean(0)), atol=1e-6)
    assert (tmp_path / "out" / "names.txt").read_text() == "3\n7\n"
    assert (tmp_path / "out" / "rows.csv").read_text() == "id,first_frame,last_frame,boxes\n3,1,4,2\n7,1,3,3\n"
    assert len((tmp_path / "out" / "boxes.csv").read_text().splitlines()) == 7
    assert embed_boxes_of(embedder, boxes, request) == written
    with pytest.raises(FileExistsError, match="another file"):
        embed_boxes_of(embedder, boxes._replace(tracklets=False), request)


def test_crops_are_a_set_to_train_on(embedder, tmp_path):
    frames = write_frames(tmp_path / "img1")
    tracks = write_tracks(tmp_path / "gt.txt", TRACKS + "2,-1,1,1,9,9\n")
    boxes = Boxes(tracks, tmp_path / "img1", crops=tmp_path / "sets" / "walk")
    embed_boxes_of(embedder, boxes, Request(tmp_path / "out"))
    data, source = make_sets(load_cfg(None, ["DATASETS.NAMES", "tree:walk", "DATASETS.ROOT_DIR",
                                             str(tmp_path / "sets")])).load_labelled()
    assert sorted(sample.key for sample in data.train) == [
        f"walk/{name}.jpg" for name in ("3/000001_3", "3/000003_3", "7/000001_7", "7/000002_7", "7/000003_7")]
    assert data.num_classes == 2
    crop = decode(source.read("walk/3/000001_3.jpg")).astype(float)
    assert crop.shape == (60, 15, 3)
    assert abs(crop - frames[0][0:60, 0:15]).mean() < 5
    with pytest.raises(ValueError, match="walk is not empty"):
        embed_boxes_of(embedder, boxes, Request(tmp_path / "other"))
    embed_boxes_of(embedder, boxes, Request(tmp_path / "out"))


def test_a_run_that_stopped_at_a_bad_box_goes_on_with_its_crops(embedder, tmp_path):
    write_frames(tmp_path / "img1")
    boxes = Boxes(write_tracks(tmp_path / "gt.txt", TRACKS + "3,5,99,99,9,9\n"), tmp_path / "img1",
                  crops=tmp_path / "crops")
    with pytest.raises(ValueError, match=r"gt.txt:6: .* outside the frame"):
        embed_boxes_of(embedder, boxes, Request(tmp_path / "out"))
    embed_boxes_of(embedder, boxes, Request(tmp_path / "out", skip_bad=True))
    assert len(list((tmp_path / "crops").glob("*/*.jpg"))) == 5


@pytest.mark.parametrize("names", [
    ("000001.png", "000002.png", "000003.png"), ("f_1.png", "f_2.png", "f_10.png"), ("a.png", "b.png", "c.png"),
    ("0.png", "1.png", "2.png"), ("cam1_b.png", "cam1_c.png", "cam2_a.png"),
])
def test_frames_are_called_by_their_number_or_are_the_sorted_ones(tmp_path, names):
    frames = write_frames(tmp_path / "in", names)
    numbers = [1, 2, 10] if "f_10.png" in names else [1, 2, 3]
    source = FrameFolder(tmp_path / "in", numbers)
    for number, frame in zip(numbers, frames, strict=True):
        assert np.array_equal(source.read(number), frame)
    with pytest.raises(ValueError, match=r"no frame 11; it has 1 to"):
        source.read(11)


def test_frames_count_from_zero_if_such_a_frame_is_asked_for(tmp_path):
    frames = write_frames(tmp_path / "in", ("000000.png", "000001.png"))
    assert np.array_equal(FrameFolder(tmp_path / "in", [0, 1]).read(1), frames[1])


def write_video(path, count=5):
    """Frame n (from 1) is grey, of 40 n."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 64))
    for number in range(count):
        writer.write(np.full((64, 80, 3), 40 * (number + 1), np.uint8))
    writer.release()
    return path


def test_a_video_of_frames_that_no_camera_has_is_refused_before_they_are_taken_out(tmp_path):
    """PNG frames of zeros: 600 kB that would become gigabytes."""
    side = 8000
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MPNG"), 10, (80, 64))
    writer.write(np.zeros((64, 80, 3), np.uint8))
    writer.release()
    data = (tmp_path / "a.avi").read_bytes()
    start, end = data.index(b"\x89PNG"), data.index(b"IEND") + 8
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    zeros = b"IDAT" + zlib_zeros((3 * side + 1) * side // 2**20 + 1)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(piece) - 4) + piece + struct.pack(">I", zlib.crc32(piece))
        for piece in (header, zeros, b"IEND"))
    large = data[:start - 4] + struct.pack("<I", len(bomb)) + bomb + data[end:]
    (tmp_path / "b.avi").write_bytes(large)
    assert Video(tmp_path / "a.avi").read(1).shape == (64, 80, 3)
    with pytest.raises(ValueError, match=r"b\.avi: frames of 8000 x 8000 pixels; more than 50,000,000 are not decoded"):
        Video(tmp_path / "b.avi")


def test_a_video_is_read_once_and_in_order(embedder, tmp_path):
    video = Video(write_video(tmp_path / "a.avi"))
    assert [round(video.read(number).mean() / 40) for number in (1, 3, 3, 5)] == [1, 3, 3, 5]
    with pytest.raises(ValueError, match=r"no frame 9; it ends after 5"):
        video.read(9)
    crops = TrackCrops(tmp_path / "gt.txt", read_tracks(write_tracks(tmp_path / "gt.txt")), tmp_path / "a.avi")
    assert [round(crop.mean() / 40) for crop in crops.walk(crops.order)] == [1, 1, 2, 3, 3]
    request = Request(tmp_path / "out")
    embed_boxes_of(embedder, Boxes(tmp_path / "gt.txt", tmp_path / "a.avi"), request)
    assert np.isfinite(np.load(tmp_path / "out" / "feats.npy")).all()


@pytest.mark.parametrize(("text", "message"), [
    ("frame,id,x,y,w,h\n", "gt.txt:1: expected frame, id, x, y, w, h, conf as numbers, got 'frame,id"),
    ("1,2,3,4,5\n", "gt.txt:1: expected"), ("1.5,2,3,4,5,6\n", "gt.txt:1: expected"), ("", "holds no box"),
    ("nan,2,3,4,5,6\n", "gt.txt:1: expected"), ("inf,2,3,4,5,6\n", "gt.txt:1: expected"),
    ("1,2,3,4,5,6\n1,2,9,9,9,9\n", "gt.txt:2: frame 1 has id 2 already, in line 1"), ("\xff", "not UTF-8"),
])
def test_a_malformed_file_of_tracks_says_where(tmp_path, text, message):
    (tmp_path / "gt.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_tracks(tmp_path / "gt.txt")


@pytest.mark.parametrize("line", ["1,1,10,10,0,9", "1,1,10,10,9,-3", "1,1,81,10,9,9", "1,1,10,10,1,9", "1,1,nan,1,9,9",
                                  "1,1,80,1,9,9", "9,1,1,1,9,9"])
def test_an_empty_box_is_named_by_its_line_or_passed_over(embedder, tmp_path, line):
    write_frames(tmp_path / "img1")
    boxes = Boxes(write_tracks(tmp_path / "gt.txt", f"1,2,1,1,20,40\n{line}\n"), tmp_path / "img1")
    with pytest.raises(ValueError, match=r"^gt.txt:2: .*(outside the frame of 80 x 60|has no frame 9).*--skip-bad$"):
        embed_boxes_of(embedder, boxes, Request(tmp_path / "out"))
    embed_boxes_of(embedder, boxes, Request(tmp_path / "out", skip_bad=True))
    assert np.isnan(np.load(tmp_path / "out" / "feats.npy")).all(1).tolist() == [False, True]


def test_the_command_embeds_boxes_and_refuses_what_does_not_fit(model, tmp_path, monkeypatch, capsys):
    write_frames(tmp_path / "img1")
    tracks, out = write_tracks(tmp_path / "gt.txt"), tmp_path / "out"
    words = ["--model", model, "--boxes", tracks, "--frames", tmp_path / "img1", "--output", out]

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["embed.py", *map(str, words)])
        run_tool(embed.main)

    call(*words, "--tracklets", "--save-crops", tmp_path / "crops", "--min-conf", 0.1)
    assert capsys.readouterr().out.startswith(f"{out / 'feats.npy'}: 2 x ")
    (tmp_path / "other.onnx").write_bytes(b"x")
    save_checkpoint(tmp_path / "bare.pth", {"model": {}})
    for changed, message in (
            (["--frames", tmp_path / "nowhere"], "nowhere: no such folder or video"),
            (["--frames", tracks], "not a video"), (["--boxes", tmp_path / "no.txt"], "no.txt"),
            (["--min-conf", "2"], "holds no box of a conf of 2"), (["--tracklets", "--raw"], "ask for raw rows"),
            (["--batch-size", "0"], "at least 1"), (["--images", "x"], "not allowed with"),
            (["--model", tmp_path / "other.onnx"], "other.onnx: not an ONNX file" if find_spec("onnxruntime") else
             "onnxruntime is not installed"),
            (["--model", tmp_path / "bare.pth"], "without the config"),
            (["--model", tmp_path / "no.pth"], "no.pth: no such checkpoint file")):
        with pytest.raises(SystemExit) as end:
            call(*words, *changed)
        assert end.value.code == 2
        errors = capsys.readouterr().err.splitlines()
        assert message in errors[-1]
        assert "Traceback" not in "".join(errors)


def test_the_adapter_of_the_docs_answers_trackers(model, tmp_path):
    text, names = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text("utf-8"), {}
    code = next(block for block in text.split("```python\n") if "class Appearance" in block)
    exec(code.split("```")[0], names)
    tracker = names["Appearance"](model, precision="float32")
    frame = write_frames(tmp_path / "img1")[0]
    boxes = [[10, 5, 30, 35, 0.9, 0], [-9, -9, -1, -1, 0.8, 0], [200, 70, 210, 90, 0.7, 0]]  # with conf and class
    feats = tracker.get_features(boxes, frame[:, :, ::-1])
    np.testing.assert_allclose(feats[0], tracker.embedder.embed_boxes(frame, [[10, 5, 30, 35]])[0], atol=1e-6)
    assert np.isfinite(feats).all()
    assert np.array_equal(tracker.inference(frame[:, :, ::-1], np.array(boxes)), feats)
    assert tracker.get_features(np.empty((0, 6)), frame).shape == (0, tracker.embedder.dim)
