"""Real files of every kind that is read, tiny ones, made once by the framework's own code."""
from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from PIL import Image

from configs import change_cfg, load_cfg
from datasets.demo.plan import Sizes
from datasets.demo.synthetic import make_demo_data
from datasets.files.images import FolderSource, list_images
from datasets.files.pack_writer import pack
from datasets.sets.domains import split_domains
from datasets.validation.cut import SplitRequest
from model.backbones import build_backbone
from processor.doctor.examine import DoctorOptions, examine
from processor.embed_files import Request as EmbedRequest
from processor.embed_files import embed_pictures
from processor.embedder import Embedder
from processor.embedding.rows_file import RowsFile
from processor.evaluation.calibrate import calibrate
from processor.evaluation.tuning import Grid, tune
from processor.export_model import Request as ExportRequest
from processor.export_model import export_model
from processor.gallery import open_gallery, segments
from processor.import_weights import import_weights
from processor.inference import do_inference
from processor.prepare import make_validation
from processor.retrieval.submission import write_submission
from processor.stages.stage import Stage, write_begun, write_done
from processor.training.build import build
from processor.training.metrics_log import MetricsLog
from processor.training.state import state_of
from utils.checkpoint import save_checkpoint
from utils.dist import ALONE

SIZES = Sizes(ids=6, images=5, singles=1, shared=1, query_ids=6, query_images=2, gallery_images=3, distractors=2,
              distractor_images=1, cameras=3, height=32, width=16)
NETWORK = "resnet18_ibn_b_w32"
DIM, ROWS = 8, 40  # of the gallery
FPR = 0.5  # a false positive rate that so few pairs can tell
GRID = Grid(k1=[3], k2=[1], lambdas=[0.5])
_CONFIGS = Path(__file__).resolve().parent.parent.parent.parent / "configs"


def options(base: Path) -> list[str]:
    """KEY VALUE pairs of the tiny model and data set."""
    values = {
        "MODEL.NAME": NETWORK, "MODEL.PRETRAIN_CHOICE": "none", "MODEL.DEVICE": "cpu", "INPUT.SIZE_TRAIN": "[32, 16]",
        "INPUT.SIZE_TEST": "[32, 16]", "DATASETS.NAMES": "naic", "DATASETS.ROOT_DIR": str(base / "data"),
        "DATASETS.DERIVED_DIR": str(base / "data" / "derived"), "DATALOADER.NUM_INSTANCE": "2",
        "DATALOADER.NUM_WORKERS": "0", "SOLVER.IMS_PER_BATCH": "8", "SOLVER.MAX_EPOCHS": "2", "SOLVER.FP16": "False",
        "TEST.RE_RANKING": "True", "TEST.RE_RANKING_PARAMETER": "[4, 1, 0.5]", "TEST.TOP_K": "5",
        "OUTPUT_DIR": str(base / "training")}
    return [word for pair in values.items() for word in pair]


def make_specimens(base: Path, quick: bool) -> None:
    """Make all of them below `base`; quick: without those that take a model."""
    torch.set_num_threads(1)
    _make_data(base)
    _make_pictures(base / "pictures")
    shutil.copytree(_CONFIGS, base / "configs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    _make_csv(base / "csv", base / "pictures")
    pack(FolderSource(base / "pictures"), list_images(base / "pictures"), base / "pack", threads=1)
    examine(base / "data", base / "doctor", DoctorOptions(derived_dir=base / "data" / "derived", workers=1,
                                                          progress=False))
    _make_equal_list(base / "equal", base / "data" / "MyDataSet")
    _make_answer(base / "answer", base / "data" / "MyDataSet" / "image_B_v1_1")
    _make_gallery(base / "gallery", base / "pictures" / "rgb.jpg")
    _make_records(base / "stages")
    _make_partial(base / "partial")
    if not quick:
        _make_models(base)


def _make_data(base: Path) -> None:
    test = make_demo_data(base / "data", seed=3, sizes=SIZES, workers=1, progress=False) / "image_B_v1_1"
    split_domains(test / "query", test / "gallery", base / "data" / "derived", workers=1)
    cfg = load_cfg(None, options(base))
    make_validation(cfg, SplitRequest(2, 0, green=0.5, queries=1, seed=0, compare=True),
                    base / "data" / "derived" / "validation.json", workers=1)


def _make_pictures(folder: Path) -> None:
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 3, 3), np.uint8)
    rgb = Image.fromarray(cv2.resize(noise, (48, 96), interpolation=cv2.INTER_CUBIC))
    rgb.save(folder / "rgb.png")
    rgb.save(folder / "rgb.jpg", quality=90)
    rgb.save(folder / "progressive.jpg", progressive=True)
    rgb.save(folder / "restarts.jpg", restart_marker_blocks=2)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("L").save(folder / "grey.jpg")
    rgb.quantize(16).save(folder / "palette.png")
    rgb.convert("RGBA").save(folder / "alpha.png")
    cv2.imwrite(str(folder / "deep.png"), np.asarray(rgb).astype(np.uint16) * 257)
    for suffix in ("bmp", "webp", "tif", "gif", "jp2", "ppm"):
        rgb.save(folder / f"rgb.{suffix}")
    rgb.save(folder / "packed.tif", compression="tiff_lzw")


