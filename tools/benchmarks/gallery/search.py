"""The benchmark of a gallery's search: in turn with numpy's product over the same files, and held to a slow search."""
from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from processor.gallery import Found, Where, open_gallery, search
from processor.gallery.folder import FolderGallery
from processor.retrieval.search.feature_rows import FeatureRows
from processor.retrieval.search.rows import PairDistances
from tools.benchmarks.harness import Job, new_report, run_child, serve
from tools.benchmarks.retrieval_measure import feature_chunks, make_pids

MODULE = "tools.benchmarks.gallery.search"
CAMERAS, DAYS, DAY = 50, 30, 24 * 60 * 60 * 1000
EVERYWHERE = 0.1   # of a vector's length is noise in no certain direction
ADDED = 8          # chunks of features at a time
PRODUCT = 2**16    # rows of one product of numpy's
REST = 0.1         # seconds before a call that is timed
FILTERS = {"": None, ", 45 of 50 cameras (90 %)": Where(cameras=range(45)),
           ", half of the cameras (50 %)": Where(cameras=range(0, CAMERAS, 2)),
           ", half of the days (50 %)": Where(since=0, until=15 * DAY),
           ", five cameras (10 %)": Where(cameras=range(5)),
           ", three days (10 %)": Where(since=0, until=3 * DAY), ", one camera (2 %)": Where(cameras=[7]),
           ", seven hours (1 %)": Where(since=0, until=7 * DAY // 24),
           ", one camera and three days (0.2 %)": Where(cameras=[7], since=0, until=3 * DAY)}


@dataclass(frozen=True)
class GalleryOptions:
    """What to measure; the fields are the command line's options."""

    rows: int = 1_000_000
    dim: int = 512
    vectors: str = "float32"
    k: int = 200
    batch: int = 256
    repeats: int = 5
    checked: int = 4
    folder: str = ""  # "": a temporary one
    device: str = "cpu"


def make_options(folder: Path | None, **others: Any) -> GalleryOptions:
    """The options of a command line."""
    return GalleryOptions(folder=str(folder or ""), **others)


def run_benchmark(options: GalleryOptions) -> dict[str, Any]:
    """Make the gallery, and measure it in a fresh process.

    Returns:
        A report that JSON can hold: "machine", "plan" (the options), "built", "memory", and what `measure` gives.
    Raises:
        ValueError: an option is out of range, or the folder holds another gallery.
        RuntimeError: a process failed.
    """
    if min(options.rows, options.dim, options.k, options.batch, options.repeats) < 1:
        raise ValueError("at least one row, dimension, k, query and repeat are needed")
    with tempfile.TemporaryDirectory(prefix="reid_benchmark_") as scratch:
        setting = GalleryOptions(**{**asdict(options), "folder": options.folder or f"{scratch}/gallery"})
        built = None
        if not Path(setting.folder).exists():
            built = run_child(MODULE, Job("build", setting, f"{scratch}/build.json"))
        return {**new_report(options), "built": built, **run_child(MODULE, Job("search", setting, f"{scratch}/s.json")),
                "memory": run_child(MODULE, Job("memory", setting, f"{scratch}/m.json"))["steps"]}


# ----------------------------------------------------------------------------------------------------- in the children
def measure(job: Job) -> dict[str, Any]:
    """The figures of a child's job."""
    return {"build": build, "search": measure_search, "memory": measure_memory}[job.what](job.setting)


def build(setting: GalleryOptions) -> dict[str, float]:
    """Add all rows; the seconds of adding alone, and its most anonymous memory."""
    pids, rng, seconds, anonymous, start = make_pids(setting.rows), np.random.default_rng(0), 0.0, 0, 0
    chunks = feature_chunks(pids, setting.dim, everywhere=EVERYWHERE)
    with open_gallery(setting.folder, setting.dim, vectors=setting.vectors) as gallery:
        while parts := list(islice(chunks, ADDED)):
            vectors = torch.cat(parts).numpy()
            ids = np.arange(start, start + len(vectors))
            facts = {"camera": rng.integers(CAMERAS, size=len(ids)), "time": rng.integers(DAYS * DAY, size=len(ids)),
                     "identity": pids[ids]}
            with _meter() as meter:
                gallery.add(ids, vectors, facts)
            seconds, anonymous, start = seconds + meter["seconds"], max(anonymous, meter["anonymous"]), ids[-1] + 1
    return {"seconds": seconds, "anonymous": anonymous}


def measure_search(setting: GalleryOptions) -> dict[str, Any]:
    """The rows of the table, and what it cost to open the gallery."""
    started = time.perf_counter()
    with open_gallery(setting.folder, setting.dim) as gallery:
        if gallery.count() != setting.rows:
            raise ValueError(f"{setting.folder}: {gallery.count()} rows, expected {setting.rows}")
        opened = time.perf_counter() - started
        queries = draw_queries(gallery, setting)
        cases: list[tuple[str, np.ndarray, Where | None, bool]] = [
            (f"one query{title}", queries[:1], where, False) for title, where in FILTERS.items()]
        cases[1:1] = [(f"{setting.batch} queries", queries, None, False)]
        cases.append(("one query, re-ranked", queries[:1], None, True))
        rows = [_measure_case(gallery, setting, *case) for case in cases]
        sizes = {path.name: path.stat().st_blocks * 512 for path in Path(setting.folder).iterdir()}
    codes = sum(size for name, size in sizes.items() if name.startswith("codes"))
    return {"rows": rows, "opened": opened, "threads": torch.get_num_threads(),
            "bytes": {"codes": codes, "rows": sum(sizes.values()) - codes}}


def measure_memory(setting: GalleryOptions) -> dict[str, Any]:
    """(what was done, bytes that no file backs, bytes of mapped files) of a process that does nothing but search."""
    with open_gallery(setting.folder, setting.dim) as gallery:
        gallery.count()
        queries = draw_queries(gallery, setting)
        steps = [("opened", _memory("RssAnon"), _memory("RssFile"))]
        for title, block in (("one query", queries[:1]), (f"{setting.batch} queries", queries)):
            search(gallery, block, setting.k)
            steps.append((f"after {title}", _memory("RssAnon"), _memory("RssFile")))
    return {"steps": steps}


def draw_queries(gallery: FolderGallery, setting: GalleryOptions) -> np.ndarray:
    """[batch, D] other pictures of people in the gallery: rows with new noise."""
    rng = np.random.default_rng(1)
    rows = gallery.fetch(rng.integers(setting.rows, size=setting.batch), with_facts=False).vectors
    rows = rows + 0.3 / setting.dim**0.5 * rng.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _measure_case(gallery: FolderGallery, setting: GalleryOptions, title: str, queries: np.ndarray,
                  where: Where | None, re_rank: bool) -> dict[str, Any]:
    """A row of the table: ours and numpy's in turn, medians; the calls before them warm up and measure memory."""
    numpy_product(gallery, queries)
    with _meter() as memory:
        found = search(gallery, queries, setting.k, where, re_rank)
    assert found.certified.all()
    runs = [{"numpy_ms": _time_after_rest(lambda: numpy_product(gallery, queries)),
             "ms": _time_after_rest(lambda: search(gallery, queries, setting.k, where, re_rank))}
            for _ in range(setting.repeats)]
    equal, float64 = ("–", "–") if re_rank else check_found(gallery, queries, found, where, setting.checked)
    medians = {name: statistics.median(run[name] for run in runs) for name in ("ms", "numpy_ms")}
    return {"title": title, "note": "", "runs": runs, "equal": equal, "float64": float64, **medians,
            "anonymous": memory["anonymous"]}


def _time_after_rest(call: Callable[[], object]) -> float:
    """The milliseconds of a call that begins once the threads of the call before have stopped waiting at full speed.

    OpenBLAS' threads do so for some 0.02 s after a product, and take a core from whatever comes next.
    """
    time.sleep(REST)
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def numpy_product(gallery: FolderGallery, queries: np.ndarray) -> None:
    """The float32 product of queries and all vectors, in pieces that are not kept."""
    for live in gallery.live():
        for start in range(0, len(live.segment), PRODUCT):
            queries @ live.segment.vectors[start : start + PRODUCT].astype(np.float32, copy=False).T


def check_found(gallery: FolderGallery, queries: np.ndarray, found: Found, where: Where | None,
                count: int) -> tuple[str, str]:
    """Of `count` queries: how many have the slow search's answer to the bit, all rows sorted by distance and id, and
    how many have float64's set, of those where it is decided: the next row is farther than float32 can be wrong by."""
    picked = np.linspace(0, len(queries) - 1, min(count, len(queries))).astype(int)
    ids, squared, exact = [], [], []
    for live in gallery.live(where):
        for rows in np.split(live.rows, range(2**14, len(live.rows), 2**14)):
            vectors = live.segment.read(rows)
            pairs = PairDistances(FeatureRows(queries[picked], vectors), 64)
            left, right = np.divmod(np.arange(len(picked) * len(rows)), len(rows))
            squared.append(pairs(torch.from_numpy(left), torch.from_numpy(right) + len(picked)).numpy().reshape(
                len(picked), -1))
            ids.append(live.segment.columns["id"][rows])
            exact.append(np.stack([np.square(vectors - query).sum(1) for query in queries[picked].astype(np.float64)]))
    ids, squared, exact = np.concatenate(ids), np.concatenate(squared, 1), np.concatenate(exact, 1)
    same, decided, agree = 0, 0, 0
    for row, distances, true in zip(picked, squared, exact, strict=True):
        order = np.lexsort((ids, distances))[: found.ids.shape[1]]
        by_float64 = decided_set(ids, true, len(order), queries.shape[1])
        decided += by_float64 is not None
        agree += by_float64 is not None and by_float64 == set(found.ids[row, : len(order)].tolist())
        similarities = found.similarities[row, : len(order)]
        same += bool(np.array_equal(found.ids[row, : len(order)], ids[order])
                     and np.array_equal(similarities, 1 - distances[order] / 2))
    return f"{same} of {len(picked)}", f"{agree} of {decided}"


def decided_set(ids: np.ndarray, true: np.ndarray, k: int, dim: int) -> set[int] | None:
    """The ids of the k smallest of the float64 distances [N]; None if float32 sums of `dim` squares may differ."""
    order = np.argsort(true)
    if k < len(order):
        error = (dim + 9) * 2.0**-24  # of a sum of terms that are not negative, as a share of it
        if true[order[k - 1]] * (1 + error) >= true[order[k]] * (1 - error):
            return None
    return set(ids[order[:k]].tolist())


@contextlib.contextmanager
def _meter() -> Iterator[dict[str, float]]:
    """What happens inside: its "seconds", and how far "anonymous" memory rose, looked at every few ms (Linux)."""
    figures, stopped, base = {"anonymous": 0}, threading.Event(), _anonymous_bytes()

    def look() -> None:
        while not stopped.wait(0.005):
            figures["anonymous"] = max(figures["anonymous"], _anonymous_bytes() - base)

    watcher = threading.Thread(target=look)
    watcher.start()
    started = time.perf_counter()
    try:
        yield figures
    finally:
        figures["seconds"] = time.perf_counter() - started
        stopped.set()
        watcher.join()


def _anonymous_bytes() -> int:
    return _memory("RssAnon")


def _memory(name: str) -> int:
    """Bytes of RssAnon or RssFile (Linux; else 0)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    serve(measure, GalleryOptions)
