"""A training run and how it is built from the config: everything before the first step."""
from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs import flatten_cfg, load_cfg_text
from configs.checks import batch_problem
from datasets.bases import UNKNOWN_CAMID, Sample, statistics
from datasets.make_dataloader import DataLoaders, make_dataloader
from loss.make_loss import make_loss
from model.backbones import Sides
from model.identities import transfer_identities
from model.make_model import ReIDModel, check_model, make_model, place_model
from model.prompts import order_texts
from processor.evaluation.truth import truths_of, warn_of_obstacles
from processor.training.checkpoints import CheckpointFolder
from processor.training.teacher import Teacher, open_teacher
from solver.ema import WeightAverage
from solver.make_optimizer import make_optimizer, make_scheduler
from utils.checkpoint import read_checkpoint
from utils.dist import ALONE, Replicas, Workers
from utils.files import as_file_name
from utils.meter import MeanMeter
from utils.packages import weight_file
from utils.precision import Precision, make_precision, select_devices
from utils.running_statistics import RunningStatistics
from utils.seed import choose_algorithms, seed_everything

logger = logging.getLogger(__name__)


@dataclass
class Training:
    """A training run: what is trained, by what, on what, and how far it is. `build` makes it, `close` ends it.

    Attributes:
        cfg: the config that it was built from.
        model: the network itself, whose weights are saved and tested.
        net: what a training step calls: the model, wrapped if there are several devices or processes.
        optimizers: the model's, and the class centres' if there are any.
        data_digest: of the training list; a run goes on with the same list only.
        teacher: what is learned from beside the data, if there is one (SOLVER.DISTILL_FROM); no part of the model.
        average: the moving average of the weights, if there is one (SOLVER.EMA_DECAY).
        meter: means of the loss, its terms and the accuracy over the epoch so far.
        skipped: [2] int64 on the device: steps skipped in a row, and in all.
        images: the last batch, augmented; the next batch takes its place in memory.
        best: the best evaluation so far: {"epoch", "metric", "on", "value"}, {} before the first.
    """

    cfg: Any
    loaders: DataLoaders
    model: ReIDModel
    criterion: nn.Module
    optimizers: list[torch.optim.Optimizer]
    scheduler: Any
    precision: Precision
    devices: list[torch.device]
    workers: Workers
    data_digest: str
    average: WeightAverage | None = None
    teacher: Teacher | None = None
    net: nn.Module | None = None
    checkpoints: CheckpointFolder = field(init=False)
    statistics: RunningStatistics = field(init=False)
    meter: MeanMeter = field(default_factory=MeanMeter)
    skipped: Tensor = field(init=False)
    images: Tensor | None = None
    best: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.checkpoints = checkpoint_folder(self.cfg)
        self.statistics = RunningStatistics(self.model)
        self.skipped = torch.zeros(2, dtype=torch.int64, device=self.precision.device)
        self.wrap()

    @property
    def batches(self) -> int:
        """Steps an epoch."""
        return len(self.loaders.sampler)

    def wrap(self) -> None:
        """Make `net`; anew when other parameters learn, because DistributedDataParallel looks at them once."""
        self.close()
        if self.workers.size > 1:
            on_cuda = self.precision.device.type == "cuda"
            with self.workers.exchange():  # the wrapper compares the parameters of all processes
                self.net = DistributedDataParallel(self.model, device_ids=self.devices if on_cuda else None,
                                                   gradient_as_bucket_view=True)
        elif len(self.devices) > 1:
            self.net = Replicas(self.model, self.devices, self.precision.autocast)
        else:
            self.net = self.model

    def close(self) -> None:
        """Let go of the process group; to be called before it ends (see `utils.dist.worker_group`).

        The wrapper is emptied, not only dropped, because the frames of an exception may still hold it.
        """
        if isinstance(self.net, DistributedDataParallel):
            vars(self.net).clear()
        self.net = None

    def hold_backbone(self, epoch: int) -> None:
        """MODEL.FREEZE_EPOCHS: the backbone stays as it is in the first epochs."""
        held = epoch <= self.cfg.MODEL.FREEZE_EPOCHS
        if self.model.hold_backbone(held):
            logger.info("Epoch[%d] the backbone %s", epoch, "is held" if held else "learns from now on")
            self.wrap()

    def no_sync(self, waiting: bool) -> contextlib.AbstractContextManager:
        """While micro-batches wait for a later one, the processes do not exchange gradients."""
        if waiting and isinstance(self.net, DistributedDataParallel):
            return self.net.no_sync()
        return contextlib.nullcontext()

    def broadcast_buffers(self) -> None:
        """Give every process the running statistics of the first (also the averaged ones), as checkpoints have them."""
        for buffer in self.model.buffers():
            self.workers.broadcast(buffer, 0)

    def tested_weights(self) -> contextlib.AbstractContextManager:
        """Within: the model has the weights that are to be tested."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()


def checkpoint_folder(cfg) -> CheckpointFolder:
    """The checkpoints of the training that a config describes."""
    return CheckpointFolder(Path(cfg.OUTPUT_DIR), as_file_name(cfg.MODEL.NAME), cfg.SOLVER.MAX_EPOCHS, flatten_cfg(cfg))


def build(cfg, pretrained: bool = True, workers: Workers = ALONE) -> Training:
    """A training run at its beginning; nothing is written.

    Args:
        pretrained: False leaves the weights random, because they will come from a checkpoint.
        workers: the processes that train together.
    Raises:
        ValueError, FileNotFoundError: the config, the data or the weights cannot be used; names and files first.
    """
    devices = _devices(cfg, workers)
    precision = make_precision(devices[0], cfg.SOLVER.FP16, cfg.SOLVER.AMP_BACKEND, cfg.SOLVER.AMP_DTYPE, training=True)
    check_model(cfg, pretrained)
    _check_parallel(cfg, devices, workers)
    teacher = open_teacher(cfg.SOLVER.DISTILL_FROM, devices[0].type) if cfg.SOLVER.DISTILL_FROM else None
    loaders = make_dataloader(cfg, test=cfg.SOLVER.EVAL_PERIOD > 0, rank=workers.rank, world_size=workers.size)
    logger.info("training data:\n%s", statistics(loaders.data))
    if cfg.SOLVER.EVAL_PERIOD:
        choose_evaluations(loaders)
    seed_everything(cfg.SOLVER.SEED)
    choose_algorithms(cfg.SOLVER.DETERMINISTIC)
    model, criterion = _model_and_criterion(cfg, loaders, devices[0], pretrained)
    _check_frozen(cfg, model)
    if teacher is not None:
        teacher.compare_classes(loaders.data.pid_names, cfg.DATASETS.NAMES, "softmax" in cfg.DATALOADER.SAMPLER)
        teacher.place(devices[0], cfg.MODEL.CHANNELS_LAST, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
        model.classifier.plain_gradient = teacher.gives_logits
    optimizers = [optimizer for optimizer in make_optimizer(cfg, model, criterion) if optimizer is not None]
    precision.prepare(model, optimizers)
    average = WeightAverage(model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY else None
    return Training(cfg, loaders, model, criterion, optimizers, make_scheduler(cfg, optimizers[0]), precision, devices,
                    workers, digest_of_list(loaders.data.train), average, teacher)


def digest_of_list(samples: list[Sample]) -> str:
    """SHA-256 of a training list; without views it is what it was before samples had them."""
    named = [f"Sample(key={key!r}, pid={pid!r}, camid={camid!r}{f', viewid={viewid!r}' if viewid else ''})"
             for key, pid, camid, viewid in samples]
    return hashlib.sha256(f"[{', '.join(named)}]".encode()).hexdigest()


def choose_evaluations(loaders: DataLoaders) -> None:
    """Leave out what cannot be measured on, and say what is measured on; known from the lists alone."""
    truths, everything = truths_of(loaders.test), loaders.measured_on
    obstacles = warn_of_obstacles(truths)
    loaders.test = {domain: loaders.test[domain] for domain in truths if domain not in obstacles}
    if not loaders.test:
        why = "; ".join(f"{domain}: {obstacle}" for domain, obstacle in obstacles.items())
        loaders.no_test_reason = loaders.no_test_reason or why or f"{everything} has no ground truth"
        logger.info("no evaluation during training%s", "" if why else f": {loaders.no_test_reason}")
        return
    logger.info("evaluation during training measures on %s", loaders.measured_on)
    if not loaders.on_validation:
        logger.info("no best.pth is kept: an epoch is chosen by a validation split (DATASETS.VALIDATION), never by a "
                    "test set")


def _devices(cfg, workers: Workers) -> list[torch.device]:
    if workers.size == 1:
        return select_devices(cfg.MODEL.DEVICE, cfg.MODEL.DEVICE_ID)
    return [torch.device(workers.device(select_devices(cfg.MODEL.DEVICE, "0")[0]))]


def _check_parallel(cfg, devices: list[torch.device], workers: Workers) -> None:
    """What several devices or processes cannot do."""
    if cfg.MODEL.SYNC_BN and (devices[0].type != "cuda" or workers.size == 1):
        raise ValueError(
            "MODEL.SYNC_BN=True: torch's synchronised batch norm works over the CUDA devices of several processes; "
            f"here is {workers.size} process on {devices[0].type}. Start with torchrun on CUDA devices, or use False")
    if len(devices) > 1 and cfg.MODEL.COMPILE:
        raise ValueError(f"MODEL.COMPILE=True with MODEL.DEVICE_ID={cfg.MODEL.DEVICE_ID}: nn.DataParallel cannot copy "
                         f"a compiled model; start one process a device: torchrun --nproc_per_node {len(devices)}")
    problem = batch_problem(flatten_cfg(cfg), workers.size)
    if problem:
        raise ValueError(problem)


def _check_frozen(cfg, model: ReIDModel) -> None:
    """While the backbone is held, something else must learn."""
    others = [name for name, parameter in model.named_parameters()
              if parameter.requires_grad and not name.startswith("base.")]
    if cfg.MODEL.FREEZE_EPOCHS and not others:
        raise ValueError(f"MODEL.FREEZE_EPOCHS={cfg.MODEL.FREEZE_EPOCHS}: nothing but the backbone learns here "
                         f"(DATALOADER.SAMPLER={cfg.DATALOADER.SAMPLER}, MODEL.TRAIN_ONLY={cfg.MODEL.TRAIN_ONLY}), so "
                         "nothing would in these epochs; use 0")


def _model_and_criterion(cfg, loaders: DataLoaders, device: torch.device,
                         pretrained: bool) -> tuple[ReIDModel, nn.Module]:
    classes = loaders.data.num_classes
    train = loaders.data.train
    sides = Sides(tuple(sorted({sample.camid for sample in train} - {UNKNOWN_CAMID})),
                  tuple(sorted({sample.viewid for sample in train})))
    model = make_model(cfg, classes, pretrained, sides)
    criterion = make_loss(cfg, classes, model.feat_dims, _text_feats(cfg, model, loaders))
    if cfg.MODEL.PRETRAIN_CHOICE == "finetune" and pretrained:
        path = weight_file(cfg.MODEL.PRETRAIN_PATH)
        checkpoint = read_checkpoint(path)
        transfer_identities({"model": model, "criterion": criterion}, checkpoint, loaders.data.pid_names, path)
        if model.base.uses_sides and _sets_of(checkpoint) != cfg.DATASETS.NAMES:
            model.base.sie.go_to_other_set()
    if cfg.MODEL.SYNC_BN:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    place_model(cfg, model, device)
    return model, criterion.to(device)


def _text_feats(cfg, model: ReIDModel, loaders: DataLoaders) -> Tensor | None:
    """[K, D] of the texts of MODEL.PROMPTS in the order of the classes; None without."""
    path = cfg.MODEL.PROMPTS
    if not path:
        return None
    texts = order_texts(read_checkpoint(path), loaders.data.pid_names, path)
    if model.base.text_dim != texts.shape[1]:
        raise ValueError(f"MODEL.PROMPTS={path}: its texts have {texts.shape[1]} numbers, and the images of "
                         f"{cfg.MODEL.NAME} have {model.base.text_dim or 'none'} for them; use CLIP's image encoder "
                         "that they were learned with")
    return texts


def _sets_of(checkpoint: dict) -> str:
    """DATASETS.NAMES of the training that a checkpoint is of; "" if it does not say."""
    text = checkpoint.get("config")
    return load_cfg_text(text).DATASETS.NAMES if isinstance(text, str) else ""


def describe_run(run: Training) -> str:
    """One line: what is trained on what, in which precision."""
    cfg, parameters = run.cfg, sum(parameter.numel() for parameter in run.model.parameters())
    several = f"{run.workers.size} processes" if run.workers.size > 1 else " + ".join(map(str, run.devices))
    return (f"{cfg.MODEL.NAME} on {several} in {run.precision}: {parameters / 1e6:.1f} M parameters, "
            f"{run.loaders.data.num_classes} identities, {run.batches} batches an epoch, seed {cfg.SOLVER.SEED}")