def _make_csv(folder: Path, pictures: Path) -> None:
    shutil.copytree(pictures, folder / "shots")
    names = sorted(os.listdir(pictures))
    lines = [f"shots/{name},{'abcd'[i // 4]},{i % 4 + 1},{'train' if i < 8 else ('query', 'gallery')[i % 2]}"
             for i, name in enumerate(names)]
    (folder / "people.csv").write_text("path,pid,camid,split\n" + "\n".join(lines) + "\n")
    (folder / "list.csv").write_text("path,camera,time,note\n" + "\n".join(f"shots/{name},1,{i},x" for i, name
                                                                             in enumerate(names)) + "\n")
    (folder / "list.txt").write_text("".join(f"shots/{name}\n" for name in names))
    (folder / "tracks.txt").write_text("".join(f"{i},{i % 3},1.5,2,10,20,0.9,-1,-1,-1\n" for i in range(1, 12)))


def _make_equal_list(folder: Path, data: Path) -> None:
    folder.mkdir()
    names = sorted(os.listdir(data / "train_2019_cs" / "train"))[:4]
    (folder / "cs_2019equal_path.txt").write_text("".join(f"/data/train/{name}\n" for name in names))


def _make_answer(folder: Path, test: Path) -> None:
    query, gallery = (list_images(test / part) for part in ("query", "gallery"))
    write_submission(folder / "submission.json", query, gallery, [np.arange(len(gallery))[:5] for _ in query])


def _make_gallery(folder: Path, picture: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with patch.object(segments, "CODE_ROWS", 8), open_gallery(folder, DIM, model="model") as gallery:
        gallery.segment_rows = 16  # so that there are several files; all have codes
        gallery.add(range(ROWS), vectors, {"camera": [1, 2] * (ROWS // 2), "time": range(ROWS), "name": ["a"] * ROWS,
                                           "set": ["s"] * ROWS})
        first, second = gallery.ledger.identities(["ann", "bob"]).tolist()
        gallery.ledger.assign([1, 2, 3], first, "me")
        gallery.ledger.assign([4, 5], second, "me")
        gallery.ledger.put_thumbnails([1, 2], [picture.read_bytes()] * 2)
        gallery.remove([7])


def stages(out: Path) -> list[Stage]:
    """Stages whose records are in OUT/stages."""
    return [Stage("test_a", ["tools/test.py", "--x"], [out / "a" / "metrics.json"], {"TEST.TOP_K": 5},
                  lambda: {"the checkpoint": "abc"}),
            Stage("train_a", ["tools/train.py"], [out / "b" / "latest.pth"], {"MODEL.NAME": "x"},
                  begin=lambda: out / "b" / "latest.pth")]


def _make_records(out: Path) -> None:
    for path in (out / "a" / "metrics.json", out / "b" / "latest.pth"):
        path.parent.mkdir(parents=True)
        path.write_text('{"all": {"plain": {"mAP": 0.5, "rank1": 0.5, "naic_score": 0.5}}}')
    for stage in stages(out):
        write_begun(stage, out, stage.facts())
        write_done(stage, out, stage.facts(), 1.5)


def rows_file(folder: Path) -> RowsFile:
    """Rows of which half are there."""
    return RowsFile(folder / "feats.npy", {"": 4}, 6, 3, {"model_id": "x", "rows": 6}, False, ALONE)


def _make_partial(folder: Path) -> None:
    folder.mkdir()
    with rows_file(folder) as file:
        file.write(0, [0, 1], {"": np.ones((2, 4), np.float32)}, [(1, "cannot be read")])


def _make_models(base: Path) -> None:
    cfg = load_cfg(None, options(base))
    run = build(cfg, pretrained=False)
    save_checkpoint(base / "training" / "latest.pth", state_of(run, 1, 0))
    log = MetricsLog(base / "training", 0, 0)
    for step in range(1, 4):
        log.write(step, 1, loss=1.0 / step, acc=0.5, lr=0.1)
    log.close()
    run.close()
    shutil.rmtree(base / "training" / "tensorboard")
    weight = base / "training" / "latest.pth"
    do_inference(change_cfg(cfg, {"OUTPUT_DIR": str(base / "run"), "TEST.WEIGHT": str(weight)}), save_distmat=True)
    export_model(ExportRequest(weight, base / "model"))
    calibrate(base / "run", base / "model", [FPR])
    tune([base / "run"], base / "tuned", GRID)
    (base / "published").mkdir()
    state = build_backbone(NETWORK).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": np.float64(3)},
               base / "published" / "file.pth")
    torch.save(state, base / "published" / "old.pth", _use_new_zipfile_serialization=False)
    from safetensors.torch import save_file
    save_file(state, base / "published" / "file.safetensors")
    import_weights(base / "published" / "file.pth", base / "work" / "imported", opts=["INPUT.SIZE_TEST", "[32, 16]"])
    embed_pictures(Embedder.load(base / "model", "cpu", "float32", threads=1), base / "csv" / "list.csv",
                   EmbedRequest(base / "embedded"))
    export_model(ExportRequest(weight, base / "exported", ("onnx", "openvino")))
