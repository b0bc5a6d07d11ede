"""Lists of public sets, texts of identities, videos, pages, rows for galleries, requests to a service, as kinds."""
from __future__ import annotations

import asyncio
import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from configs import load_cfg
from datasets.make_dataloader import make_sets
from model.prompts import BEFORE, BEHIND, TextEncoder, order_texts, read_prompts
from processor.doctor.examine import DoctorOptions, examine
from processor.embed_files import Request as EmbedRequest
from processor.embed_files import embed_pictures
from processor.embedder import Embedder
from processor.embedding.gallery_files import Told, add_rows, decode_picture, model_of
from processor.embedding.pictures import crop_boxes
from processor.embedding.tracks import TrackCrops, read_tracks
from processor.evaluation.ensemble import ENSEMBLE, ensemble
from processor.gallery import open_gallery
from processor.gallery.linking.rows import GalleryLinker
from processor.gallery.service.answers import Answers, Vision
from processor.visualize import FOLDER as RANKS
from processor.visualize import PageOptions, make_rank_page
from tools.campaigns.inputs.kind import OUT, Kind, together
from tools.campaigns.inputs.specimens import options
from utils.checkpoint import read_checkpoint, save_checkpoint

_NAMES = ("ann", "bob", "cyd")
_FRAMES = 6


# ------------------------------------------------------------------ lists of public sets
_LISTED = {"cuhk03": "cuhk03", "msmt17": "MSMT17_V1", "vehicleid": "VehicleID_V1.0"}


def _put(path: Path, picture: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(picture, path)
    return path.name


def _make_public(base: Path) -> None:
    folder, png, jpg = base / "public", base / "pictures" / "rgb.png", base / "pictures" / "rgb.jpg"
    home, split = folder / _LISTED["cuhk03"], {"train": [], "query": [], "gallery": []}
    for person, part in enumerate(("train", "train", "query", "query")):
        for shot in range(4):
            name = _put(home / "images_detected" / f"1_00{person}_{shot % 2 + 1}_0{shot}.png", png)
            part_of = "gallery" if part == "query" and shot > 1 else part
            split[part_of].append([f"/data/cuhk03/images_detected/{name}", person, shot % 2])
    (home / "splits_new_detected.json").write_text(json.dumps([split]))
    home, lines = folder / _LISTED["msmt17"], {"train": [], "val": [], "query": [], "gallery": []}
    for person in range(4):
        for shot in range(4):
            path = f"000{person}/000{person}_000_0{shot % 2 + 1}_0303morning_000{shot}_0.jpg"
            is_train = person < 2
            _put(home / ("train" if is_train else "test") / path, jpg)
            name = ("val" if shot > 2 else "train") if is_train else "gallery" if shot > 1 else "query"
            lines[name].append(f"{path} {person}\n")
    for name, some in lines.items():
        (home / f"list_{name}.txt").write_text("".join(some))
    home = folder / _LISTED["vehicleid"]
    (home / "train_test_split").mkdir(parents=True)
    for number, name in enumerate(("train_list", "test_list_800")):
        some = [f"000{number}{shot} {shot % 3 + 3 * number}\n" for shot in range(9)]
        for line in some:
            _put(home / "image" / f"{line.split()[0]}.jpg", jpg)
        (home / "train_test_split" / f"{name}.txt").write_text("".join(some))


def _read_public(copy: Path, file: Path, base: Path) -> Any:
    name = next(name for name, home in _LISTED.items() if home in file.parts)
    sets = make_sets(load_cfg(None, [*options(base), "DATASETS.NAMES", name, "DATASETS.ROOT_DIR", str(copy)]))

    def load() -> str:
        data = sets.load()[0]
        return repr((data.train, data.eval_sets))

    return together(load, lambda: examine(sets, copy / OUT, DoctorOptions(lists_only=True)).findings.counts)


# ------------------------------------------------------------------ texts of identities
def _make_texts(base: Path) -> None:
    """What tools/learn_prompts.py writes, with and without its checksum, and text encoders as CLIP and CLIP-ReID."""
    folder = base / "texts"
    folder.mkdir()
    learned = {"text_feats": torch.eye(3, 4), "cls_ctx": torch.zeros(3, 4, 4), "pid_names": list(_NAMES)}
    save_checkpoint(folder / "learned.pth", learned)
    torch.save(learned, folder / "older.pth")
    text = {**TextEncoder(77, 4, 1, 4).state_dict()}
    words = {"token_embedding.weight": torch.zeros(max(*BEFORE, *BEHIND) + 1, 4)}
    torch.save({**text, **words}, folder / "clip.pth")
    torch.save({**{f"text_encoder.{key}": value for key, value in text.items()},
                "prompt_learner.token_prefix": torch.zeros(3, len(BEFORE), 4),
                "prompt_learner.token_suffix": torch.zeros(3, 70, 4)}, folder / "clipreid.pth")


def _read_texts(copy: Path, file: Path, base: Path) -> Any:
    if "clip" in file.name:
        return read_prompts(file, len(_NAMES)).encoder.state_dict()
    return order_texts(read_checkpoint(file), _NAMES, file)


# ------------------------------------------------------------------ videos and frames of tracks
def _make_videos(base: Path) -> None:
    folder = base / "videos"
    folder.mkdir()
    picture = cv2.imread(str(base / "pictures" / "rgb.png"))
    for name, codec in (("a.avi", "MJPG"), ("b.mp4", "mp4v"), ("c.mkv", "mp4v"), ("d.avi", "XVID"),
                        ("e.avi", "MPNG")):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter_fourcc(*codec), 5, picture.shape[1::-1])
        if not writer.isOpened():
            raise RuntimeError(f"OpenCV writes no {name}")
        for number in range(_FRAMES):
            writer.write(np.roll(picture, 5 * number, 0))
        writer.release()
    (folder / "tracks.txt").write_text("".join(f"{frame},1,2,3,20,40,0.9\n" for frame in range(1, _FRAMES + 1)))


