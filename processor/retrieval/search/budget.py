"""How much memory and time a re-ranking takes, and how to stay within what may be used."""
from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from processor.retrieval.search.feature_rows import FeatureRows
from processor.retrieval.search.precision import PRECISIONS, choose
from processor.retrieval.search.rows import QUERY_ROWS, PairDistances
from processor.retrieval.search.search import SearchPlan
from processor.retrieval.search.shortlists import FARTHEST, room_of
from utils.dist import ALONE, Workers
from utils.parallel import in_threads, thread_count

MIB = 2**20
SHARE_OF_FREE = 0.8
FIXED = 64 * MIB  # what is not worth counting: temporary arrays of chunks of rows, the threads themselves
TILES = {"cpu": (2048, 1024, 512, 256), "cuda": (8192, 4096, 2048, 1024)}  # preferred first
TILES_AT_LEAST = {"cpu": 4, "cuda": 2}  # fewer waste products: in the diagonal's lower halves and behind the last image
STRIPS = (4, 2, 1)
GATHERED = {"cpu": 384 * 2**10, "cuda": 2**28}  # bytes of features gathered at a time; a core's cache holds two
QUERIES = {"cpu": 32, "cuda": QUERY_ROWS}  # queries whose Jaccard sums are made at a time
# Gallery images below which a query's full row in float32 takes less than a search and its exact distances.
FULL_ROWS_BELOW = 40_000
ENTRIES = 70  # of an averaged code, for the estimate; 45 to 65 were seen


