"""The benchmark of feeding a model: the pictures and their packs, which rows at which sizes, and the report of them."""
from __future__ import annotations

import logging
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import PIL
import torchvision

from datasets.demo.plan import Sizes
from datasets.demo.synthetic import make_demo_data
from datasets.files import jpeg, png
from datasets.files.images import IMAGE_SUFFIXES, FolderSource, decode, list_images
from datasets.files.pack_writer import pack
from datasets.naic import FOLDER
from tools.benchmarks.data_measure import NUM_INSTANCE, ROWS, Setting
from tools.benchmarks.harness import Entry, check_names, choose_device, measure_in_turns, new_report, parse_size
from utils.files import write_text

logger = logging.getLogger(__name__)

RENDERED = (256, 128)  # height and width of most pictures of NAIC
GROUP = 8               # pictures of an identity
SET = "train_2020_fs/images"


class Encoding(NamedTuple):
    """How such a file begins, and how OpenCV writes one."""

    start: bytes
    suffix: str
    options: list[int]


ENCODINGS = {"png": Encoding(png.SIGNATURE, ".png", []),
             "jpeg": Encoding(jpeg.SIGNATURE, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])}
RATES = {"images_per_second": "seconds", "images_per_core_second": "cpu_seconds"}  # images by which time


@dataclass(frozen=True)
class DataOptions:
    """What to measure; the fields are the command line's options."""

    sizes: Sequence[tuple[int, int]] = ((256, 128), (384, 192))
    rows: Sequence[str] = tuple(ROWS)
    folder: str = ""         # whose pictures are used; "" = rendered ones
    images: int = 1024
    batch: int = 64
    workers: int = 2
    device: str = "cpu"
    seconds: float = 3.0     # of a run
    repeats: int = 3


def make_options(device: str, sizes: Sequence[str] | None, rows: Sequence[str] | None, workers: int | None,
                 folder: Path | None, **others: Any) -> DataOptions:
    """The options of a command line; None means the default, of workers one a core.

    Raises:
        ValueError: a size is not HEIGHTxWIDTH, a row is unknown, or device is "cuda" and there is none.
    """
    check_names("row", rows or (), ROWS)
    return DataOptions(sizes=tuple(map(parse_size, sizes)) if sizes else DataOptions.sizes, rows=tuple(rows or ROWS),
                       device=choose_device(device), folder=str(folder.resolve()) if folder else "",
                       workers=workers or os.cpu_count() or 1, **others)


def run_benchmark(options: DataOptions) -> dict[str, Any]:
    """Measure the rows in turn, each run in a fresh process.

    Returns:
        A report that JSON can hold: "machine", "plan" (the options), "pictures" and "rows" (one dict for each size and
        row; its "note" says why if there are no figures).
    Raises:
        ValueError: a number is out of range, or the pictures cannot be used.
    """
    if min(options.repeats, options.workers) < 1 or options.seconds <= 0:
        raise ValueError("at least one repeat, one worker and more than 0 seconds are needed")
    if options.batch < 1 or options.batch % NUM_INSTANCE or options.batch // NUM_INSTANCE > options.images // GROUP:
        raise ValueError(f"a batch of {options.batch} cannot be made of groups of {NUM_INSTANCE} from the identities "
                         f"of {options.images} pictures, {GROUP} each")
    with tempfile.TemporaryDirectory(prefix="reid_benchmark_") as folder:
        pictures = Pictures(options, Path(folder))
        report = {**new_report(options), "pictures": pictures.description}
        report["machine"]["libraries"] = (f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}, torchvision "
                                          f"{torchvision.__version__}")
        for size in options.sizes:
            report["rows"] += _measure_size(options, size, pictures)
    return report


