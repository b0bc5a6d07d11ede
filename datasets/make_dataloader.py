"""From a config to batches: which data set, which sampler, which image size."""
from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from datasets.augment.channels import with_shuffled_channels
from datasets.bad_images import ReplacingLoader
from datasets.bases import (
    UNKNOWN_CAMID,
    Places,
    QueryGallery,
    Reference,
    ReIDData,
    Sample,
    format_names,
    names_of_results,
)
from datasets.batches import ImageLoader, SequentialBatches, open_loader
from datasets.files.images import FileSource, ImageSource, MountedSource
from datasets.files.pack_reader import open_packed
from datasets.files.same_file import identify, pair_up
from datasets.registry import PSEUDO, ChosenSets, parse_names, parse_roots
from datasets.sampler import EpochBatchSampler, IdentityBatchSampler, ShuffledBatchSampler
from datasets.sets.unlabelled import Unlabelled
from datasets.transforms import Normalize, Recipe, TrainAugment

logger = logging.getLogger(__name__)


@dataclass
class TestLoader:
    """An evaluation's images in a single walk, queries first; each of several processes walks its share.

    names: [N] what results call the images. drop_same_camera: as it is to be measured, see TEST.DROP_SAME_CAMERA.
    same_file: [n, 2] (query, gallery image) that are one file; only where the truth is known.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    loader: ImageLoader
    batches: SequentialBatches
    samples: list[Sample]
    num_query: int
    has_truth: bool
    names: list[str]
    drop_same_camera: bool
    same_file: np.ndarray = field(default_factory=lambda: pair_up((), ()))

    @property
    def pids(self) -> np.ndarray:
        return np.array([sample.pid for sample in self.samples])

    @property
    def camids(self) -> np.ndarray:
        return np.array([sample.camid for sample in self.samples])


@dataclass
class DataLoaders:
    """What `make_dataloader` makes; `train` is None if only testing was asked for.

    on_validation: True: `test` is the split of DATASETS.VALIDATION, so that choosing by its figures is fair; False: a
    test set.
    """

    sets: ChosenSets
    data: ReIDData
    train: ImageLoader | None = None
    sampler: EpochBatchSampler | None = None
    augment: TrainAugment | None = None
    normalize: Normalize | None = None
    test: dict[str, TestLoader] = field(default_factory=dict)
    no_test_reason: str = ""

    @property
    def on_validation(self) -> bool:
        return bool(self.sets.validation)

    @property
    def measured_on(self) -> str:
        """What `test` is, in a few words."""
        return self.sets.measured_on({test.samples[0].set_name for test in self.test.values()})

    def end(self) -> None:
        """Kill the processes that load images, whatever they are at."""
        for loader in (self.train, *(test.loader for test in self.test.values())):
            if loader is not None:
                loader.end()


# ------------------------------------------------------------------ makers: what is read of the config
def make_places(cfg, references: Sequence[Reference] = ()) -> Places:
    """Where the configured sets lie; references: those whose names DATASETS.ROOTS may have, beside the public ones."""
    derived = Path(cfg.DATASETS.DERIVED_DIR or Path(cfg.OUTPUT_DIR).parent / "derived")
    return Places(cfg.DATASETS.ROOT_DIR, tuple(cfg.DATASETS.TRAIN_SETS), cfg.DATASETS.TEST_DIR, derived,
                  cfg.DATASETS.UNLABEL_DIR, skip=cfg.DATALOADER.ON_BAD_IMAGE == "skip",
                  roots=parse_roots(cfg.DATASETS.ROOTS, references))


def make_sets(cfg) -> ChosenSets:
    """The configured sets; nothing is read yet.

    Raises:
        ValueError: DATASETS.NAMES, TEST_NAMES or ROOTS names an unknown set.
    """
    named = parse_names(cfg.DATASETS.NAMES)
    tested = parse_names(cfg.DATASETS.TEST_NAMES, "DATASETS.TEST_NAMES") if cfg.DATASETS.TEST_NAMES else named
    places = make_places(cfg, [*named, *tested])
    return ChosenSets(named, tested, places, cfg.DATASETS.USE_UNLABEL, cfg.DATASETS.VALIDATION)


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
    sets = make_sets(cfg)
    data, files, no_test_reason = sets.load(train, test)
    source = files
    if cfg.DATASETS.PACKED:
        source = _packed(cfg.DATASETS.PACKED, files, data, cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST)
    mean, std = list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD)
    channels = None
    if train and cfg.DATASETS.CHANNEL_SHUFFLE:
        data, channels = with_shuffled_channels(data, cfg.SOLVER.SEED)
    loaders = DataLoaders(sets, data, normalize=Normalize(mean, std), no_test_reason=no_test_reason)
    if train:
        loaders.sampler = make_sampler(cfg, data.train, rank, world_size)
        loaders.train = _train_loader(source, data.train, cfg.INPUT.SIZE_TRAIN, loaders.sampler,
                                      cfg.DATALOADER.NUM_WORKERS, sets.places.skip)
        loaders.augment = TrainAugment(mean, std, make_recipe(cfg), cfg.SOLVER.SEED, channels)
    name_of = names_of_results(data.eval_sets)
    for domain, pair in data.eval_sets.items():
        samples = [*pair.query, *pair.gallery]
        batches = SequentialBatches(len(samples), cfg.TEST.IMS_PER_BATCH, rank, world_size)
        loader = open_loader(source, samples, cfg.INPUT.SIZE_TEST, batches, cfg.DATALOADER.NUM_WORKERS)
        names = [name_of(domain, sample.key) for sample in samples]
        loaders.test[domain] = TestLoader(loader, batches, samples, len(pair.query), pair.has_truth, names,
                                          _drops_same_camera(cfg.TEST.DROP_SAME_CAMERA, domain, pair),
                                          _same_files(files, pair))
    _warn_of_trained_on(files, data)
    return loaders


def make_unlabelled_loader(cfg, unlabelled: Unlabelled, rank: int = 0, world_size: int = 1) -> TestLoader:
    """All unlabelled images in a single walk, as a test loader gives them."""
    samples = unlabelled.samples
    batches = SequentialBatches(len(samples), cfg.TEST.IMS_PER_BATCH, rank, world_size)
    loader = open_loader(unlabelled.source(), samples, cfg.INPUT.SIZE_TEST, batches, cfg.DATALOADER.NUM_WORKERS)
    return TestLoader(loader, batches, samples, unlabelled.num_query, has_truth=False,
                      names=[sample.key for sample in samples], drop_same_camera=False)


def make_sampler(cfg, train: list[Sample], rank: int = 0, world_size: int = 1) -> EpochBatchSampler:
    """The training sampler: P x K batches with a triplet loss, else each image once an epoch."""
    batch, seed = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.SEED
    if "triplet" not in cfg.DATALOADER.SAMPLER:
        return ShuffledBatchSampler(len(train), batch, seed, rank, world_size)
    sets, shares = None, None
    if cfg.DATALOADER.BALANCE_SETS:
        sets = [sample.set_name for sample in train]
        pairs = [text.rsplit(":", 1) for text in cfg.DATALOADER.SET_SHARES]
        shares = {name: Fraction(share) for name, share in pairs} or None
    return IdentityBatchSampler(_pids(train), batch, cfg.DATALOADER.NUM_INSTANCE, seed, rank, world_size, sets, shares)


def make_recipe(cfg) -> Recipe:
    """What is done to a training image."""
    return Recipe(
        flip=cfg.INPUT.PROB, padding=cfg.INPUT.PADDING, erase=cfg.INPUT.RE_PROB, hard=cfg.DATASETS.HARD_AUG,
        patch=cfg.INPUT.RANDOM_PATCH_PROB, auto_augment=cfg.INPUT.AUTOAUG_PROB, augmix=cfg.INPUT.AUGMIX_PROB,
        gray_patch=cfg.INPUT.GRAYSCALE_PATCH_PROB, gray=cfg.INPUT.GRAYSCALE_PROB,
    )


# ------------------------------------------------------------------ helpers
def _train_loader(source: ImageSource, train: list[Sample], size: Sequence[int], sampler: EpochBatchSampler,
                  workers: int, skip: bool) -> ImageLoader:
    """Training batches; skip: other images stand in for bad ones."""
    make = partial(ReplacingLoader, pids=_pids(train), seed=sampler.seed) if skip else ImageLoader
    return open_loader(source, train, size, sampler, workers, make)


def _pids(samples: list[Sample]) -> np.ndarray:
    return np.array([sample.pid for sample in samples])


def _drops_same_camera(choice: bool | str, name: str, pair: QueryGallery) -> bool:
    """TEST.DROP_SAME_CAMERA, of which "auto" is the evaluation's protocol; without cameras nothing is dropped."""
    if choice == "auto":
        return pair.drop_same_camera
    known = any(sample.camid != UNKNOWN_CAMID for sample in (*pair.query, *pair.gallery))
    if choice and pair.has_truth and not known:
        logger.warning("%s: TEST.DROP_SAME_CAMERA is not followed, its cameras are unknown", name)
    return choice and known


