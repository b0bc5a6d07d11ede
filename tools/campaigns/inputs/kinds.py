"""Which files are read by what: each kind of input is read as the commands read it."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from configs import flatten_cfg, load_cfg
from datasets.files.images import decode
from datasets.files.pack_reader import PackedSource
from datasets.make_dataloader import make_sets
from processor.doctor.examine import DoctorOptions, examine
from processor.doctor.inspection import inspect_image
from processor.embed_files import Request as EmbedRequest
from processor.embed_files import embed_pictures
from processor.embedder import Embedder
from processor.embedding.gallery_files import Told, decode_picture, model_of, read_rows
from processor.embedding.picture_lists import find_pictures
from processor.embedding.pictures import read_picture
from processor.embedding.tracks import read_tracks
from processor.evaluation.calibrate import calibrate
from processor.evaluation.comparison import compare_runs
from processor.evaluation.ensemble import ensemble
from processor.evaluation.submission_check import validate_submission
from processor.evaluation.tuning import tune
from processor.export.card import write_card
from processor.export.model_folder import feature_weights, read_info
from processor.gallery import Where, open_gallery
from processor.import_weights import import_weights
from processor.stages.stage import assess
from processor.stages.summary import summarise, table
from processor.trained_model import open_trained
from processor.training.build import checkpoint_folder
from processor.training.curves import draw_curves
from processor.training.metrics_log import MetricsLog
from tools.campaigns.inputs import further, unfinished
from tools.campaigns.inputs.kind import OUT, Kind, together
from tools.campaigns.inputs.specimens import DIM, FPR, GRID, options, rows_file, stages

PIXELS = 1 << 24  # of an upload


def _read_naic(copy: Path, file: Path, base: Path) -> list[Any]:
    split = ["DATASETS.VALIDATION", str(copy / "derived" / "validation.json")]
    words = [*options(base), "DATASETS.ROOT_DIR", str(copy), "DATASETS.DERIVED_DIR", str(copy / "derived")]

    def load(more: list[str]) -> Any:
        data, _, _ = make_sets(load_cfg(None, [*words, *more])).load()
        return repr(data.train)

    return together(lambda: load([]), lambda: load(split), lambda: examine(
        copy, copy / OUT, DoctorOptions(lists_only=True, derived_dir=copy / "derived")).findings.counts)


def _read_yaml(copy: Path, file: Path, base: Path) -> Any:
    return flatten_cfg(load_cfg(file, []))


def _read_csv(copy: Path, file: Path, base: Path) -> list[Any]:
    def load() -> Any:
        cfg = load_cfg(None, [*options(base), "DATASETS.NAMES", "csv:people.csv", "DATASETS.ROOT_DIR", str(copy)])
        sets = make_sets(cfg)
        examine(sets, copy / OUT, DoctorOptions(lists_only=True))
        return repr(sets.load()[0].train)

    return together(load, lambda: find_pictures(copy / "list.csv").names,
                    lambda: find_pictures(copy / "list.txt").names, lambda: read_tracks(copy / "tracks.txt"))


def _read_picture(copy: Path, file: Path, base: Path) -> list[Any]:
    data = file.read_bytes()
    return together(lambda: inspect_image(data)[1], lambda: decode(data, (16, 8), file.name),
                lambda: decode_picture(data, PIXELS), lambda: read_picture(str(file), (32, 16)))


def _read_pack(copy: Path, file: Path, base: Path) -> list[bytes]:
    source = PackedSource(copy)
    source.describe()
    return [source.read(key) for key in source.all_keys()]


def _read_records(copy: Path, file: Path, base: Path) -> Any:
    return examine(base / "data", copy, DoctorOptions(derived_dir=base / "data" / "derived", workers=1, progress=False,
                                                      near_bits=6)).findings.counts


def _read_equal_list(copy: Path, file: Path, base: Path) -> Any:
    return [str(made.kept) for made in examine(base / "data", copy / OUT, DoctorOptions(
        equal_lists=[file], workers=1, progress=False, lists_only=False)).clean_lists]


def _read_answer(copy: Path, file: Path, base: Path) -> Any:
    return validate_submission(file, base / "data", top_k=5).lines()


def _read_gallery(copy: Path, file: Path, base: Path) -> list[Any]:
    with open_gallery(copy) as gallery:
        ledger, query = gallery.ledger, np.eye(1, DIM, dtype=np.float32)
        return together(gallery.verify, gallery.info, lambda: gallery.candidates(query, 3, Where(cameras=[1])).ids,
                    lambda: gallery.candidates(np.concatenate([query, -query]), 5).ids,
                    lambda: [batch.vectors for batch in gallery.scan()], lambda: gallery.count(Where(sets=["s"])),
                    ledger.names, lambda: ledger.thumbnail(1), ledger.history, lambda: ledger.undo(),
                    lambda: ledger.assign([9], 1, "me"), lambda: gallery.add([99], query, {}),
                    lambda: gallery.remove([1], erase=True), gallery.compact)


def _read_stages(copy: Path, file: Path, base: Path) -> list[Any]:
    made = stages(copy)
    return together(*(lambda stage=stage: assess(stage, copy) for stage in made), lambda: table(summarise(
        copy, "recipe", "data", made[:1], {"test_a": 1.0})))


def _read_partial(copy: Path, file: Path, base: Path) -> Any:
    with rows_file(copy) as rows:
        for batch in rows.undone:
            rows.write(batch, [2 * batch, 2 * batch + 1], {"": np.ones((2, 4), np.float32)}, [])
        return rows.finish(lambda *_: None)


def _read_run(copy: Path, file: Path, base: Path) -> list[Any]:
    answer = copy / OUT / "submission.json"
    return together(lambda: ensemble([copy], None, answer), lambda: ensemble([copy], None, answer, saved_distmats=True),
                lambda: repr(compare_runs(copy, base / "run").differences))


def _read_tuning(copy: Path, file: Path, base: Path) -> Any:
    return repr(tune([base / "run"], copy, GRID).best)


def _read_training(copy: Path, file: Path, base: Path) -> list[Any]:
    found = checkpoint_folder(load_cfg(None, [*options(base), "OUTPUT_DIR", str(copy)]))
    return together(lambda: found.find("auto")[1], lambda: feature_weights(open_trained(copy / "latest.pth").model))


def _read_log(copy: Path, file: Path, base: Path) -> None:
    MetricsLog(copy, 1, 3).close()
    draw_curves(copy)


def _read_model(copy: Path, file: Path, base: Path) -> list[Any]:
    def embed() -> Any:
        embedder = Embedder.load(copy, "cpu", "float32", threads=1)
        feats = embedder.embed([base / "pictures" / "rgb.png"])
        return feats, together(lambda: embedder.threshold(FPR), lambda: embedder.probability(feats, feats))

    def calibrated() -> None:
        calibrate(base / "run", copy, [FPR])

    return together(embed, lambda: write_card(copy), lambda: read_info(copy).size, calibrated)[0]


def _read_exported(copy: Path, file: Path, base: Path) -> Any:
    path = copy / ("model.onnx" if file.suffix == ".onnx" else "model.xml")
    return Embedder.load(path, "cpu", threads=1).embed([base / "pictures" / "rgb.png"])


def _read_published(copy: Path, file: Path, base: Path) -> Any:
    import_weights(file, copy / OUT, opts=["INPUT.SIZE_TEST", "[32, 16]"])
    return read_info(copy / OUT).model_id


def _read_embedded(copy: Path, file: Path, base: Path) -> list[Any]:
    return together(lambda: [(rows.ids, rows.facts) for rows in read_rows(copy, None, Told())], lambda: model_of(copy),
                lambda: embed_pictures(Embedder.load(base / "model", "cpu", "float32", threads=1),
                                       base / "csv" / "list.csv", EmbedRequest(copy)))


KINDS: tuple[Kind, ...] = (
    Kind("NAIC's lists, domain lists, truth, validation split", "data",
         ("MyDataSet/train_*/*.txt", "derived/*", "MyDataSet/*.json", "MyDataSet/*/*.json"), _read_naic),
    Kind("YAML configs with their bases", "configs", ("**/*.yml",), _read_yaml, turns=5),
    Kind("CSV sets, lists of pictures, tracks", "csv", ("*.csv", "*.txt"), _read_csv, turns=3),
    Kind("PNG files", "pictures", ("*.png",), _read_picture, turns=7),
    Kind("JPEG files", "pictures", ("*.jpg",), _read_picture, turns=9),
    Kind("pictures of the other kinds", "pictures", ("*.bmp", "*.webp", "*.tif", "*.gif", "*.jp2", "*.ppm"),
         _read_picture, turns=8),
    Kind("packs", "pack", ("*",), _read_pack, ("*",), turns=7),
    Kind("the doctor's records", "doctor", ("doctor_records.sqlite",), _read_records),
    Kind("the doctor's lists of equal paths", "equal", ("*.txt",), _read_equal_list),
    Kind("submissions", "answer", ("submission.json",), _read_answer, turns=5),
    Kind("galleries: rows, vectors, codes, ledger, thumbnails", "gallery", ("*",), _read_gallery, turns=4),
    Kind("records of stages, metrics of runs", "stages", ("stages/*", "a/*"), _read_stages, turns=3),
    Kind("rows that are being filled", "partial", ("*.partial/*",), _read_partial, turns=3),
    Kind("feature banks, distance matrices, metrics, figures by query", "run",
         ("features/*", "*.npy", "metrics.json", "per_query.json"), _read_run, quick=False),
    Kind("results of tuning", "tuned", ("tuning.json",), _read_tuning, quick=False, turns=2),
    Kind("checkpoints", "training", ("latest.pth",), _read_training, ("latest.pth",), quick=False),
    Kind("logs of trainings", "training", ("metrics.jsonl",), _read_log, quick=False),
    Kind("model folders: weights, model.json, thresholds, proofs", "model", ("*.safetensors", "*.json"), _read_model,
         ("*.safetensors",), quick=False),
    Kind("exported files: ONNX, OpenVINO", "exported", ("*.onnx", "*.xml", "*.bin"), _read_exported,
         ("*.onnx", "*.xml", "*.bin"), quick=False),
    Kind("published weights: .pth, .pth of before 2020, .safetensors", "published", ("*",), _read_published,
         quick=False),
    Kind("rows of tools/embed.py", "embedded", ("*",), _read_embedded, quick=False),
    *unfinished.KINDS, *further.KINDS,
)


def files_of(kind: Kind, folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of the patterns below a folder, relative to it, those of a repeated pattern as often."""
    return [path.relative_to(folder) for pattern in patterns for path in sorted(folder.glob(pattern))
            if path.is_file() and path.name != ".lock" and os.path.getsize(path) < 1 << 26]
