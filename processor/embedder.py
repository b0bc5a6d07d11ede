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
from typing import NamedTuple

import cv2
import numpy as np

from datasets.files.images import BadImage
from processor.embedding.fill import ItemList, fill_rows
from processor.embedding.pictures import Item, crop_boxes, read_picture
from processor.embedding.rows_file import ROWS
from processor.export.model_folder import ModelInfo, with_thresholds_beside
from processor.export.runtimes import OnnxRuntime, OpenVinoRuntime, Runtime, Sides, TorchRuntime
from processor.retrieval.calibration import probability
from processor.trained_model import open_trained
from utils.dist import ALONE, Workers
from utils.precision import Precision, cpu_has_bfloat16, make_precision, select_device

DEVICES = ("auto", "cuda", "cpu")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
HOW_TO_CALIBRATE = "measure thresholds with python tools/calibrate.py --run OUTPUT_DIR --model DIR"
_AHEAD = 2  # batches that are decoded while one is computed


class Batch(NamedTuple):
    """What `embed_groups` gives: indices of the items, {ROWS or branch: float32 [B, D]}, [(index, reason)]."""

    indices: list[int]
    feats: dict[str, np.ndarray]
    problems: list[tuple[int, str]]


class Embedder:
    """A trained model as a function of pictures.

    Args:
        runtime: computes rows.
        info: of the model.
        batch_size: pictures that are computed at a time; None: as tools/test.py does.
        threads: that decode; None: a core each.
    """

    def __init__(self, runtime: Runtime, info: ModelInfo, batch_size: int | None = None, threads: int | None = None):
        for name, number in (("batch_size", batch_size), ("threads", threads)):
            if number is not None and number < 1:
                raise ValueError(f"{name}={number}: must be at least 1")
        self.runtime, self.info = runtime, info
        self.batch_size = batch_size or info.evaluation.get("batch_size", 64)
        self.threads = threads or os.cpu_count() or 1

    @classmethod
    def load(cls, file: str | os.PathLike, device: str = "auto", precision: str = "auto",
             batch_size: int | None = None, threads: int | None = None) -> Embedder:
        """The model of a checkpoint of tools/train.py, of a folder of tools/export.py, of its .onnx or its .xml.

        Size, colours, mean and std, resizing, mirror image, neck, branches and their weights are the file's.

        Args:
            device: auto (CUDA if there is a device) | cuda | cuda:NUMBER | cpu.
            precision: auto is bfloat16 on a CPU that has it, float16 on CUDA, else float32 | float32 | bfloat16 |
                float16. Exported files have their own; OpenVINO also computes an .xml in bfloat16, if asked.
        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, another program's, or does not say what model it is of; or device or precision
                is none of these.
        """
        path = Path(file)
        if device.partition(":")[0] not in DEVICES:
            raise ValueError(f"device={device!r}: expected one of {', '.join(DEVICES)}, or cuda:NUMBER")
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
        if path.suffix in (".onnx", ".xml"):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
            runtime = OnnxRuntime(path, device) if path.suffix == ".onnx" else OpenVinoRuntime(
                path, "bfloat16" if precision == "bfloat16" else "float32")
            return cls(runtime, with_thresholds_beside(runtime.info, path), batch_size, threads)
        trained = open_trained(path)
        chosen = choose_precision(device, precision)
        runtime = TorchRuntime(trained.network(), chosen, trained.info.evaluation.get("channels_last", True))
        return cls(runtime, trained.info, batch_size, threads)

    @property
    def dim(self) -> int:
        """D, the numbers of a row."""
        return self.info.dim

    def dims(self, raw: bool = False) -> dict[str, int]:
        """{ROWS: D}, or the numbers of each branch."""
        return {name: branch["dim"] for name, branch in self.info.branches.items()} if raw else {ROWS: self.dim}

    # -------------------------------------------------------------- pictures to rows
    def embed(self, items: Iterable[Item] | Item, *, raw: bool = False, bgr: bool = False, on_error: str = "raise",
              cameras: Sequence[int] | None = None,
              views: Sequence[int] | None = None) -> np.ndarray | dict[str, np.ndarray] | tuple:
        """A row for each picture.

        Args:
            items: paths, the bytes of image files, or uint8 arrays [H, W, 3] RGB, [H, W] grey or [H, W, 4] RGBA (whose
                transparency is dropped). A single one is a list of one.
            raw: the branches' features before normalisation, in the bits that tools/test.py writes into its feature
                bank, if the device and batch_size are the same: computed in the precision of the model's config.
            bgr: arrays are OpenCV's BGR or BGRA.
            on_error: raise | none: a bad picture has a row of NaN, and a list says what was wrong.
            cameras, views: of each item, as the training set numbers them, for a model that looks at them
                (MODEL.SIE_CAMERA, SIE_VIEW); others ignore them. None: unknown (MODEL.SIE_OTHER).
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
        numbered = iter(enumerate(items))
        groups = iter(lambda: list(islice(numbered, self.batch_size)), [])
        made = list(self.embed_groups(groups, raw=raw, bgr=bgr, on_error=on_error, cameras=cameras, views=views))
        feats = {name: np.concatenate([batch.feats[name] for batch in made] or [np.empty((0, dim), np.float32)])
                 for name, dim in self.dims(raw).items()}
        result = feats if raw else feats[ROWS]
        return (result, [problem for batch in made for problem in batch.problems]) if on_error == "none" else result

    def embed_groups(self, groups: Iterable[list[tuple[int, Item | Exception]]], *, raw: bool = False,
                     bgr: bool = False, on_error: str = "raise", cameras: Sequence[int] | None = None,
                     views: Sequence[int] | None = None) -> Iterator[Batch]:
        """As `embed`, a group of (index, item) at a time, so that no more than a few groups are in memory.

        Args:
            groups: taken as the work goes on. An item may be an exception: why there is no picture.
            cameras, views: by the items' indices.
        """
        compute = self._raw() if raw else (lambda images, sides: {ROWS: self.runtime.rows(images, sides)})
        for indices, images, problems in self._decoded(groups, bgr, on_error == "none"):
            feats = compute(images, _sides(indices, cameras, views))
            bad = [indices.index(index) for index, _ in problems]
            for feat in feats.values():
                feat[bad] = np.nan
            yield Batch(indices, feats, problems)

    def embed_into(self, path: str | os.PathLike, items: Sequence[Item], *, raw: bool = False, bgr: bool = False,
                   on_error: str = "raise", restart: bool = False, workers: Workers = ALONE) -> list[tuple[int, str]]:
        """As `embed`, into a float32 .npy file [N, D] that needs not fit into memory.

        Called again with the same items after it was stopped, however that was, it goes on where it was. There is no
        such file before it is whole; until then the work is in PATH.partial.

        Args:
            path: of the .npy file; with `raw` there is NAME.BRANCH.npy for each branch.
            items: at least one.
            restart: begin anew, and replace a file that stands there.
            workers: processes that share the work; they call this together, and all see the folder.
        Returns:
            [(index, reason)] of bad pictures, whose rows are NaN; empty if on_error is "raise".
        Raises:
            FileExistsError: there is such a file.
            ValueError: what was begun there is of other items, of another model, batch_size or precision.
            BadImage, OSError: a picture cannot be read; what is done is kept.
        """
        return fill_rows(self, Path(path), ItemList(items), raw=raw, bgr=bgr, on_error=on_error, restart=restart,
                         workers=workers)

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
        """Cosines of rows: [N, D] and [M, D] to [N, M]; a single row [D] loses its axis.

        Raises:
            ValueError: the rows are of different lengths.
        """
        if np.shape(a)[-1:] != np.shape(b)[-1:]:
            raise ValueError(f"rows of shapes {np.shape(a)} and {np.shape(b)} are of two models")
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
            raise ValueError("raw features come from a checkpoint or a model folder; exported files give rows alone")
        tested = self.info.evaluation
        precision = make_precision(self.runtime.precision.device, tested.get("mixed_precision", False),
                                   dtype=tested.get("dtype", "auto"))
        return lambda images, sides: self.runtime.branches(images, precision, sides)

    def _decoded(self, groups: Iterable[list[tuple[int, Item | Exception]]], bgr: bool,
                 forgiving: bool) -> Iterator[tuple[list[int], np.ndarray, list[tuple[int, str]]]]:
        """(indices, uint8 [B, H, W, 3], problems) of each group, decoded in threads ahead of their use."""
        waiting = iter(groups)
        with ThreadPoolExecutor(self.threads) as pool:
            def submit() -> Iterator[list[Future]]:
                for group in islice(waiting, 1):
                    yield [pool.submit(self._picture, index, item, bgr) for index, item in group]

            running = deque(group for _ in range(_AHEAD + 1) for group in submit())
            try:
                while running:
                    indices, problems = [], []
                    images = np.zeros((len(running[0]), *self.info.size, 3), np.uint8)
                    for row, (index, picture) in enumerate(future.result() for future in running.popleft()):
                        indices.append(index)
                        if isinstance(picture, np.ndarray):
                            images[row] = picture
                        elif not forgiving:
                            raise picture
                        else:
                            problems.append((index, str(picture)))
                    running.extend(submit())
                    yield indices, images, problems
            finally:
                pool.shutdown(cancel_futures=True)

    def _picture(self, index: int, item: Item | Exception, bgr: bool) -> tuple[int, np.ndarray | Exception]:
        if isinstance(item, Exception):
            return index, item
        try:
            return index, read_picture(item, self.info.size, bgr)
        except OSError as error:
            return index, type(error)(f"item {index}: {error}")
        except (ValueError, cv2.error) as error:
            return index, BadImage(f"item {index}: {error}")


def choose_precision(device: str, precision: str) -> Precision:
    """The precision of `Embedder.load`."""
    kind, _, number = device.partition(":")
    place = select_device(kind, number or "0")
    if precision == "auto":
        precision = "bfloat16" if place.type == "cpu" and cpu_has_bfloat16() else "auto"
        return make_precision(place, precision == "bfloat16" or place.type == "cuda", dtype=precision)
    return make_precision(place, precision != "float32", dtype=precision)


def _sides(indices: list[int], cameras: Sequence[int] | None, views: Sequence[int] | None) -> Sides | None:
    """The cameras and views of some of the items; -1 where only the others are given."""
    if cameras is None and views is None:
        return None
    if any(numbers is not None and len(numbers) <= max(indices) for numbers in (cameras, views)):
        raise ValueError(f"item {max(indices)} has no camera or view: there must be as many as items")
    return tuple([-1 if numbers is None else int(numbers[index]) for index in indices] for numbers in (cameras, views))


def _is_stack(items: object) -> bool:
    """Whether an array is several pictures [N, H, W, C], not one."""
    return isinstance(items, np.ndarray) and items.ndim == 4


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