class Pictures:
    """The same pictures as a training set of PNG and as one of JPEG files, and packs of the first.

    They are copied, in groups of GROUP that stand for an identity, so that a row reads nothing but them.
    """

    def __init__(self, options: DataOptions, folder: Path) -> None:
        self.folder = folder
        if not options.folder:
            logger.info("rendering pictures …")
            # In each of four sets so many identities of about eight pictures; the rest of the demo set is of no use.
            sizes = Sizes(ids=options.images // 32 + 2, singles=0, shared=0, query_ids=2, query_images=1,
                          gallery_images=2, distractors=0, height=RENDERED[0], width=RENDERED[1])
            make_demo_data(folder / "rendered", sizes=sizes)
        chosen = _choose(Path(options.folder or folder / "rendered"), options.images)
        means = ", ".join(f"{kind.upper()} {self._write(kind, chosen) / 1000:.1f} kB" for kind in ENCODINGS)
        what = f"of {options.folder}" if options.folder else f"rendered at {RENDERED[0]}x{RENDERED[1]}"
        self.description = f"{len(chosen):,} {what} (on average {means})"

    def root(self, kind: str) -> str:
        """The data folder with files of this kind, a key of ENCODINGS."""
        return str(self.folder / kind)

    def packed(self, how: str, size: tuple[int, int]) -> str:
        """A pack of the PNG files, "files" or "decoded" at `size`; "" for ""."""
        if not how:
            return ""
        files = FolderSource(self.folder / "png" / FOLDER)
        name = "packed" if how == "files" else f"packed_{size[0]}x{size[1]}"
        keys = [f"{SET}/{image}" for image in list_images(files.root / SET)]
        return str(pack(files, keys, self.folder / name, None if how == "files" else size).folder)

    def _write(self, kind: str, chosen: Sequence[Path]) -> float:
        """Write the set in NAIC's layout; the mean length of its files."""
        images = self.folder / kind / FOLDER / SET
        images.mkdir(parents=True)
        lengths = []
        for number, path in enumerate(chosen):
            data = path.read_bytes()
            if not data.startswith(ENCODINGS[kind].start):
                picture = cv2.cvtColor(decode(data, name=str(path)), cv2.COLOR_RGB2BGR)
                data = cv2.imencode(ENCODINGS[kind].suffix, picture, ENCODINGS[kind].options)[1].tobytes()
            (images / _name(number)).write_bytes(data)
            lengths.append(len(data))
        lines = [f"{_name(number)}:{number // GROUP}\n" for number in range(len(chosen))]
        write_text(images.parent / "train_list.txt", "".join(lines))
        return statistics.mean(lengths)


def _name(number: int) -> str:
    """A picture's name in either set: what a file is, its content tells."""
    return f"{number:06d}.png"


def _choose(folder: Path, count: int) -> list[Path]:
    """So many images in a folder and below it, spread over it, in whole groups.

    Raises:
        ValueError: there are fewer than two groups.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    count = min(count, len(paths)) // GROUP * GROUP
    if count < 2 * GROUP:
        raise ValueError(f"{folder} holds {len(paths)} images ({', '.join(IMAGE_SUFFIXES)}); at least {2 * GROUP} are "
                         "needed")
    return [paths[i * len(paths) // count] for i in range(count)]


def _measure_size(options: DataOptions, size: tuple[int, int], pictures: Pictures) -> list[dict[str, Any]]:
    """All rows at a size."""
    entries = [Entry(name, ROWS[name].title, Setting(
        pictures.root(ROWS[name].files), pictures.packed(ROWS[name].packed, size), size, options.batch, options.workers,
        options.device, options.seconds)) for name in options.rows]
    measure_in_turns("tools.benchmarks.data_measure", entries, options.repeats, pictures.folder, f"{size[0]}x{size[1]}",
                     lambda run: f"{run['images'] / run['seconds']:,.0f} images/s")
    rows = {entry.name: _row(entry) for entry in entries}
    for name, row in rows.items():
        theirs = rows.get(ROWS[name].baseline, {})
        row |= {f"{rate}_times_theirs": row[rate] / theirs[rate] for rate in RATES if rate in row and rate in theirs}
    return list(rows.values())


def _row(entry: Entry) -> dict[str, Any]:
    """A line of the table; medians if there are figures."""
    row = entry.row(size=list(entry.setting.size), row=entry.name)
    for rate, time in RATES.items():
        if not entry.note and all(run[time] for run in entry.runs):
            row[rate] = statistics.median(run["images"] / run[time] for run in entry.runs)
    return row
