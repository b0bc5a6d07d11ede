"""A run's ranked lists as a page: the run -> its lists and pictures -> OUTPUT_DIR/ranks/index.html."""
from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from configs import change_cfg, load_cfg
from datasets.files.images import decode
from datasets.files.pack_reader import PackedSource
from datasets.make_dataloader import make_dataloader, make_sets
from datasets.transforms import Normalize
from processor.evaluation.ensemble import ENSEMBLE, open_models
from processor.evaluation.feature_bank import CONFIG, FeatureBank, read_bank, read_ranking
from processor.evaluation.sources import HERE, Compute, DomainSource
from processor.export.card import describe_thresholds
from processor.export.model_folder import INFO, read_info
from processor.inference import load_trained
from processor.trained_model import cfg_of_weights
from processor.visual.lists import RIGHT, WRONG, RankedLists, rank_lists
from processor.visual.maps import describe_branches, draw_map, location_features, pair_map
from processor.visual.page import PageData, Shown, list_places, write_page
from processor.visual.pictures import Place, RunPictures, SmallCopies
from processor.visual.scatter import scatter, worst_identities
from utils.files import as_damage, new_folder, read_object, remove_leftovers, sha256_of
from utils.packages import weight_file
from utils.progress import progress

logger = logging.getLogger(__name__)
FOLDER = "ranks"
_MOVED = ("DATASETS.ROOT_DIR", "DATASETS.DERIVED_DIR", "DATASETS.VALIDATION", "DATASETS.PACKED")


