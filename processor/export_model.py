"""From a checkpoint to a model folder: weights, files for other programs, each with its proof, and a card."""
from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch

from configs import change_cfg, load_cfg, load_cfg_text
from datasets.demo.plan import Shot, Sizes
from datasets.demo.synthetic import render
from datasets.files.images import decode, resize
from datasets.make_dataloader import TestLoader, make_dataloader, make_sets
from processor.embedder import read_picture
from processor.embedding.picture_lists import find_pictures
from processor.evaluation.feature_bank import Ranking
from processor.evaluation.ranking import rank_domains
from processor.evaluation.sources import bank_source
from processor.export.card import PROOFS, write_card
from processor.export.model_folder import (
    INFO,
    WEIGHTS,
    ModelInfo,
    feature_weights,
    holds_other_model,
    write_model_folder,
)
from processor.export.networks import OnePassNet, with_half_backbone
from processor.export.onnx_file import quantise, write_onnx
from processor.export.openvino_file import write_openvino
from processor.export.packages import load_package
from processor.export.proof import Proof, compare_rankings, compare_rows, find_fault, time_batches
from processor.export.runtimes import OnnxRuntime, OpenVinoRuntime, Runtime, TorchRuntime
from processor.export.torch_file import ExportedProgram, write_torch
from processor.inference import make_bank
from processor.retrieval.metrics import RankResult, merge_results
from processor.trained_model import TrainedModel, open_trained
from utils.checkpoint import digest, read_checkpoint
from utils.files import make_mapped_array, read_object, work_folder, write_json
from utils.precision import make_precision

logger = logging.getLogger(__name__)

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
PRECISIONS = ("float32", "float16", "int8")
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "onnxruntime", "openvino"), "torch": ()}
_DRAWN, _CALIBRATED = 96, 200  # pictures
_BATCHES = (1, 2, 7, 64)  # in which they are compared, because a file may be right at one batch alone


@dataclass(frozen=True)
class Request:
    """What to export, and how to prove it.

    Attributes:
        weight: a checkpoint, or a model folder.
        calibration: a folder of pictures that stand for what the model will see.
        verify: a YAML file, or the folder that holds the sets that the model was trained on; "" = no ranking.
        opts: KEY VALUE pairs over that YAML file.
        max_drop: see `find_fault`.
        force: replace another model's folder.
    """

    weight: Path
    output: Path
    formats: Sequence[str] = ()
    precisions: list[str] = field(default_factory=lambda: ["float32"])
    calibration: Path | None = None
    verify: str = ""
    opts: Sequence[str] = ()
    max_drop: float | None = None
    force: bool = False


@dataclass(frozen=True)
class Pictures:
    """What rows are compared on; source: what they are, in words; batches: uint8 [B, H, W, 3], the same every time."""

    source: str
    count: int
    batches: Callable[[], Iterator[np.ndarray]]

    def rows(self, runtime: Runtime, dim: int, path: Path) -> np.ndarray:
        """[N, D], in a file, because a gallery may be large."""
        feats, done = make_mapped_array(path, (self.count, dim)), 0
        for images in self.batches():
            feats[done : done + len(images)] = runtime.rows(images)
            done += len(images)
        return feats


def export_model(request: Request) -> list[str]:
    """Write a model folder with the files that are asked for.

    Returns:
        A line for each file that failed its proof and was not kept.
    Raises:
        ValueError, OSError: before anything is written: the model, the pictures or a package are not as they must be,
            or the folder has another model in it.
    """
    _check(request)
    trained = open_trained(request.weight)
    replaces = holds_other_model(request.output, trained.info, request.force)
    tests = _tests(request, trained.info) if request.verify and request.formats else {}
    images = _calibration_images(request, trained.info) if request.formats else None
    if replaces:
        remove_exports(request.output)
    write_model_folder(request.output, trained.info, feature_weights(trained.model))
    faults = []
    if request.formats:
        with work_folder(request.output, "export") as work:
            faults = _Exporter(trained, request, tests, images, work).export()
    write_card(request.output)
    return faults


def remove_exports(folder: Path) -> None:
    """Remove what `export_model` wrote of another model."""
    files = [Path(file_name(form, precision)) for form in FORMATS for precision in PRECISIONS]
    for file in (*files, *(file.with_suffix(".bin") for file in files), INFO, WEIGHTS, PROOFS):
        (folder / file).unlink(missing_ok=True)


