"""A measurement of embedding, in a process of its own: python -m tools.benchmarks.embed_measure JOB (JSON)."""
from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image

from datasets.files.images import decode
from processor.embedder import Embedder
from processor.trained_model import open_trained
from tools.benchmarks.data_baseline import read_image
from tools.benchmarks.harness import Job, serve

FRAME = (1080, 1920)  # height and width
BOXES = 30
_LEAST_FRAMES = 5

Group = list[tuple[int, Any]]  # (number, path or uint8 array [H, W, 3])


@dataclass(frozen=True)
class Setting:
    """What is embedded, and how long it is measured."""

    models: str      # folder of the model files
    pictures: str    # folder of the picture files
    batch: int       # the larger one; the other is 1
    device: str
    seconds: float   # of each figure, at least

    @property
    def batches(self) -> tuple[int, int]:
        return 1, self.batch


class Extractor(Protocol):
    """Pictures to features."""

    def stream(self, groups: Iterable[Group]) -> Iterator[int]:
        """Compute a group after the other; the number of pictures of each."""
        ...

    def boxes(self, frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """[N, D] of a frame's boxes."""
        ...


class Textbook:
    """How extraction is written down most: PIL, torchvision's transforms, float32 NCHW, one thread that loads."""

    def __init__(self, file: Path, device: str):
        trained = open_trained(file)
        steps, self.device = trained.info.preprocessing, device
        self.model = trained.model.to(device)
        self.transform = T.Compose([T.Resize(trained.info.size), T.ToTensor(),
                                    T.Normalize(steps["mean"], steps["std"])])

    def stream(self, groups: Iterable[Group]) -> Iterator[int]:
        for group in groups:
            pictures = [Image.fromarray(item) if isinstance(item, np.ndarray) else read_image(item)
                        for _, item in group]
            yield len(self._features(pictures))

    def boxes(self, frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(frame)
        return self._features([picture.crop(box) for box in boxes.tolist()])

    def _features(self, pictures: list[Image.Image]) -> np.ndarray:
        batch = torch.stack([self.transform(picture) for picture in pictures]).to(self.device)
        with torch.no_grad():
            feats = self.model(batch)["global"]
        return torch.nn.functional.normalize(feats).cpu().numpy()


class Ours:
    """processor.embedder."""

    def __init__(self, file: Path, device: str, precision: str = "auto"):
        self.embedder = Embedder.load(file, device, precision)

    def stream(self, groups: Iterable[Group]) -> Iterator[int]:
        for batch in self.embedder.embed_groups(groups):
            yield len(batch.indices)

    def boxes(self, frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return self.embedder.embed_boxes(frame, boxes)


class Row(NamedTuple):
    """A line of the table; `file`: of the models, see tools.benchmarks.embed; `packages`: that it takes to make it."""

    title: str
    make: Callable[..., Extractor]
    file: str = "plain.pth"
    precision: str = ""
    packages: tuple[str, ...] = ()


OPENVINO = ("onnx", "onnxruntime", "openvino")


ROWS = {
    "textbook": Row("textbook: PIL, torchvision, float32 NCHW", Textbook),
    "float32": Row("ours, float32", Ours, precision="float32"),
    "default": Row("ours, as it runs", Ours, precision="auto"),
    "default_flip": Row("ours, as it runs, with the mirror image", Ours, "flip.pth", "auto"),
    "onnx": Row("onnxruntime, float32", Ours, "model.onnx", packages=("onnx", "onnxruntime")),
    "openvino": Row("OpenVINO, float32", Ours, "model.xml", "float32", OPENVINO),
    "openvino_bfloat16": Row("OpenVINO, bfloat16", Ours, "model.xml", "bfloat16", OPENVINO),
    "openvino_int8": Row("OpenVINO, int8", Ours, "model_int8.xml", "float32", OPENVINO),
}


def make_extractor(name: str, setting: Setting) -> Extractor:
    """The extractor of a row."""
    row = ROWS[name]
    return row.make(Path(setting.models) / row.file, setting.device, *([row.precision] if row.precision else []))


def make_frame() -> tuple[np.ndarray, np.ndarray]:
    """A frame uint8 [H, W, 3] and boxes [BOXES, 4] of people in it, near and far."""
    random = np.random.default_rng(0)
    heights = random.integers(120, 500, BOXES)
    x0, y0 = random.integers(0, FRAME[1] - 250, BOXES), random.integers(0, FRAME[0] - 500, BOXES)
    return random.integers(0, 256, (*FRAME, 3), np.uint8), np.stack([x0, y0, x0 + heights // 2, y0 + heights], axis=1)


def measure(job: Job) -> dict[str, Any]:
    """Images/s from files and from arrays at both batch sizes, "files_1" …, and the seconds of frames."""
    setting: Setting = job.setting
    extractor = make_extractor(job.what, setting)
    paths = sorted(Path(setting.pictures).iterdir())
    arrays = [decode(path.read_bytes()) for path in paths]
    figures = {f"{kind}_{batch}": _rate(extractor, items, batch, setting.seconds)
               for kind, items in (("files", paths), ("arrays", arrays)) for batch in setting.batches}
    return {**figures, "frame_seconds": _frame_seconds(extractor, setting.seconds)}


def _rate(extractor: Extractor, items: list, batch: int, least: float) -> float:
    """Images/s, after two batches that do not count."""
    endless = enumerate(itertools.cycle(items))
    steps = extractor.stream(iter(lambda: list(itertools.islice(endless, batch)), []))
    for _ in range(2):
        next(steps)
    images, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < least or not images:
        images += next(steps)
    steps.close()
    return images / seconds


def _frame_seconds(extractor: Extractor, least: float) -> list[float]:
    """Of each call, after one that does not count."""
    frame, boxes = make_frame()
    extractor.boxes(frame, boxes)
    times: list[float] = []
    while sum(times) < least or len(times) < _LEAST_FRAMES:
        started = time.perf_counter()
        extractor.boxes(frame, boxes)
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    serve(measure, Setting)
