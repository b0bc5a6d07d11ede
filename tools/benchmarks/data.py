"""The benchmark of feeding a model: pictures, packs, one child process a measurement, and the report of them."""
from __future__ import annotations

import logging
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import PIL
import torch
import torchvision

from datasets.demo.plan import Sizes
from datasets.demo.synthetic import make_demo_data
from datasets.files.images import IMAGE_SUFFIXES, FolderSource, decode, list_images
from datasets.files.pack_writer import pack
from datasets.naic import FOLDER
from tools.benchmarks.child import run_child
from tools.benchmarks.data_measure import NUM_INSTANCE, ROWS, Job
from tools.benchmarks.machine import describe
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


ENCODINGS = {"png": Encoding(b"\x89PNG", ".png", []),
             "jpeg": Encoding(b"\xff\xd8", ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])}
COLUMNS = ("size", "measured", "runs", "images/s", "times theirs", "images/s a core", "times theirs, a core")
RATES = ("images_per_second", "images_per_core_second")


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    sizes: Sequence[tuple[int, int]] = ((256, 128), (384, 192))
    rows: Sequence[str] = tuple(ROWS)
    folder: str = ""         # whose pictures are used; "" = rendered ones
    images: int = 1024
    batch: int = 64
    workers: int = 2
    device: str = "cpu"
    seconds: float = 3.0     # of a run
    repeats: int = 3