@dataclass(frozen=True)
class Work:
    """A re-ranking to be planned.

    Attributes:
        features: of query and gallery.
        k1: neighbours that are searched, the image itself not counted.
        k: nearest gallery images that are wanted of a query; 0 = full rows.
        processes: that share the work.

    >>> feats = torch.zeros(1000, 8)
    >>> Work(FeatureRows(feats[:100], feats[100:]), k1=20, k=10, processes=1).by_full_rows
    True
    """

    features: FeatureRows
    k1: int
    k: int
    processes: int

    @property
    def by_full_rows(self) -> bool:
        """Whether the nearest of a query come from its full row. It must not depend on the plan: the bits differ."""
        return self.features.num_gallery < FULL_ROWS_BELOW

    @property
    def longer(self) -> int:
        """Nearest images to keep of each query, so that nearly always `k` of the gallery are among them; 0: do not.

        Of the nearest G / N are of the gallery, more or less; and lists of a quarter of all images spare nothing.
        """
        wanted = 16 + 11 * self.k * len(self.features) // (10 * self.features.num_gallery)
        return 0 if self.by_full_rows or not self.k or 4 * wanted > len(self.features) else wanted

    def bytes(self, plan: SearchPlan) -> int:
        """Memory above the features at its peak, of one process; an estimate."""
        size, dim, gallery = len(self.features), self.features.dim, self.features.num_gallery
        operand = torch.empty(0, dtype=plan.precision.dtype).element_size() * (dim + 32)
        kept_operands = operand * (size + plan.tile) if plan.keep else 0
        lists = 8 * (room_of(plan.width) + room_of(FARTHEST)) * (size + plan.tile)
        longer = 8 * plan.longer[1] * self.features.num_query
        if longer:
            lists += 8 * room_of(plan.longer[1]) * (self.features.num_query + plan.tile)
        operands = (plan.strip + (0 if plan.keep else 2 * plan.threads)) * plan.tile * operand
        searching = lists + operands + plan.threads * 14 * plan.tile**2
        neighbours, codes = size * (self.k1 + 1) * 24 + 24 * size, 8 * ENTRIES * size
        # Of a block: the distances, a copy to select from or to give out, and a few rows of Jaccard's and of marks.
        block = (8 * (QUERY_ROWS if self.by_full_rows or not self.k else 64) + 24 * plan.queries) * gallery
        ranking = 2 * codes + plan.threads * block
        return (FIXED + kept_operands + longer + plan.threads * 2 * plan.pairs * dim * 4
                + max(searching, neighbours + codes * 5 // 2, neighbours + ranking))

    def seconds(self, plan: SearchPlan) -> float:
        """Time of one process; an estimate from a product and a few pairs measured just now."""
        size = len(self.features)
        tiles = -(-size // plan.tile)
        products = tiles * (tiles + 1) / 2 * plan.product_seconds * 1.4
        wanted = size * (self.k1 + 16) + self.features.num_query * (self.k * 5 // 4)
        pairs = next(in_threads(lambda _: self._pair_seconds(plan), [None], 1)) * wanted * 1.5 / plan.threads
        return (products + pairs) / self.processes

    def _pair_seconds(self, plan: SearchPlan) -> float:
        pairs = PairDistances(self.features, plan.pairs)
        rows = torch.arange(plan.pairs, device=self.features.device) % len(self.features)
        pairs(rows, rows.flip(0))
        start = time.perf_counter()
        pairs(rows, rows.flip(0))
        return (time.perf_counter() - start) / plan.pairs

    def describe(self, plan: SearchPlan) -> str:
        """The line that is logged before the work starts."""
        features, shared = self.features, f", shared by {self.processes} processes" if self.processes > 1 else ""
        images = f"{features.num_query:,} queries and {features.num_gallery:,} gallery images"
        if features.num_query == 1:  # also a set of images, of which any is called the query (jaccard_graph.py)
            images = f"{len(features):,} images"
        return (f"{images} of dimension {features.dim} on {features.device.type}: about "
                f"{self.bytes(plan) / MIB:,.0f} MiB above the features and {max(self.seconds(plan), 1):,.0f} s, "
                f"{plan.precision.name} search{shared}")


def plan_search(work: Work, precision: str, memory: int | None, workers: Workers = ALONE) -> SearchPlan:
    """The fastest plan that stays within `memory` bytes above the features, for each of the workers the same.

    Args:
        precision: see `precision.choose`.
        memory: of one process; None: its share of SHARE_OF_FREE of what is free.
    Raises:
        ValueError: even the smallest plan needs more; the message says how much.

    >>> feats = torch.zeros(1000, 8)
    >>> work = Work(FeatureRows(feats[:100], feats[100:]), k1=20, k=10, processes=1)
    >>> plan = plan_search(work, "float32", memory=200 * MIB)
    >>> plan.precision.name, plan.width, work.bytes(plan) <= 200 * MIB
    ('float32', 40, True)
    """
    device, size = work.features.device, len(work.features)
    kind = "cuda" if device.type == "cuda" else "cpu"
    if memory is None:
        neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if kind == "cpu" and workers.size > 1 else 1
        memory = int(SHARE_OF_FREE * free_bytes(device)) // neighbours
    largest = next(tile for tile in TILES[kind] if tile <= max(size // TILES_AT_LEAST[kind], TILES[kind][-1]))
    sample = min(largest, 1024) if kind == "cpu" else largest
    chosen, seconds = choose(precision, device, work.features.dim, sample)
    seconds *= (largest / sample) ** 2
    # Processes may measure different speeds and free memory, and must not differ in what they do.
    measured = (chosen.name, seconds, memory, thread_count(device))
    name, seconds, memory, threads = workers.gather_objects(measured)[0]
    others, longer = min(work.k1, size - 1), work.longer
    width, longer_width = (wanted + 20 if name == "float32" else wanted * 3 // 2 + 18 for wanted in (others, longer))
    pairs = max(GATHERED[kind] // (4 * work.features.dim), 16)
    plan = SearchPlan(PRECISIONS[name], largest, STRIPS[0], pairs, width, QUERIES[kind], threads)
    fewer_threads = [2**power for power in range(threads.bit_length() - 1, -1, -1)]
    keeps = (True, False) if plan.precision.dtype == torch.bfloat16 else (False,)
    longers = ((longer, longer_width), (0, 0)) if longer > others else ((0, 0),)
    plans = [replace(plan, tile=tile, strip=strip, threads=count, keep=keep, longer=lists,
                     product_seconds=seconds * (tile / largest) ** 2)
             for tile in TILES[kind] if tile <= largest for strip in STRIPS
             for count in dict.fromkeys((threads, *fewer_threads)) for keep in keeps for lists in longers]
    for plan in plans:
        if work.bytes(plan) <= memory:
            return plan
    raise ValueError(f"re-ranking {size:,} images of dimension {work.features.dim} needs "
                     f"{work.bytes(plans[-1]) / MIB:,.0f} MiB above the features and may use {memory / MIB:,.0f}: give "
                     "it more (TEST.MEMORY_BUDGET, --memory)")


def free_bytes(device: torch.device) -> int:
    """Memory that may still be taken: of the CUDA device, or of this machine or container.

    >>> free_bytes(torch.device("cpu")) > 0
    True
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [_meminfo("MemAvailable")]
    for limit, used in (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
                        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes")):
        numbers = [_number(path) for path in (limit, used)]
        if None not in numbers:
            # Files in memory (such as a feature bank) make way when memory is needed.
            free.append(max(numbers[0] - numbers[1] + _cgroup_files(Path(used).parent), 0))
    known = [size for size in free if size is not None]
    return min(known) if known else 4 * 2**30


def _cgroup_files(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    names = ("inactive_file", "total_inactive_file")  # of the second and of the first version
    return next((int(line.split()[1]) for line in lines if line.split()[0] in names), 0)


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return None