@dataclass(frozen=True)
class PageOptions:
    """What is shown.

    Attributes:
        top: counted entries of a list.
        limit: queries that are listed, 0 = all; half of them are those with the lowest AP.
        compare: another run, whose lists stand beside.
        data: where DATASETS.ROOT_DIR is now.
        maps: so many of the worst and of the best queries get activation maps.
        model: the checkpoint for the maps, None = the one that was tested; a model folder's thresholds are told.
        scatter: draw the features in two dimensions.
    """

    top: int = 10
    limit: int = 2000
    compare: Path | None = None
    data: Path | None = None
    maps: int = 0
    model: Path | None = None
    scatter: bool = False

    def __post_init__(self) -> None:
        for name, least in (("top", 1), ("limit", 0), ("maps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least {least}")


@dataclass
class _Run:
    """A tested model or an ensemble.

    models: the folders; weights: of their distances. banks, index, cfg: the first model's.
    sources, shares, k: as `open_models` gives them; lists: what `rank` makes of them, by domain.
    """

    folder: Path
    models: list[Path]
    weights: list[float]
    banks: dict[str, FeatureBank]
    index: dict
    cfg: object
    pictures: RunPictures
    sources: dict[str, list[DomainSource]]
    shares: list[float]
    k: int
    lists: dict[str, RankedLists] = field(default_factory=dict)

    def rank(self, top: int) -> None:
        self.lists = {domain: rank_lists(domain, sources, self.shares, self.banks[domain].camids, top, self.k)
                      for domain, sources in self.sources.items()}


def make_rank_page(run: Path, options: PageOptions, compute: Compute = HERE) -> Path:
    """Write RUN/ranks/ anew, whole or not at all; returns its index.html.

    Args:
        run: a tested model's folder, or an ensemble's.
        compute: how distances are computed.
    Raises:
        ValueError, OSError: the run has no feature bank, its pictures are not found, the runs have no query in
            common, or the maps have no model; before anything is written.
    """
    target = run / FOLDER
    if target.exists() and not (target / "data" / "index.js").is_file():
        raise ValueError(f"{target} exists and is no page of this tool; move it away")
    if options.maps and options.model is None and len(_find_models(run)[0]) > 1:
        raise ValueError(f"{run} is an ensemble: name the checkpoint that the maps are of with --model FILE")
    if options.model is not None and not os.path.isfile(weight_file(options.model)):
        raise FileNotFoundError(f"--model {options.model}: no such checkpoint or model folder")
    runs = [_open_run(folder, options.data, compute) for folder in (run, options.compare) if folder is not None]
    common, counts = _common_queries(runs)
    maps = _Maps(runs[0], options.model, torch.device(compute.device or "cpu")) if options.maps else None
    for opened in runs:
        opened.rank(options.top)
    shown = _choose([Shown(domain, name, [opened.lists[domain] for opened in runs]) for domain, name in common],
                    options.limit)
    remove_leftovers(run)
    with new_folder(target) as fresh:
        copies = SmallCopies(fresh / "pictures", target / "pictures")
        points = _scatter(runs[0]) if options.scatter else []
        known = [entry for entry in shown if entry.ap() is not None]
        drawn = dict.fromkeys([*known[: options.maps], *known[-options.maps :]]) if maps else {}
        places = [place for entry in shown for place in list_places(entry, options.top)]
        copies.make([opened.pictures for opened in runs], [*places, *(place for _, place, _ in points)])
        for problem in copies.problems[:3]:
            logger.warning("%d of the pictures cannot be read: %s", len(copies.problems), problem)
        write_page(fresh, PageData(
            titles=[str(opened.folder) for opened in runs], lists=[opened.lists for opened in runs], shown=shown,
            thresholds=_find_thresholds(runs[0], options.model), counts=counts, top=options.top, copies=copies,
            points=points,
            maps={entry: maps.draw(entry, copies) for entry in progress(drawn, "maps", "queries")},
            about_maps=maps.about if maps else ""))
    return target / "index.html"


# ------------------------------------------------------------------ the runs
def _find_models(run: Path) -> tuple[list[Path], list[float] | None, str]:
    """The tested models of a run, their weights, and how they are combined."""
    if (run / "features").is_dir():
        return [run], None, "sum"
    path = next((run / name for name in (ENSEMBLE, "metrics.json") if (run / name).is_file()), None)
    about = {"models": []} if path is None else {"models": [], **read_object(path)}
    if about["models"] and not _tells_models(about):
        raise ValueError(f"{path}: damaged, or of another program: it does not tell models, weights and mode of an "
                         "ensemble; run tools/ensemble.py again")
    models = [run / name for name in about["models"]]
    lacking = [model for model in models if not (model / "features").is_dir()]
    if not models or lacking:
        raise ValueError(f"{lacking[0] if lacking else run} holds no feature bank (no features/); run tools/test.py, "
                         "tools/ensemble.py or run.sh again")
    return models, about["weights"], about["mode"]


def _tells_models(about: dict) -> bool:
    """Whether models, weights and mode of a JSON object are those of an ensemble."""
    models, weights = about["models"], about.get("weights")
    return (isinstance(models, list) and all(isinstance(name, str) and "\0" not in name for name in models)
            and isinstance(weights, list) and all(type(weight) in (int, float) for weight in weights)
            and about.get("mode") in ("sum", "concat"))


def _open_run(folder: Path, data: Path | None, compute: Compute) -> _Run:
    models, weights, mode = _find_models(folder)
    opened = open_models(models, weights, mode, compute=compute)
    banks, index = read_bank(models[0] / "features", check=False)  # `open_models` has checked it
    cfg = _config_of(models[0], data)
    return _Run(folder, models, weights or [1.0], banks, index, cfg, _open_pictures(cfg, models[0], banks), *opened)


def _config_of(model: Path, data: Path | None):
    """The config that a model was tested with (or, of an earlier test, trained); folders that were moved with the
    model's are looked for beside it.

    Raises:
        ValueError: there is none.
    """
    path = next((path for path in (model / "features" / CONFIG, model / CONFIG) if path.is_file()), None)
    if path is None:
        raise ValueError(f"{model} has no {CONFIG} that says where its pictures are; run tools/test.py again")
    cfg = load_cfg(path, [])
    values = {key: str(cfg.DATASETS[key.split(".")[1]]) for key in _MOVED}
    places = {key: next((place for place in (Path(value), model.parent / Path(value).name) if place.exists()), value)
              for key, value in values.items() if value}
    places |= {"DATASETS.ROOT_DIR": data} if data else {}
    return change_cfg(cfg, {"OUTPUT_DIR": str(model), **{key: str(place) for key, place in places.items()}})


def _open_pictures(cfg, model: Path, banks: dict[str, FeatureBank]) -> RunPictures:
    """Where a model's pictures are.

    Raises:
        ValueError: a set is not there or, with a bank of an earlier version, is not as it was.
    """
    try:
        if all(bank.keys is not None for bank in banks.values()):
            source = PackedSource(cfg.DATASETS.PACKED) if cfg.DATASETS.PACKED else make_sets(cfg).files()
            lists = {domain: (bank.names, bank.keys, bank.num_query) for domain, bank in banks.items()}
        else:
            tests = make_dataloader(cfg, train=False).test
            source = next(iter(tests.values())).loader.dataset.source
            lists = {domain: (test.names, [sample.key for sample in test.samples], test.num_query)
                     for domain, test in tests.items()}
    except (ValueError, OSError) as error:
        raise ValueError(f"the pictures of {model} are not found: {str(error).splitlines()[0]}; name the folder that "
                         "DATASETS.ROOT_DIR is now with --data") from error
    keys = {}
    for domain, (names, paths, num_query) in lists.items():
        pairs = list(zip(map(str, names), map(str, paths), strict=True))
        keys[domain, "query"], keys[domain, "gallery"] = dict(pairs[:num_query]), dict(pairs[num_query:])
    return RunPictures(source, keys)


def _find_thresholds(run: _Run, model: Path | None) -> str:
    """What tools/calibrate.py wrote into the folder of the tested model: `model`, or run.sh's; "" = nothing."""
    folders = [folder for folder in (model, run.folder / "model") if folder and (folder / INFO).is_file()]
    infos = [info for info in map(read_info, folders) if info.thresholds and info.model_id == run.index.get("model_id")]
    return describe_thresholds(infos[0]) if infos and len(run.models) == 1 else ""


def _was_tested(weight: Path, index: dict) -> bool:
    """Whether a run is of these weights, as far as is known; a model folder holds them in another file."""
    if weight.is_dir() and "model_id" in index:
        return read_info(weight).model_id == index["model_id"]
    return index.get("weight_sha256") in (None, sha256_of(weight_file(weight)))


def _common_queries(runs: list[_Run]) -> tuple[list[tuple[str, str]], list[int]]:
    """(domain, name) of the queries that all runs have, and how many are in all, in the first and in the second alone.

    Raises:
        ValueError: there are none.
    """
    names = [{(domain, str(name)) for domain in run.sources for name in run.banks[domain].query_names} for run in runs]
    common = set.intersection(*names)
    if not common:
        raise ValueError(f"{runs[0].folder} and {runs[1].folder} have no query in common")
    return sorted(common), [len(common), *(len(each - common) for each in names)]


def _choose(queries: list[Shown], limit: int) -> list[Shown]:
    """The queries to list, the lowest AP first and those without one last."""
    queries.sort(key=lambda query: (query.ap() is None, query.ap()))
    if not limit or len(queries) <= limit:
        return queries
    worst, others = queries[: limit // 2], queries[limit // 2 :]
    return worst + [others[i] for i in np.linspace(0, len(others) - 1, limit - len(worst)).astype(int)]


# ------------------------------------------------------------------ scatter
def _scatter(run: _Run) -> list[tuple[np.ndarray, Place, int]]:
    """(position, picture, group) of each point; all domains together."""
    feats, weights = [], []
    for model, weight in zip(run.models, run.weights, strict=True):
        banks, index = read_bank(model / "features", check=False)
        shares = read_ranking(index).branch_weights(next(iter(banks.values())).feats)
        feats += [np.concatenate([banks[domain].feats[branch] for domain in run.lists]) for branch in shares]
        weights += [weight * share for share in shares.values()]
    firsts = [run.banks[domain] for domain in run.lists]
    # Two sets may call different persons by one number.
    step = max(int(bank.pids.max()) for bank in firsts) + 2
    pids = [np.where(bank.pids < 0, -1, bank.pids + step * number) for number, bank in enumerate(firsts)]
    places = [Place(0, domain, "query" if row < bank.num_query else "gallery", str(name))
              for domain, bank in zip(run.lists, firsts, strict=True) for row, name in enumerate(bank.names)]
    worst = np.empty(0, int)
    if all(lists.result for lists in run.lists.values()):
        worst = worst_identities(
            np.concatenate([numbers[: bank.num_query] for numbers, bank in zip(pids, firsts, strict=True)]),
            np.concatenate([lists.result.ap for lists in run.lists.values()]))
    points = scatter(feats, weights, np.concatenate(pids), worst)
    return [(position, places[row], group) for position, row, group in
            zip(points.positions, points.rows.tolist(), points.groups.tolist(), strict=True)]


# ------------------------------------------------------------------ maps
class _Maps:
    """Activation maps of a run's pictures by a checkpoint.

    about: which embedding they explain.
    """

    def __init__(self, run: _Run, weight: Path | None, device: torch.device):
        weight = weight or _find_weight(run)
        self.cfg = run.cfg
        if len(run.models) > 1:
            self.cfg = cfg_of_weights(weight, run.cfg)
        elif not _was_tested(weight, run.index):
            logger.warning("%s is not the checkpoint that %s was tested with", weight, run.folder)
        self.pictures, self.device = run.pictures, device
        self.model = load_trained(self.cfg, weight, self.device).eval()
        self.normalize = Normalize(list(self.cfg.INPUT.PIXEL_MEAN), list(self.cfg.INPUT.PIXEL_STD))
        self.about = f"{weight.name}{describe_branches(self.model)}"

    def draw(self, entry: Shown, copies: SmallCopies) -> list[tuple[str, float, str, str]]:
        """(title, cosine, the query's map, the other's) for a query's first match and first mistake."""
        lists, row = entry.lists[0], entry.rows[0]
        drawn = []
        for title, kind in (("first match", RIGHT), ("first other person", WRONG)):
            if (image := int(lists.ends[row, kind])) >= 0:
                places = [Place(0, entry.domain, "query", entry.name),
                          Place(0, entry.domain, "gallery", lists.gallery_names[image])]
                try:
                    files = [self.pictures.read(place) for place in places]
                    pair = pair_map(*(self._features(data) for data in files))
                except (OSError, ValueError) as error:
                    logger.warning("no map: %s", error)
                    continue
                most = max(np.abs(pair.first).max(), np.abs(pair.second).max())
                drawn.append((title, pair.cosine, *(copies.add(draw_map(decode(data), shares, most)) for data, shares
                                                    in zip(files, (pair.first, pair.second), strict=True))))
        return drawn

    def _features(self, data: bytes) -> torch.Tensor:
        image = torch.from_numpy(decode(data, tuple(self.cfg.INPUT.SIZE_TEST))).to(self.device)
        return location_features(self.model, self.normalize, image, self.cfg.TEST.FLIP_FEATS)


def _find_weight(run: _Run) -> Path:
    """The checkpoint that a model was tested with, also if the folders were moved.

    Raises:
        ValueError: it is not found.
    """
    folder = run.models[0]
    with as_damage(folder / "features" / "index.json"):
        weight = Path(run.cfg.TEST.WEIGHT or run.index.get("weight", "latest.pth"))
    places = [weight, folder / weight.name, folder.parent / weight.parent.name / weight.name, folder / "latest.pth"]
    path = next((path for path in places if os.path.isfile(weight_file(path))), None)
    if path is None:
        raise ValueError(f"the checkpoint {weight} of {folder} is not found: name it with --model FILE")
    return path