def make_plan(device: str, sizes: Sequence[str] | None, rows: Sequence[str] | None, workers: int | None,
              folder: Path | None, **others: Any) -> Plan:
    """The plan for a command line; None means the default, of workers one a core.

    Raises:
        ValueError: a size is not HEIGHTxWIDTH, a row is unknown, or device is "cuda" and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds none on this machine; use cpu")
    unknown = [row for row in rows or () if row not in ROWS]
    if unknown:
        raise ValueError(f"unknown row {unknown[0]!r}; choose from {', '.join(ROWS)}")
    return Plan(sizes=tuple(map(_parse_size, sizes)) if sizes else Plan.sizes, rows=tuple(rows or ROWS), device=device,
                folder=str(folder.resolve()) if folder else "", workers=workers or os.cpu_count() or 1, **others)


def _parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"size {text!r} is not HEIGHTxWIDTH, such as 256x128")
    return int(height), int(width)


def benchmark_data(plan: Plan) -> dict[str, Any]:
    """Measure the plan's rows in turn, each run in a fresh process.

    Returns:
        A report that JSON can hold: "machine", "plan", "pictures" and "rows" (one dict for each size and row; its
        "note" says why where there are no figures).
    Raises:
        ValueError: a number is out of range, or the pictures cannot be used.
    """
    if min(plan.repeats, plan.workers) < 1 or plan.seconds <= 0:
        raise ValueError("at least one repeat, one worker and some seconds are needed")
    if plan.batch < 1 or plan.batch % NUM_INSTANCE or plan.batch // NUM_INSTANCE > plan.images // GROUP:
        raise ValueError(f"a batch of {plan.batch} cannot be made of groups of {NUM_INSTANCE} from the identities of "
                         f"{plan.images} pictures, {GROUP} each")
    with tempfile.TemporaryDirectory(prefix="reid_benchmark_") as folder:
        pictures = Pictures(plan, Path(folder))
        report = {"machine": _machine(plan.device), "plan": asdict(plan), "pictures": pictures.description, "rows": []}
        for size in plan.sizes:
            report["rows"] += _measure_size(plan, size, pictures)
    return report


def _machine(device: str) -> dict[str, str]:
    libraries = f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}, torchvision {torchvision.__version__}"
    return {**describe(device), "libraries": libraries}


class Pictures:
    """The same pictures as a training set of PNG and as one of JPEG files, and packs of the first.

    They are copied, in groups of GROUP that stand for an identity, so that a row reads nothing but them.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.folder = folder
        if not plan.folder:
            logger.info("rendering pictures …")
            # In each of four sets so many identities of about eight pictures; the rest of the demo set is of no use.
            sizes = Sizes(ids=plan.images // 32 + 2, singles=0, shared=0, query_ids=2, query_images=1,
                          gallery_images=2, distractors=0, height=RENDERED[0], width=RENDERED[1])
            make_demo_data(folder / "rendered", sizes=sizes)
        chosen = _choose(Path(plan.folder or folder / "rendered"), plan.images)
        means = ", ".join(f"{kind.upper()} {self._write(kind, chosen) / 1000:.1f} kB" for kind in ENCODINGS)
        what = f"of {plan.folder}" if plan.folder else f"rendered at {RENDERED[0]}x{RENDERED[1]}"
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
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    count = min(count, len(found)) // GROUP * GROUP
    if count < 2 * GROUP:
        raise ValueError(f"{folder} holds {len(found)} images ({', '.join(IMAGE_SUFFIXES)}); at least {2 * GROUP} are "
                         "needed")
    return [found[i * len(found) // count] for i in range(count)]


def _measure_size(plan: Plan, size: tuple[int, int], pictures: Pictures) -> list[dict[str, Any]]:
    """All rows at one size, in turn: A B C, A B C, A B C."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in plan.rows}
    notes = dict.fromkeys(plan.rows, "")
    for turn in range(1, plan.repeats + 1):
        for name in plan.rows:
            if notes[name]:
                continue
            row, what = ROWS[name], f"{size[0]}x{size[1]}, run {turn} of {plan.repeats}: {ROWS[name].title}"
            logger.info("%s …", what)
            job = Job(name, pictures.root(row.files), pictures.packed(row.packed, size), size, plan.batch, plan.workers,
                      plan.device, plan.seconds, str(pictures.folder / "result.json"))
            try:
                runs[name].append(run_child("tools.benchmarks.data_measure", job.to_json(), Path(job.result)))
            except RuntimeError as error:
                notes[name] = str(error)
                logger.error("%s: %s", what, error)
    rows = {name: _row(name, size, notes[name], runs[name]) for name in plan.rows}
    for name, row in rows.items():
        theirs = rows.get(ROWS[name].baseline, {})
        row |= {f"{rate}_times_theirs": row[rate] / theirs[rate] for rate in RATES if rate in row and rate in theirs}
    return list(rows.values())


def _row(name: str, size: tuple[int, int], note: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table; medians where there are figures."""
    row = {"size": list(size), "row": name, "title": ROWS[name].title, "note": note, "runs": runs}
    for rate, per in zip(RATES, ("seconds", "cpu_seconds"), strict=True):
        if not note and all(run[per] for run in runs):
            row[rate] = statistics.median(run["images"] / run[per] for run in runs)
    return row


def to_markdown(report: dict[str, Any]) -> str:
    """What `benchmark_data` returned: the machine, the setting and one table."""
    plan = report["plan"]
    lines = [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += [f"- setting: HARD_AUG, batches of {plan['batch']}, {plan['workers']} workers, augmentation on "
              f"{plan['device']}; {plan['seconds']:g} s a run; pictures: {report['pictures']}; theirs: PIL and "
              "torchvision, as reid-strong-baseline uses them", ""]
    alignment = ["---" if name == "measured" else "---:" for name in COLUMNS]
    for cells in (COLUMNS, alignment, *map(_cells, report["rows"])):
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    """A row's cells; the note stands where the figures would be."""
    start = [f"{row['size'][0]}x{row['size'][1]}", row["title"]]
    if row["note"]:
        return [*start, "0", row["note"], "–", "–", "–"]
    cells = []
    for rate in RATES:
        times = row.get(f"{rate}_times_theirs")
        cells += [f"{row[rate]:,.0f}" if rate in row else "–", f"{times:.2f}" if times else "–"]
    return [*start, str(len(row["runs"])), *cells]