def _same_files(files: FileSource, pair: QueryGallery) -> np.ndarray:
    """[n, 2] the queries and gallery images that are one file; none without truth, since nothing is measured."""
    sides = (pair.query, pair.gallery) if pair.has_truth else ((), ())
    return pair_up(*(identify(files, (sample.key for sample in side)) for side in sides))


def _warn_of_trained_on(files: FileSource, data: ReIDData) -> None:
    """Count the pictures that are measured on though a model is trained on them."""
    tested = {sample.key for pair in data.eval_sets.values() if pair.has_truth
              for sample in (*pair.query, *pair.gallery)}
    if not data.train or not tested:
        return
    trained = set(identify(files, (sample.key for sample in data.train)))
    both = [key for key, identity in zip(tested, identify(files, tested), strict=True) if identity in trained]
    if both:
        logger.warning("%d of %d query and gallery pictures stand in training, too: their figures will be too good: %s",
                       len(both), len(tested), format_names(both))


def _packed(folder: str, files: FileSource, data: ReIDData, size_train: Sequence[int],
            size_test: Sequence[int]) -> ImageSource:
    """The pack that stands for the files; pseudo-labels change, and their images stay files."""
    sizes = {"INPUT.SIZE_TRAIN": size_train} if data.train else {}
    sizes |= {"INPUT.SIZE_TEST": size_test} if data.eval_sets else {}
    packed = open_packed(folder, files, packed_keys(data), sizes)
    if isinstance(files, MountedSource) and PSEUDO.mount in files.sources:
        return MountedSource({PSEUDO.mount: files.sources[PSEUDO.mount], "": packed})
    return packed


def packed_keys(data: ReIDData) -> list[str]:
    """The images that a pack holds: all but the pseudo-labelled ones."""
    return [key for key in data.keys() if not key.startswith(f"{PSEUDO.mount}/")]  # noqa: SIM118 - no mapping
