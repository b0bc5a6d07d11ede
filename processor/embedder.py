"""From pictures to vectors, with nothing but a model's file.

    embedder = Embedder.load("output/r18_96/latest.pth")
    feats = embedder.embed(["a.jpg", frame[y0:y1, x0:x1], Path("b.png")])   # [3, D] float32, rows of length 1
    embedder.similarity(feats[0], feats[1])                                 # their cosine
"""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from datasets.files.images import BadImage, decode, resize
from processor.export.model_folder import ModelInfo
from processor.export.runtimes import OnnxRuntime, Runtime, TorchRuntime
from processor.retrieval.calibration import probability
from processor.trained_model import open_trained
from utils.precision import Precision, cpu_has_bfloat16, make_precision, select_device

Item = str | os.PathLike | bytes | np.ndarray
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
HOW_TO_CALIBRATE = "measure thresholds with python tools/calibrate.py --run OUTPUT_DIR --model DIR"
_LEAST_SIDE = 2  # pixels; of less there is nothing to see
_SMALL_FILE = 1024  # bytes, within which a picture of less has room
_AHEAD = 2  # batches that are decoded while one is computed


class Embedder:
    """A trained model as a function of pictures.

    Args:
        runtime: computes rows.
        info: of the model.
        batch_size: pictures that are computed at a time; None: as tools/test.py does.
        threads: that decode; None: a core each.
    """

    def __init__(self, runtime: Runtime, info: ModelInfo, batch_size: int | None = None, threads: int | None = None):
        self.runtime, self.info = runtime, info
        self.batch_size = batch_size or info.evaluation.get("batch_size", 64)
        self.threads = threads or os.cpu_count() or 1

    @classmethod
    def load(cls, file: str | os.PathLike, device: str = "auto", precision: str = "auto",
             batch_size: int | None = None, threads: int | None = None) -> Embedder:
        """The model of a checkpoint of tools/train.py, of a folder of tools/export.py, or of its .onnx file.

        Size, colours, mean and std, resizing, mirror image, neck, branches and their weights are the file's.

        Args:
            device: auto (CUDA if there is a device) | cuda | cpu.
            precision: auto is bfloat16 on a CPU that has it, float16 on CUDA, else float32 | float32 | bfloat16 |
                float16. An .onnx file has its own.
        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, another program's, or does not say what model it is of.
        """
        path = Path(file)
        if path.suffix == ".onnx":
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
            runtime = OnnxRuntime(path)
            return cls(runtime, runtime.info, batch_size, threads)
        trained = open_trained(path)
        chosen = choose_precision(device, precision)
        runtime = TorchRuntime(trained.network(), chosen, trained.info.evaluation.get("channels_last", True))
        return cls(runtime, trained.info, batch_size, threads)

    @property
    def dim(self) -> int:
        """D, the numbers of a row."""
        return self.info.dim

    # -------------------------------------------------------------- pictures to rows
    def embed(self, items: Iterable[Item] | Item, *, raw: bool = False, bgr: bool = False,
              on_error: str = "raise") -> np.ndarray | dict[str, np.ndarray] | tuple:
        """A row for each picture.

        Args:
            items: paths, the bytes of image files, or uint8 arrays [H, W, 3] RGB, [H, W] grey or [H, W, 4] RGBA (whose
                transparency is dropped). A single one is a list of one.
            raw: the branches' features before normalisation, in the bits that tools/test.py writes into its feature
                bank, if the device and batch_size are the same: computed in the precision of the model's config.
            bgr: arrays are OpenCV's BGR or BGRA.
            on_error: raise | none: a bad picture has a row of NaN, and a list says what was wrong.
        Returns:
            [N, D] float32, rows of length 1; with `raw` {branch: [N, D_b] float32}; with on_error="none" a pair of
            that and [(index, reason)].
        Raises:
            BadImage, OSError: a picture cannot be read; the message begins with its index.
            ValueError: the model's file has no branches (an .onnx), but `raw` was asked for.
        """
        if on_error not in ("raise", "none"):
            raise ValueError(f"on_error={on_error!r}: expected raise or none")
        if isinstance(items, (str, os.PathLike, bytes, np.ndarray)) and not _is_stack(items):
            items = [items]
        compute = self._raw() if raw else (lambda images: {"": self.runtime.rows(images)})
        problems: list[tuple[int, str]] = []
        batches = [compute(images) for images in self._decoded(items, bgr, problems if on_error == "none" else None)]
        dims = {name: branch["dim"] for name, branch in self.info.branches.items()} if raw else {"": self.dim}
        feats = {name: np.concatenate([batch[name] for batch in batches] or [np.empty((0, dim), np.float32)])
                 for name, dim in dims.items()}
        for feat in feats.values():
            feat[[index for index, _ in problems]] = np.nan
        result = feats if raw else feats[""]
        return (result, problems) if on_error == "none" else result

    def embed_boxes(self, frame: np.ndarray, boxes: np.ndarray | Sequence, *, bgr: bool = False) -> np.ndarray:
        """A row for each box of a frame.

        Args:
            frame: uint8 [H, W, 3] RGB.
            boxes: [N, 4] x0, y0, x1, y1 in pixels, x1 and y1 exclusive; what lies outside the frame is cut off.
            bgr: the frame is OpenCV's.
        Returns:
            [N, D] float32, rows of length 1.
        Raises:
            ValueError: boxes are empty, outside the frame or not finite; all are named by their index.
        """
        return self.embed(crop_boxes(frame, boxes), bgr=bgr)

    def embed_tracklet(self, crops: Iterable[Item], *, bgr: bool = False) -> np.ndarray:
        """[D] float32: the mean of the pictures' rows, of length 1.

        Raises:
            ValueError: there is no picture; or as `embed`.
        """
        feats = self.embed(crops, bgr=bgr)
        if not len(feats):
            raise ValueError("a tracklet without a picture has no feature")
        mean = feats.astype(np.float64).mean(0)
        return (mean / max(np.linalg.norm(mean), 1e-12)).astype(np.float32)

    # -------------------------------------------------------------- rows to decisions
    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosines of rows: [N, D] and [M, D] to [N, M]; a single row [D] loses its axis."""
        return _unit(a) @ _unit(b).T

    def same(self, a: np.ndarray, b: np.ndarray, fpr: float = 1e-3) -> np.ndarray:
        """Whether rows are of the same person, at the threshold that so many pairs of different people pass.

        Raises:
            ValueError: the model has no threshold for this rate; the message says how to get one.
        """
        return self.similarity(a, b) >= self.threshold(fpr)

    def threshold(self, fpr: float) -> float:
        """The cosine from which on two rows are taken for the same person, see `same`."""
        known = {float(rate): cosine for rate, cosine in self.info.thresholds.get("cosine", {}).items()}
        if fpr not in known:
            rates = f"has thresholds for {', '.join(map(str, sorted(known)))} alone" if known else "is not calibrated"
            raise ValueError(f"no threshold for a false positive rate of {fpr}: the model {rates}; "
                             f"{HOW_TO_CALIBRATE} --fpr {fpr}")
        return known[fpr]

    def probability(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """How likely rows are of the same person if same and different are equally likely beforehand.

        Raises:
            ValueError: the model is not calibrated.
        """
        if "probability" not in self.info.thresholds:
            raise ValueError(f"the model is not calibrated: {HOW_TO_CALIBRATE}")
        distance = np.sqrt(np.maximum(2 - 2 * self.similarity(a, b), 0))
        return probability(distance, **self.info.thresholds["probability"])

    # -------------------------------------------------------------- batches
    def _raw(self):
        if not isinstance(self.runtime, TorchRuntime):
            raise ValueError("raw features come from a checkpoint or a model folder; an .onnx file gives rows alone")
        tested = self.info.evaluation
        precision = make_precision(self.runtime.precision.device, tested.get("mixed_precision", False),
                                   dtype=tested.get("dtype", "auto"))
        return lambda images: self.runtime.branches(images, precision)

    def _decoded(self, items: Iterable[Item], bgr: bool,
                 problems: list[tuple[int, str]] | None) -> Iterator[np.ndarray]:
        """Batches uint8 [B, H, W, 3], decoded in threads ahead of their use."""
        waiting = iter(enumerate(items))
        with ThreadPoolExecutor(self.threads) as pool:
            def submit() -> list[Future]:
                batch = islice(waiting, self.batch_size)
                return [pool.submit(self._picture, index, item, bgr) for index, item in batch]

            running = deque(batch for _ in range(_AHEAD + 1) if (batch := submit()))
            try:
                while running:
                    images = np.zeros((len(running[0]), *self.info.size, 3), np.uint8)
                    for row, (index, picture) in enumerate(future.result() for future in running.popleft()):
                        if isinstance(picture, np.ndarray):
                            images[row] = picture
                        elif problems is None:
                            raise picture
                        else:
                            problems.append((index, str(picture)))
                    if batch := submit():
                        running.append(batch)
                    yield images
            finally:
                pool.shutdown(cancel_futures=True)

    def _picture(self, index: int, item: Item, bgr: bool) -> tuple[int, np.ndarray | Exception]:
        try:
            return index, read_picture(item, self.info.size, bgr)
        except OSError as error:
            return index, type(error)(f"item {index}: {error}")
        except ValueError as error:
            return index, BadImage(f"item {index}: {error}")


def choose_precision(device: str, precision: str) -> Precision:
    """The precision of `Embedder.load`."""
    place = select_device(device, "0")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        precision = "bfloat16" if place.type == "cpu" and cpu_has_bfloat16() else "auto"
        return make_precision(place, precision == "bfloat16" or place.type == "cuda", dtype=precision)
    return make_precision(place, precision != "float32", dtype=precision)


def read_picture(item: Item, size: tuple[int, int], bgr: bool = False) -> np.ndarray:
    """uint8 [height, width, 3] RGB of a path, the bytes of an image file, or an array, see `Embedder.embed`.

    Raises:
        BadImage, OSError: it is no picture.
    """
    if isinstance(item, np.ndarray):
        return np.ascontiguousarray(resize(_to_rgb(item, bgr), size))
    if isinstance(item, bytes):
        return _decode(item, size)
    if not isinstance(item, (str, os.PathLike)):
        raise BadImage(f"a {type(item).__name__}; expected a path, the bytes of an image file or a uint8 array "
                       "(np.asarray makes one of a PIL picture)")
    with open(item, "rb") as file:
        return _decode(file.read(), size, str(item))


def _decode(data: bytes, size: tuple[int, int], name: str = "") -> np.ndarray:
    if len(data) < _SMALL_FILE:
        _check_sides(decode(data, name=name), name)
    return decode(data, size, name)


def _check_sides(picture: np.ndarray, name: str = "") -> None:
    height, width = picture.shape[:2]
    if min(height, width) < _LEAST_SIDE:
        raise BadImage(f"{name}{': ' if name else ''}a picture of {width} x {height} pixels shows nobody")


def _to_rgb(array: np.ndarray, bgr: bool) -> np.ndarray:
    if array.dtype != np.uint8:
        raise BadImage(f"an array of {array.dtype}; expected uint8 with values 0..255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise BadImage(f"an array of shape {array.shape}; expected [H, W, 3] RGB, [H, W] grey or [H, W, 4] RGBA")
    _check_sides(array)
    if array.ndim == 2:
        return cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_GRAY2RGB)
    array = array[:, :, :3]
    return np.ascontiguousarray(array[:, :, ::-1] if bgr else array)


def crop_boxes(frame: np.ndarray, boxes: np.ndarray | Sequence) -> list[np.ndarray]:
    """The parts of a frame [H, W, ...] within boxes, see `Embedder.embed_boxes`; every pixel that a box touches."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) if len(boxes) else np.empty((0, 4))
    height, width = frame.shape[:2]
    limits = np.array([width, height, width, height], dtype=np.float64)
    finite = np.isfinite(boxes).all(1)
    low, high = np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])
    clipped = np.clip(np.hstack([low, high]), 0, limits)
    sides = clipped[:, 2:] - clipped[:, :2]
    bad = np.flatnonzero(~finite | ~(boxes[:, 2:] > boxes[:, :2]).all(1) | ~(sides >= _LEAST_SIDE).all(1))
    if len(bad):
        first = boxes[bad[0]].tolist()
        raise ValueError(f"boxes {', '.join(map(str, bad[:20]))} are empty, not finite or outside the frame of {width} "
                         f"x {height} pixels (the first is x0, y0, x1, y1 = {first})")
    return [frame[y0:y1, x0:x1] for x0, y0, x1, y1 in clipped.astype(int)]


def _is_stack(items: object) -> bool:
    """Whether an array is several pictures [N, H, W, C], not one."""
    return isinstance(items, np.ndarray) and items.ndim == 4


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