def _read_video(copy: Path, file: Path, base: Path) -> list[Any]:
    boxes = read_tracks(copy / "tracks.txt")
    crops = TrackCrops(copy / "tracks.txt", boxes, file)
    return [crop if isinstance(crop, np.ndarray) else str(crop) for crop in crops.walk(crops.order)]


# ------------------------------------------------------------------ pages of ranked lists
def _make_pages(base: Path) -> None:
    folder = base / "pages"
    for name in ("a", "b"):
        shutil.copytree(base / "run", folder / name)
    shutil.copytree(base / "model", folder / "a" / "model")
    ensemble([folder / "a", folder / "b"], [1, 2], folder / "submission.json")
    make_rank_page(folder / "a", PageOptions(top=2, limit=2))


def _read_pages(copy: Path, file: Path, base: Path) -> list[Any]:
    """Of metrics.json the page reads which models they are of where there is no ensemble.json, as earlier ones."""
    if file.name == "metrics.json":
        (copy / ENSEMBLE).unlink()

    def page(run: Path, **what: Any) -> bytes:
        return (make_rank_page(run, PageOptions(top=2, **what)).parent / "data" / "index.js").read_bytes()

    of_ensemble = {"limit": 0, "scatter": True}
    return together(lambda: page(copy, **of_ensemble), lambda: page(copy / "a", limit=2, maps=1,
                                                                    compare=copy / "b"))


# ------------------------------------------------------------------ rows for a gallery
def _make_rows(base: Path) -> None:
    folder = base / "rows"
    folder.mkdir()
    names = sorted(os.listdir(base / "pictures"))
    with open(base / "csv" / "facts.csv", "w", newline="") as out:
        csv.writer(out).writerows([("path", "camera", "time", "person", "set", "note", "apart"), *(
            (f"shots/{name}", number % 3, 1000 * number, ("ann", "")[number % 2], "s", "x", "1, 2")
            for number, name in enumerate(names))])
    embedder = Embedder.load(base / "model", "cpu", "float32", threads=1)
    embed_pictures(embedder, base / "csv" / "facts.csv", EmbedRequest(folder / "embedded"))
    (base / "csv" / "facts.csv").unlink()
    open_gallery(folder / "people", embedder.dim, model=embedder.info.model_id).close()


def _read_facts(copy: Path, file: Path, base: Path) -> Any:
    with open_gallery(copy / "people", model=model_of(copy / "embedded") or None) as gallery:
        answers = Answers(gallery)
        return together(lambda: add_rows(gallery, copy / "embedded", None, Told()),
                        lambda: len(GalleryLinker(gallery, 0.5).link_all()),
                        lambda: answers.list_people(9)["total"], lambda: len(answers.describe_person(1, 9)["rows"])
                        if gallery.count() else 0, gallery.verify)


# ------------------------------------------------------------------ requests to a gallery's service
_MARK = b"a7f3"  # between the parts of a form


