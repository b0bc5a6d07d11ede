"""A measurement of re-ranking, in a process of its own: python -m tools.benchmarks.retrieval_measure JOB (JSON)."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from processor.retrieval import reranking
from processor.retrieval.distance import Block, Features, distance_blocks, top_k
from processor.retrieval.metrics import RankAccumulator
from tools.benchmarks.harness import Job, serve
from tools.benchmarks.machine import Meter, product_rates
from tools.benchmarks.retrieval_baseline import dense_bytes, dense_re_ranking

TOP_K = 200
EVALUATED = 1000  # queries whose mAP and nearest images are compared: a random sample, because the order is random
RATES = "rates"
WARM_UP = (64, 1024)  # queries, gallery images
CHUNK = 8192          # rows
IMAGES = (10, 30)     # of an identity, fewest and most
# A trained network's features vary in a few dozen directions, however long they are.
DIRECTIONS = 64
NOISE = (0.375, 2.125)  # how far an image lies from its identity's centre, in standard deviations of the centres


def queries_of(size: int) -> int:
    """Q of the N images: 15 %."""
    return max(1, round(0.15 * size))


@dataclass(frozen=True)
class Setting:
    """What is re-ranked, and how."""

    size: int             # N, of which 15 % are queries
    dim: int
    k1: int
    k2: int
    lambda_value: float
    device: str           # "cpu" or "cuda"
    square: int           # edge of the large product whose rate is measured
    product: str = ""     # the dense baseline's, a key of PRODUCTS

    @property
    def num_query(self) -> int:
        return queries_of(self.size)

    @property
    def parameters(self) -> tuple[int, int, float]:
        return self.k1, self.k2, self.lambda_value


Runner = Callable[[Features, Features, Setting, Meter], Iterable[Block]]


def _small(setting: Setting) -> int:
    """Lists and sparse rows, a few dozen entries an image; generous."""
    return 2**29 + 5000 * setting.size


class Implementation(NamedTuple):
    """One way to rank the gallery; `run` enters the meter for what is to be measured and for nothing else."""

    title: str
    run: Runner
    bytes_needed: Callable[[Setting], int] = _small  # a rough estimate, above the features
    cpu_only: bool = False


def top_lists(precision: str) -> Runner:
    """The TOP_K nearest of every query."""
    def run(query: Features, gallery: Features, setting: Setting, meter: Meter) -> Iterable[Block]:
        with meter:
            indices, distances = reranking.re_ranked_top_k(
                query, gallery, *setting.parameters, TOP_K, precision=precision)
        return _blocks_of_lists(indices[:EVALUATED], distances[:EVALUATED], len(gallery))
    return run


def full_rows(query: Features, gallery: Features, setting: Setting, meter: Meter) -> Iterable[Block]:
    """All distances of every query, one block after the other."""
    with meter:
        blocks = reranking.re_ranked_blocks(query, gallery, *setting.parameters)
    return _metered(blocks, meter)


def dense(query: Features, gallery: Features, setting: Setting, meter: Meter) -> Iterable[Block]:
    """The baseline: one [Q, G] matrix, and [N, N] ones on the way."""
    with meter:
        distances = dense_re_ranking(query, gallery, *setting.parameters, setting.product)
    return [(slice(0, len(query)), distances)]


def not_re_ranked(query: Features, gallery: Features, setting: Setting, meter: Meter) -> Iterable[Block]:
    """The Euclidean distances alone."""
    with meter:
        blocks = distance_blocks(query, gallery, "euclidean")
    return _metered(blocks, meter)


def independent_tiles(rows: int, columns: int) -> Runner:
    """Every tile of `rows` queries and `columns` gallery images is re-ranked as if there were no others.

    The features are in random order, so a query's matches are spread over all tiles.
    """
    def run(query: Features, gallery: Features, setting: Setting, meter: Meter) -> Iterator[Block]:
        for i in range(0, len(query), rows):
            part = query[i : i + rows]
            with meter:
                block = np.concatenate([
                    reranking.re_ranking(part, gallery[j : j + columns], *setting.parameters)
                    for j in range(0, len(gallery), columns)
                ], axis=1)
            yield slice(i, i + len(part)), block
    return run


IMPLEMENTATIONS: dict[str, Implementation] = {
    "top200_float32": Implementation("top 200, float32", top_lists("float32")),
    "top200_auto": Implementation("top 200, auto", top_lists("auto")),
    "full_rows": Implementation("full rows", full_rows),
    "dense": Implementation("dense numpy", dense, lambda s: dense_bytes(s.size, s.num_query, s.dim),
                            cpu_only=True),
    "none": Implementation("no re-ranking", not_re_ranked),
    "tiles": Implementation("independent tiles of 300 × 600", independent_tiles(300, 600)),
}


def _metered(blocks: Iterator[Block], meter: Meter) -> Iterator[Block]:
    """The same blocks; only their making is measured, not what the caller does with them."""
    while True:
        with meter:
            block = next(blocks, None)
        if block is None:
            return
        yield block


def _blocks_of_lists(indices: np.ndarray, distances: np.ndarray, num_gallery: int, rows: int = 64) -> Iterator[Block]:
    """Rows of distances that are infinite outside the lists."""
    for start in range(0, len(indices), rows):
        part = slice(start, min(start + rows, len(indices)))
        block = np.full((part.stop - start, num_gallery), np.inf, np.float32)
        np.put_along_axis(block, indices[part], distances[part], axis=1)
        yield part, block


def ranked(blocks: Iterable[Block], pids: np.ndarray, num_query: int) -> tuple[np.ndarray, float]:
    """The ten nearest of the first EVALUATED queries, [<= EVALUATED, 10] int64, and their mAP@TOP_K."""
    query_pids, gallery_pids = pids[:num_query][:EVALUATED], pids[num_query:]
    accumulator = RankAccumulator(query_pids, gallery_pids, np.zeros_like(query_pids), np.zeros_like(gallery_pids),
                                  k=TOP_K, drop_same_camera=False)

    def evaluated() -> Iterator[Block]:
        for rows, block in blocks:
            if rows.start < EVALUATED:
                rows = slice(rows.start, min(rows.stop, EVALUATED))
                block = block[: rows.stop - rows.start]
                accumulator.update(rows, block)
                yield rows, block

    nearest, _ = top_k(evaluated(), 10, len(query_pids))
    return nearest, accumulator.result().mAP_at_k


def make_pids(size: int, seed: int = 0) -> np.ndarray:
    """[size] int64 identities in random order, each of IMAGES images (the last one of what is left)."""
    rng = np.random.default_rng((seed, 0))
    counts = rng.integers(IMAGES[0], IMAGES[1] + 1, size // IMAGES[0] + 1)
    return rng.permutation(np.repeat(np.arange(len(counts)), counts)[:size])


def make_features(pids: np.ndarray, dim: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Unit features [N, dim] float32 around their identities' centres, on `device`.

    They are drawn on the CPU, chunk by chunk, each a function of (seed, position): every device gets the same ones.
    """
    out = torch.empty(len(pids), dim, device=device)
    for start, chunk in zip(range(0, len(pids), CHUNK), feature_chunks(pids, dim, seed), strict=True):
        out[start : start + CHUNK] = chunk
    return out


