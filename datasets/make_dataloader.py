"""From a config to batches: which data set, which sampler, which image size."""
from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from datasets.augment.channels import with_shuffled_channels
from datasets.bad_images import ReplacingLoader
from datasets.bases import UNKNOWN_CAMID, QueryGallery, ReIDData, Sample
from datasets.batches import ImageLoader, SequentialBatches, open_loader
from datasets.files.images import ImageSource, MountedSource
from datasets.files.pack_reader import open_packed
from datasets.registry import PSEUDO, Places, Reference, find_folders, load_sets, open_folders, parse_names
from datasets.sampler import EpochBatchSampler, IdentityBatchSampler, ShuffledBatchSampler
from datasets.sets.unlabelled import Unlabelled
from datasets.transforms import Normalize, Recipe, TrainAugment
from datasets.validation.split import leave_out, read_split

logger = logging.getLogger(__name__)


@dataclass
class TestLoader:
    """One evaluation's images in one walk, queries first; of several processes each walks its share.

    names: [N] what results call the images. drop_same_camera: as it is to be measured, see TEST.DROP_SAME_CAMERA.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    loader: DataLoader
    batches: SequentialBatches
    samples: list[Sample]
    num_query: int
    has_truth: bool
    names: list[str]
    drop_same_camera: bool


@dataclass
class DataLoaders:
    """What `make_dataloader` makes; `train` is None where only testing was asked for.

    measured_on: what `test` is, in a few words. on_validation: True: it is the split of DATASETS.VALIDATION, so that
    choosing by its figures is fair; False: a test set.
    """

    data: ReIDData
    train: DataLoader | None = None
    sampler: EpochBatchSampler | None = None
    augment: TrainAugment | None = None
    normalize: Normalize | None = None
    test: dict[str, TestLoader] = field(default_factory=dict)
    no_test_reason: str = ""
    measured_on: str = ""
    on_validation: bool = False


def _train_loader(cfg, source: ImageSource, train: list[Sample], sampler: EpochBatchSampler) -> DataLoader:
    make = ImageLoader
    if cfg.DATALOADER.ON_BAD_IMAGE == "skip":
        make = partial(ReplacingLoader, pids=np.array([sample.pid for sample in train]), seed=cfg.SOLVER.SEED)
    return open_loader(source, train, cfg.INPUT.SIZE_TRAIN, sampler, cfg.DATALOADER.NUM_WORKERS, make)


def _make_sampler(cfg, train: list[Sample], rank: int, world_size: int) -> EpochBatchSampler:
    batch, seed = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.SEED
    if "triplet" in cfg.DATALOADER.SAMPLER:
        pids, sets, shares = np.array([sample.pid for sample in train]), None, None
        if cfg.DATALOADER.BALANCE_SETS:
            sets = [sample.set_name for sample in train]
            pairs = [text.rsplit(":", 1) for text in cfg.DATALOADER.SET_SHARES]
            shares = {name: Fraction(share) for name, share in pairs} or None
        return IdentityBatchSampler(pids, batch, cfg.DATALOADER.NUM_INSTANCE, seed, rank, world_size, sets, shares)
    return ShuffledBatchSampler(len(train), batch, seed, rank, world_size)


def _recipe(cfg) -> Recipe:
    return Recipe(
        flip=cfg.INPUT.PROB, padding=cfg.INPUT.PADDING, erase=cfg.INPUT.RE_PROB, hard=cfg.DATASETS.HARD_AUG,
        patch=cfg.INPUT.RANDOM_PATCH_PROB, auto_augment=cfg.INPUT.AUTOAUG_PROB, augmix=cfg.INPUT.AUGMIX_PROB,
        gray_patch=cfg.INPUT.GRAYSCALE_PATCH_PROB, gray=cfg.INPUT.GRAYSCALE_PROB,
    )


def make_dataloader(cfg, train: bool = True, test: bool = True, rank: int = 0, world_size: int = 1) -> DataLoaders:
    """The loaders of the configured data sets.

    Args:
        cfg: the config tree.
        train: make the training loader; the training sets are read only then.
        test: make a loader for each evaluation: those of DATASETS.TEST_NAMES, or of the split of DATASETS.VALIDATION.
            With `train`, a test set that cannot be read is no error: it leaves `test` empty and says why in
            `no_test_reason`.
        rank, world_size: of several processes, which one this is: all have the same global batches and each loads its
            share of them.
    Raises:
        ValueError: DATASETS.NAMES or TEST_NAMES names an unknown set, the data on disk are not as its layout says, or
            DATASETS.PACKED is not a pack of these images.
        OSError: a set or the validation split is missing.
    """
    data, files, no_test_reason = load_set(cfg, train, test)
    source = _source(cfg, data, files)
    mean, std = list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD)
    channels = None
    if train and cfg.DATASETS.CHANNEL_SHUFFLE:
        data, channels = with_shuffled_channels(data, cfg.SOLVER.SEED)
    loaders = DataLoaders(data, normalize=Normalize(mean, std), no_test_reason=no_test_reason,
                          measured_on=_measured_on(cfg), on_validation=bool(cfg.DATASETS.VALIDATION))
    if train:
        loaders.sampler = _make_sampler(cfg, data.train, rank, world_size)
        loaders.train = _train_loader(cfg, source, data.train, loaders.sampler)
        loaders.augment = TrainAugment(mean, std, _recipe(cfg), cfg.SOLVER.SEED, channels)
    by_file_name = _file_names_tell_apart(data.eval_sets)
    for domain, pair in data.eval_sets.items():
        samples = [*pair.query, *pair.gallery]
        batches = SequentialBatches(len(samples), cfg.TEST.IMS_PER_BATCH, rank, world_size)
        loader = open_loader(source, samples, cfg.INPUT.SIZE_TEST, batches, cfg.DATALOADER.NUM_WORKERS)
        names = [Path(sample.key).name if by_file_name else sample.key for sample in samples]
        loaders.test[domain] = TestLoader(loader, batches, samples, len(pair.query), pair.has_truth, names,
                                          _drops_same_camera(cfg, domain, pair))
    return loaders


def make_unlabelled_loader(cfg, unlabelled: Unlabelled, rank: int = 0, world_size: int = 1) -> TestLoader:
    """All unlabelled images in one walk, as a test loader gives them."""
    samples = unlabelled.samples
    batches = SequentialBatches(len(samples), cfg.TEST.IMS_PER_BATCH, rank, world_size)
    loader = open_loader(unlabelled.source(), samples, cfg.INPUT.SIZE_TEST, batches, cfg.DATALOADER.NUM_WORKERS)
    return TestLoader(loader, batches, samples, unlabelled.num_query, has_truth=False,
                      names=[sample.key for sample in samples], drop_same_camera=False)


def load_training(cfg) -> tuple[ReIDData, ImageSource]:
    """The training sets as they are on disk, before DATASETS.VALIDATION, without pseudo-labels, and their images.

    Raises:
        ValueError, OSError: as `make_dataloader`.
    """
    data, folders = load_sets(parse_names(cfg.DATASETS.NAMES), _places(cfg), ("train",))
    return data, open_folders(folders)


def derived_dir(cfg) -> Path:
    """The folder of what is derived from the data; see DATASETS.DERIVED_DIR."""
    return Path(cfg.DATASETS.DERIVED_DIR or Path(cfg.OUTPUT_DIR).parent / "derived")


def _places(cfg) -> Places:
    return Places(cfg.DATASETS.ROOT_DIR, tuple(cfg.DATASETS.TRAIN_SETS), cfg.DATASETS.TEST_DIR, derived_dir(cfg),
                  cfg.DATASETS.UNLABEL_DIR, skip=cfg.DATALOADER.ON_BAD_IMAGE == "skip")


def _trained(cfg) -> list[Reference]:
    """The sets that are trained on."""
    return [*parse_names(cfg.DATASETS.NAMES), *[PSEUDO] * cfg.DATASETS.USE_UNLABEL]


def _tested(cfg) -> list[Reference]:
    """The sets whose evaluations are measured on."""
    if cfg.DATASETS.TEST_NAMES:
        return parse_names(cfg.DATASETS.TEST_NAMES, "DATASETS.TEST_NAMES")
    return parse_names(cfg.DATASETS.NAMES)


def _measured_on(cfg) -> str:
    if cfg.DATASETS.VALIDATION:
        return f"the validation split {cfg.DATASETS.VALIDATION}"
    names = [f"{one.name} ({cfg.DATASETS.TEST_DIR})" if one.kind == "naic" else one.name for one in _tested(cfg)]
    return f"the test set of {' and '.join(names)}"


def load_set(cfg, train: bool = True, test: bool = True) -> tuple[ReIDData, ImageSource, str]:
    """The data, their image files, and why there is no evaluation where training goes on without it.

    Arguments and errors are `make_dataloader`'s.
    """
    places, trained = _places(cfg), _trained(cfg)
    data, folders = load_sets(trained, places, ("train",)) if train else (ReIDData(), {})
    reason = "" if test else "not asked for"
    if cfg.DATASETS.VALIDATION:
        split = read_split(cfg.DATASETS.VALIDATION)
        data = replace(leave_out(data, split) if train else data, eval_sets=split.eval_sets if test else {})
        folders = folders or find_folders(parse_names(cfg.DATASETS.NAMES), places)
    elif test:
        tested = _tested(cfg)
        try:
            evaluated, others = load_sets(tested, places, ("test",))
            data, folders = replace(data, eval_sets=evaluated.eval_sets), {**folders, **others}
        except (ValueError, OSError) as error:
            if not train:
                raise
            reason = str(error)
    return data, open_folders(folders), reason


def _file_names_tell_apart(eval_sets: dict[str, QueryGallery]) -> bool:
    """True: no two queries and no two gallery images have the same file name, so that results may use it.

    So it is in NAIC, whose answers hold file names. Where it is not, results use keys.
    """
    for part in ("query", "gallery"):
        names = [Path(sample.key).name for pair in eval_sets.values() for sample in getattr(pair, part)]
        if len(set(names)) < len(names):
            return False
    return True


def _drops_same_camera(cfg, name: str, pair: QueryGallery) -> bool:
    """The evaluation's own protocol, or TEST.DROP_SAME_CAMERA; without cameras there is nothing to drop."""
    if cfg.TEST.DROP_SAME_CAMERA == "auto":
        return pair.drop_same_camera
    known = any(sample.camid != UNKNOWN_CAMID for sample in (*pair.query, *pair.gallery))
    if cfg.TEST.DROP_SAME_CAMERA and pair.has_truth and not known:
        logger.warning("%s: TEST.DROP_SAME_CAMERA is not followed, its cameras are unknown", name)
    return cfg.TEST.DROP_SAME_CAMERA and known


def image_files(cfg) -> ImageSource:
    """The images of the configured sets, as files."""
    return open_folders(find_folders([*parse_names(cfg.DATASETS.NAMES), *_tested(cfg)], _places(cfg)))


def _source(cfg, data: ReIDData, files: ImageSource) -> ImageSource:
    """The files, or the pack that stands for them; pseudo-labels change, and their images stay files."""
    if not cfg.DATASETS.PACKED:
        return files
    sizes = {"INPUT.SIZE_TRAIN": cfg.INPUT.SIZE_TRAIN} if data.train else {}
    sizes |= {"INPUT.SIZE_TEST": cfg.INPUT.SIZE_TEST} if data.eval_sets else {}
    packed = open_packed(cfg.DATASETS.PACKED, files, packed_keys(data), sizes)
    if not cfg.DATASETS.USE_UNLABEL or not data.train:
        return packed
    return MountedSource({PSEUDO.mount: files.sources[PSEUDO.mount], "": packed})


def packed_keys(data: ReIDData) -> list[str]:
    """The images that a pack holds: all but the pseudo-labelled ones."""
    return [key for key in data.keys() if not key.startswith(f"{PSEUDO.mount}/")]  # noqa: SIM118 - no mapping