def _make_requests(base: Path) -> None:
    folder = base / "requests"
    shutil.copytree(base / "gallery", folder / "people")
    row = np.eye(1, 8)[0].tolist()
    where = {"cameras": [1], "since": 0, "until": 99, "sets": ["s"]}
    bodies = {"search": {"vectors": [row], "k": 3, "where": where, "re_rank": True},
              "identify": {"vectors": [row, row], "threshold": 0.5, "where": {"identities": [1, 2]}},
              "add": {"vectors": [row], "ids": [77], "facts": {"camera": 1, "time": 5, "set": "s", "name": "n",
                                                               "data": {"a": [1, "b"], "apart": [1]}}},
              "assign": {"ids": [8, 9], "person": "cyd"}, "name": {"identity": 1, "name": "eve"},
              "merge": {"into": 1, "other": 2}, "split": {"ids": [1]}, "remove": {"ids": [3], "erase": True}}
    for name, body in bodies.items():
        (folder / f"{name}.json").write_text(json.dumps(body))
    picture = (base / "pictures" / "rgb.jpg").read_bytes()
    for name, body in (("search", {"boxes": [[0, 0, 20, 30]], "k": 2}), ("add", {"facts": {"camera": 2}})):
        parts = (b'Content-Disposition: form-data; name="picture"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
                 + picture, b'Content-Disposition: form-data; name="request"\r\n\r\n' + json.dumps(body).encode())
        (folder / f"{name}.form").write_bytes(b"".join(b"--%s\r\n%s\r\n" % (_MARK, part) for part in parts)
                                              + b"--%s--\r\n" % _MARK)


def _embed_rows(pictures: list[np.ndarray]) -> np.ndarray:
    """[N, 8] of length 1."""
    rows = np.array([cv2.resize(picture, (8, 1), interpolation=cv2.INTER_AREA)[0, :, 0] for picture in pictures],
                    np.float32) + 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _read_request(copy: Path, file: Path, base: Path) -> list[Any]:
    """The answer's status; then what the gallery makes of what it has taken."""
    from processor.gallery.service.app import make_app

    content = b"application/json" if file.suffix == ".json" else b"multipart/form-data; boundary=" + _MARK
    vision = Vision(lambda data: decode_picture(data, 1 << 24), crop_boxes, _embed_rows, threshold=0.5)
    with open_gallery(copy / "people") as gallery:
        app = make_app(gallery, vision)
        status, answer = asyncio.run(_ask(app, f"/v1/{file.stem}", content, file.read_bytes()))
        if status >= 500:
            raise RuntimeError(f"{status}: {answer[:500]!r}")
        if status >= 400:
            raise ValueError(str(json.loads(answer)["error"]))
        answers = Answers(gallery)
        return [status, *together(gallery.verify, lambda: len(GalleryLinker(gallery, 0.5).link_all()),
                                  lambda: answers.list_people(9)["total"],
                                  lambda: len(json.dumps([answers.rows(batch) for batch in gallery.scan()])))]


async def _ask(app: Any, path: str, content: bytes, body: bytes) -> tuple[int, bytes]:
    """The status and the body that an ASGI application answers a POST with."""
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
             "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
             "headers": [(b"host", b"localhost"), (b"content-type", content),
                         (b"content-length", str(len(body)).encode())],
             "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


KINDS: tuple[Kind, ...] = (
    Kind("lists of public sets: CUHK03's JSON, MSMT17, VehicleID", "public",
         ("*/*.json", "*/*.json", "*/*.txt", "*/*/*.txt"), _read_public, turns=3),
    Kind("texts of identities, text encoders", "texts", ("*.pth",), _read_texts, ("learned.pth",), turns=2),
    Kind("videos: AVI, MP4, Matroska", "videos", ("*.avi", "*.mp4", "*.mkv"), _read_video, turns=4),
    Kind("pages: ensembles, configs, indices, small copies", "pages",
         (ENSEMBLE, ENSEMBLE, "metrics.json", "a/features/*.json", "a/features/*.yml", "a/features/*.json",
          "a/model/model.json", f"a/{RANKS}/pictures/*"), _read_pages, quick=False),
    Kind("rows for a gallery: vectors, names, facts", "rows", ("embedded/*",), _read_facts, quick=False, turns=3),
    Kind("requests to a gallery's service: JSON, forms", "requests", ("*.json", "*.form"), _read_request, quick=False,
         turns=4),
)


def make_further(base: Path, quick: bool) -> None:
    """Make the specimens below `base`, beside those of `make_specimens`; quick: without those that take a model."""
    for make in (_make_public, _make_texts, _make_videos,
                 *(() if quick else (_make_pages, _make_rows, _make_requests))):
        make(base)