def feature_chunks(pids: np.ndarray, dim: int, seed: int = 0, everywhere: float = 0.0) -> Iterator[Tensor]:
    """The same, CHUNK rows at a time; `everywhere` is how long the noise is that lies in no certain direction."""
    def normal(number: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))

    directions = min(DIRECTIONS, dim)
    centres = normal(0, int(pids.max()) + 1, directions)
    mixing = normal(1, directions, dim)
    for number, start in enumerate(range(0, len(pids), CHUNK), 2):
        who = torch.from_numpy(pids[start : start + CHUNK])
        drawn = normal(number, len(who), directions + 1)
        # The normal's distribution function makes the last column uniform: some images are harder than others.
        noise = NOISE[0] + (NOISE[1] - NOISE[0]) * torch.special.ndtr(drawn[:, -1:])
        rows = F.normalize((centres[who] + noise * drawn[:, :-1]) @ mixing)
        yield F.normalize(rows + everywhere / dim**0.5 * normal(-number, *rows.shape)) if everywhere else rows


def measure(job: Job) -> dict[str, float]:
    """The figures of a job; the ten nearest images go to a .npy file beside its result."""
    setting = job.setting
    if job.what == RATES:
        return product_rates(setting.dim, setting.square, setting.device)
    implementation, pids = IMPLEMENTATIONS[job.what], make_pids(setting.size)
    device = "cpu" if implementation.cpu_only else setting.device
    features = make_features(pids, setting.dim, device)
    features = features.numpy() if device == "cpu" else features
    query, gallery = features[: setting.num_query], features[setting.num_query :]
    for _ in implementation.run(query[: WARM_UP[0]], gallery[: WARM_UP[1]], setting, Meter(device)):
        pass  # what a first call loads and compiles is not counted
    meter = Meter(device)
    nearest, mean_ap = ranked(implementation.run(query, gallery, setting, meter), pids, setting.num_query)
    np.save(Path(job.result).with_suffix(".npy"), nearest)
    return {"seconds": meter.seconds, "peak_bytes": meter.peak_bytes, "mAP": mean_ap}


if __name__ == "__main__":
    serve(measure, Setting)
