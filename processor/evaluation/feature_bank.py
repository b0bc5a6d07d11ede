"""The features of a test set on disk: what a tested model leaves for re-ranking, ensembling and later questions.

A bank is a folder: `index.json` (written last: a folder without it is no bank), `config.yml` (what was tested) and, for
each domain, `DOMAIN.names.npy`, `DOMAIN.pids.npy`, `DOMAIN.camids.npy`, `DOMAIN.keys.npy` and a `DOMAIN.BRANCH.npy`
for each branch, queries first, and `DOMAIN.same_file.npy`: the (query, gallery image) that are one file.
"""
from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from datasets.files.images import is_safe_path
from processor.retrieval.distance import METRICS
from processor.retrieval.metrics import NO_PAIRS
from processor.retrieval.reranking import check_parameters
from utils.dist import ALONE, Workers
from utils.files import as_damage, make_mapped_array, read_array, read_object, write_array, write_json, write_text

FORMAT = 1
_ENTRY = {"num_query": int, "num_gallery": int, "has_truth": bool, "drop_same_camera": bool, "branches": dict}
CONFIG = "config.yml"


@dataclass(frozen=True)
class Ranking:
    """How a model's features become distances: the TEST section, as the bank remembers it.

    re_ranking: (k1, k2, lambda) or None.
    local_weight: weight of the mean distance over all branches but `global`, which has 1.
    query_expansion, database_augmentation, expansion_alpha: see processor.retrieval.expansion.expand.
    """

    feat_norm: bool
    distance: str
    re_ranking: tuple[int, int, float] | None
    local_weight: float = 1.0
    query_expansion: int = 0
    database_augmentation: int = 0
    expansion_alpha: float = 0.0

    def branch_weights(self, branches: Iterable[str]) -> dict[str, float]:
        """The factor of each branch's distance in their sum."""
        branches = list(branches)
        others = len(branches) - branches.count("global")
        return {branch: 1.0 if branch == "global" else self.local_weight / others for branch in branches}