def _check(request: Request) -> None:
    if not request.formats and (request.verify or request.calibration or request.precisions != ["float32"]):
        raise ValueError("--precision, --calibration and --verify are of the files of --format; name one")
    for form in request.formats:
        for package in _PACKAGES[form]:
            load_package(package)
    if "int8" in request.precisions:
        if "torch" in request.formats:
            raise ValueError("--precision int8 is of --format onnx and openvino; torch has no such file")
        if request.calibration is None and not request.verify:
            raise ValueError("--precision int8 needs pictures that stand for what the model will see: --calibration "
                             "FOLDER, or --verify, whose set has them")


# ------------------------------------------------------------------ pictures
def _tests(request: Request, info: ModelInfo) -> dict[str, TestLoader]:
    """The evaluations of --verify whose truth is known."""
    tests = {domain: test for domain, test in make_dataloader(_verify_cfg(request, info), train=False).test.items()
             if test.has_truth}
    if not tests:
        raise ValueError(f"--verify {request.verify}: no query has a known identity, so that there is no mAP")
    return tests


def _verify_cfg(request: Request, info: ModelInfo):
    """The config of --verify, its pictures of the model's size; of a folder the checkpoint's own with that root."""
    weight, changes = request.weight, {}
    if weight.suffix == ".safetensors":
        weight = weight.parent
    if not Path(request.verify).is_dir():
        cfg = load_cfg(request.verify)
    elif weight.is_dir():
        cfg = load_cfg(None)
        changes = {"DATASETS.NAMES": info.trained_on.get("sets", cfg.DATASETS.NAMES)}
    else:
        cfg = load_cfg_text(read_checkpoint(weight)["config"], str(weight))
    if Path(request.verify).is_dir():  # lists that the training or run.sh derived are taken where they are
        places = [cfg.DATASETS.DERIVED_DIR, *(str(folder / "derived") for folder in weight.resolve().parents[:3])]
        changes |= {"DATASETS.ROOT_DIR": request.verify, "DATASETS.PACKED": "",
                    "DATASETS.DERIVED_DIR": next((place for place in places if place and Path(place).is_dir()), "")}
    if len(request.opts) % 2:
        raise ValueError(f"{request.opts[-1]}: expected KEY VALUE pairs, the last key has no value")
    changes |= {"OUTPUT_DIR": str(weight if weight.is_dir() else weight.parent), "INPUT.SIZE_TEST": list(info.size)}
    return change_cfg(cfg, {**changes, **dict(zip(request.opts[::2], request.opts[1::2], strict=True))})


def _calibration_images(request: Request, info: ModelInfo) -> tuple[str, torch.Tensor]:
    """What they are, and uint8 [N, H, W, 3]: of --calibration, else of the set of --verify, else of the demo set."""
    if request.calibration is not None:
        source = f"pictures of {request.calibration.name}"
        images = [read_picture(path, info.size) for path in _spread(find_pictures(request.calibration).paths)]
    elif request.verify:
        sets = make_sets(_verify_cfg(request, info))
        names = ", ".join(reference.name for reference in sets.named)
        try:
            (data, files, _), source = sets.load(test=False), f"training pictures of {names}"
        except (ValueError, OSError):  # no training part there
            (data, files, _), source = sets.load(train=False), f"test pictures of {sets.measured_on}"
        keys = [sample.key for sample in data.train] or list(data.keys())
        images = [decode(files.read(key), info.size, key) for key in _spread(keys)]
    else:
        shots = [Shot(number, ("green", "normal")[number % 2], number % 4 + 1, number, ())
                 for number in range(_DRAWN)]
        source = "pictures drawn by the demo set's program (seed 0), no photographs"
        images = [resize(np.ascontiguousarray(render(0, Sizes(), shot)[:, :, ::-1]), info.size) for shot in shots]
    return f"{len(images)} {source}", torch.from_numpy(np.stack(images))


def _spread(items: list, most: int = _CALIBRATED) -> list:
    """At most so many, evenly over all."""
    return [items[index] for index in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))]