@dataclass
class FeatureBank:
    """A domain: feats {branch: [N, D] float32}, pids [N], camids [N], names [N]; the first num_query are queries.

    drop_same_camera: how it is measured: the query's identity from the query's camera does not count.
    keys: [N] where the pictures lie, see datasets.bases.Sample; None: an earlier bank does not know.
    same_file: [n, 2] (query, gallery image) that are one file, which does not count either.
    """

    feats: dict[str, np.ndarray]
    pids: np.ndarray
    camids: np.ndarray
    names: np.ndarray
    num_query: int
    has_truth: bool
    drop_same_camera: bool = False
    keys: np.ndarray | None = None
    same_file: np.ndarray = field(default_factory=NO_PAIRS.copy)

    @property
    def query_names(self) -> np.ndarray:
        return self.names[: self.num_query]

    @property
    def gallery_names(self) -> np.ndarray:
        return self.names[self.num_query:]

    def branch(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """query [Q, D] and gallery [G, D] of a branch."""
        return self.feats[name][: self.num_query], self.feats[name][self.num_query:]


class BankWriter:
    """Collects a bank in a temporary folder; `finish` puts it in place, so that a reader sees a whole bank or none.

    Of several processes, which all see the folder, the first makes the files and all fill the arrays; each of them
    calls every method.
    """

    def __init__(self, folder: Path, workers: Workers = ALONE):
        self.folder, self._partial, self._workers = folder, folder.with_name(folder.name + ".partial"), workers
        if workers.is_main:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
        self._domains: dict[str, dict] = {}

    def array(self, domain: str, branch: str, shape: tuple[int, int]) -> np.ndarray:
        """A memory-mapped [N, D] float32 array to fill."""
        path = self._partial / f"{domain}.{branch}.npy"
        if self._workers.is_main:
            made = make_mapped_array(path, shape)
        self._workers.wait()
        return made if self._workers.is_main else np.lib.format.open_memmap(path, "r+")

    def add(self, domain: str, bank: FeatureBank) -> None:
        """Record a domain whose feature arrays came from `array` and are filled."""
        for feats in bank.feats.values():
            feats.flush()
        self._workers.wait()
        if not self._workers.is_main:
            return
        for leaf in ("pids", "camids", "names", "same_file", *["keys"] * (bank.keys is not None)):
            write_array(self._partial / f"{domain}.{leaf}.npy", getattr(bank, leaf))
        self._domains[domain] = {
            "branches": {name: int(feats.shape[1]) for name, feats in bank.feats.items()},
            "num_query": bank.num_query, "num_gallery": len(bank.names) - bank.num_query, "has_truth": bank.has_truth,
            "drop_same_camera": bank.drop_same_camera,
            "sha256": _digest(bank),  # so that the index changes whenever anything of the bank does
        }

    def finish(self, ranking: Ranking, config: str = "", **about: object) -> None:
        """Write the config that the features were made with and the index, and move the bank to its place."""
        if self._workers.is_main:
            if config:
                write_text(self._partial / CONFIG, config)
            index = {"format": FORMAT, "domains": self._domains, "ranking": asdict(ranking), **about}
            write_json(self._partial / "index.json", index)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._partial.rename(self.folder)
        self._workers.wait()


def _digest(bank: FeatureBank, with_pairs: bool = True) -> str:
    digest = hashlib.sha256(repr(bank.names.tolist()).encode("utf-8", "surrogatepass"))
    pairs = (bank.same_file,) if with_pairs else ()  # earlier banks had none
    for array in (bank.pids, bank.camids, *pairs, *bank.feats.values()):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def read_bank(folder: Path, check: bool = True) -> tuple[dict[str, FeatureBank], dict]:
    """Open a bank: ({domain: FeatureBank with memory-mapped features}, its index).

    Args:
        check: read all of it once, and compare it with the checksum that it was written with.
    Raises:
        ValueError: the folder holds no complete bank, its arrays do not fit the index, or something in it has changed
            since it was written.
    """
    if not (folder / "index.json").is_file():
        raise ValueError(f"{folder} holds no complete feature bank (no index.json); run tools/test.py for this model")
    path = folder / "index.json"
    index = read_object(path)
    if index.get("format") != FORMAT:
        raise ValueError(f"{path}: format {index.get('format')}, this version reads {FORMAT}")
    with as_damage(path, "run tools/test.py again"):
        # Older banks have one protocol for all domains.
        common = {"drop_same_camera": index.get("evaluation", {}).get("drop_same_camera", False)}
        read_ranking(index)
        return {domain: _read_domain(folder, domain, common | entry, check)
                for domain, entry in index["domains"].items()}, index


def _read_domain(folder: Path, domain: str, entry: dict, check: bool) -> FeatureBank:
    if bad := [name for name in (domain, *entry["branches"]) if "/" in name or not is_safe_path(name)]:
        raise ValueError(f"{folder / 'index.json'}: damaged: {bad[0]!r} is no name of a domain or branch")
    for name, kind in _ENTRY.items():
        if type(entry[name]) is not kind:
            raise ValueError(f"{folder / 'index.json'}: damaged: {name} of {domain} is {entry[name]!r}")
    arrays = {leaf: read_array(folder / f"{domain}.{leaf}.npy", kinds, 1)
              for leaf, kinds in (("pids", "i"), ("camids", "i"), ("names", "U"), ("keys", "U"))
              if leaf != "keys" or (folder / f"{domain}.keys.npy").is_file()}
    count = entry["num_query"] + entry["num_gallery"]
    feats = {}
    for branch, dim in entry["branches"].items():
        path = folder / f"{domain}.{branch}.npy"
        feats[branch] = read_array(path, "f", 2, mapped=True)
        if feats[branch].shape != (count, dim) or feats[branch].dtype != np.float32:
            raise ValueError(f"{path}: {feats[branch].dtype} {feats[branch].shape}, expected float32 {(count, dim)}")
    if any(len(array) != count for array in arrays.values()):
        raise ValueError(f"{folder}: the lists of domain {domain} do not have {count} entries as index.json says")
    pairs = folder / f"{domain}.same_file.npy"
    bank = FeatureBank(feats, num_query=entry["num_query"], has_truth=entry["has_truth"],
                       drop_same_camera=entry["drop_same_camera"], **arrays,
                       same_file=_read_same_file(pairs, arrays["names"], entry))
    if check and "sha256" in entry and entry["sha256"] != _digest(bank, pairs.is_file()):
        raise ValueError(f"{folder}: something of domain {domain} is not as it was written (checksum); run "
                         "tools/test.py again")
    return bank


def _read_same_file(path: Path, names: np.ndarray, entry: dict) -> np.ndarray:
    """The pairs of one file; of an older bank those of one key. Names without a folder are no keys, see TestLoader."""
    if path.is_file():
        pairs = read_array(path, "i", 2)
        if pairs.shape[1] != 2 or (pairs < 0).any() or (pairs >= [entry["num_query"], entry["num_gallery"]]).any():
            raise ValueError(f"{path}: damaged: not pairs of a query and a gallery image")
        return pairs
    q = entry["num_query"]
    place = {name: index for index, name in enumerate(names[q:].tolist()) if "/" in name and entry["has_truth"]}
    pairs = [(row, place[name]) for row, name in enumerate(names[:q].tolist()) if name in place]
    return np.array(pairs, np.int64).reshape(-1, 2)


def read_ranking(index: dict) -> Ranking:
    """The Ranking that a bank's index remembers; what an older bank does not know has its default."""
    ranking = dict(index["ranking"])
    ranking["re_ranking"] = tuple(ranking["re_ranking"]) if ranking["re_ranking"] else None
    result = Ranking(**ranking)
    if result.re_ranking is not None:
        check_parameters(*result.re_ranking)
    if result.distance not in METRICS or not all(
            type(value) in (int, float) and value >= 0 for value in (
                result.local_weight, result.query_expansion, result.database_augmentation, result.expansion_alpha)):
        raise ValueError(f"the ranking that a feature bank remembers is none: {ranking}; run tools/test.py again")
    return result