# ------------------------------------------------------------------ files
class _Exporter:
    """Makes files in a folder of its own, proves each, and moves those that hold to the model folder."""

    def __init__(self, trained: TrainedModel, request: Request, tests: dict[str, TestLoader],
                 images: tuple[str, torch.Tensor], work: Path):
        self.trained, self.request, self.tests, self.work = trained, request, tests, work
        source, self.images = images
        names = [source, *([f"all pictures of {', '.join(tests)}"] if tests else [])]
        count = len(self.images) + sum(len(test.samples) for test in tests.values())
        self.pictures = Pictures(", and ".join(names), count, self._batches)

    def _batches(self) -> Iterator[np.ndarray]:
        """The calibration's pictures, then those of the evaluations."""
        begin = 0
        for size in chain(_BATCHES, repeat(_BATCHES[-1])):
            if begin >= len(self.images):
                break
            yield self.images[begin : begin + size].numpy()
            begin += size
        for test in self.tests.values():
            yield from (batch.images.numpy() for batch in test.loader)

    def export(self) -> list[str]:
        """Returns a line for each file that was not kept."""
        kept = self.request.output / PROOFS
        earlier = read_object(kept) if kept.is_file() else {}  # before hours of work
        dim, size = self.trained.info.dim, self.trained.info.size
        reference = TorchRuntime(self.trained.network(), make_precision(torch.device("cpu"), False))
        expected = self.pictures.rows(reference, dim, self.work / "expected.npy")
        proofs, faults = {"torch": {"images_per_second": time_batches(reference, size)}}, []
        for precision in self.request.precisions:
            for form in self.request.formats:
                path, runtime = self._make(form, precision)
                rows = self.pictures.rows(runtime, dim, self.work / "rows.npy")
                proof = self._prove(expected, rows, precision, time_batches(runtime, size))
                logger.info("%s: largest difference %.2g, smallest cosine %.6f", path.name, proof.largest_difference,
                            proof.smallest_cosine)
                if fault := find_fault(proof, self.request.max_drop):
                    faults.append(f"{path.name} is not kept: {fault}")
                    continue
                proofs[path.name] = asdict(proof)
                for made in (path.with_suffix(".bin"), path) if form == "openvino" else (path,):
                    os.replace(made, self.request.output / made.name)
        write_json(kept, {**earlier, **proofs})
        return faults

    def info(self, precision: str) -> ModelInfo:
        """What a file of this precision says of itself."""
        if precision == "float32":
            return self.trained.info
        made_of = {"model_id": self.trained.info.model_id, "precision": precision,
                   "calibration": self.images if precision == "int8" else None}
        return replace(self.trained.info, model_id=digest(made_of), precision=precision, thresholds={})

    def _make(self, form: str, precision: str) -> tuple[Path, Runtime]:
        """Write a file; returns its path, and what computes it."""
        path = self.work / file_name(form, precision)
        if form == "torch":
            write_torch(self._network(precision), self.info(precision), path)
            return path, ExportedProgram(path)
        if form == "onnx":
            return self._onnx(precision), OnnxRuntime(self._onnx(precision), "cpu")
        # OpenVINO makes weights float16 itself.
        write_openvino(self._onnx("int8" if precision == "int8" else "float32", "source_"), self.info(precision), path)
        return path, OpenVinoRuntime(path)

    def _onnx(self, precision: str, prefix: str = "") -> Path:
        path = self.work / (prefix + file_name("onnx", precision))
        if path.is_file():
            return path
        if precision == "int8":
            quantise(self._onnx("float32", "source_"), self.info(precision), self.images, path)
        else:
            write_onnx(self._network(precision), self.info(precision), path)
        return path

    def _network(self, precision: str) -> OnePassNet:
        trained = self.trained
        if precision == "float16":
            trained = TrainedModel(with_half_backbone(trained.model), trained.info)
        return trained.network(OnePassNet)

    def _prove(self, expected: np.ndarray, rows: np.ndarray, precision: str, speeds: dict[str, float]) -> Proof:
        figures = {}
        if self.tests:
            figures = compare_rankings(*(_rank(self.tests, feats[len(self.images):]) for feats in (expected, rows)))
        return Proof(self.info(precision).model_id, precision, self.pictures.count, self.pictures.source,
                     *compare_rows(expected, rows), speeds, **figures)


def file_name(form: str, precision: str) -> str:
    """model.onnx, model_int8.xml, ..."""
    return f"model{'' if precision == 'float32' else f'_{precision}'}{FORMATS[form]}"


def _rank(tests: dict[str, TestLoader], rows: np.ndarray) -> RankResult:
    """Rows [N, D] of all pictures of the evaluations, ranked without re-ranking."""
    domains, begin = {}, 0
    for domain, test in tests.items():
        bank = make_bank(test, {"row": rows[begin : begin + len(test.samples)]})
        domains[domain] = [bank_source("row", bank, Ranking(True, "cosine", None))]
        begin += len(test.samples)
    return merge_results([kinds["plain"] for kinds in rank_domains(domains, [1.0], top=200).results.values()])
