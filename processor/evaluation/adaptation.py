"""Batch norms that take their statistics from the pictures that are tested on; no label is read."""
from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from datasets.batches import SequentialBatches, open_loader
from datasets.make_dataloader import TestLoader
from datasets.transforms import Normalize
from model.make_model import ReIDModel
from utils.precision import Precision

logger = logging.getLogger(__name__)


@torch.no_grad()
def adapt_batch_norms(model: ReIDModel, test: TestLoader, normalize: Normalize, precision: Precision) -> int:
    """Let the running statistics be the mean over the batches of `test`; returns how many layers have such.

    Source: Li et al., Adaptive Batch Normalization for practical domain adaptation, Pattern Recognition 2018.
    """
    norms = [module for module in model.eval().modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for batch in test.loader if norms else ():
        if len(batch.pids) > 1:  # a single value has no variance
            images = normalize(batch.images.to(precision.device))
            with precision.autocast():
                model(images, **model.sides(batch.camids, batch.viewids))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    return len(norms)


def split_by_camera(test: TestLoader, batch_size: int) -> list[tuple[np.ndarray, TestLoader]]:
    """(rows of its pictures in `test`, a walk over them) of each camera."""
    images = test.loader.dataset
    parts = []
    for camid in np.unique(test.camids):
        rows = np.flatnonzero(test.camids == camid)
        samples, batches = [test.samples[row] for row in rows], SequentialBatches(len(rows), batch_size)
        loader = open_loader(images.source, samples, images.size, batches, 0)
        parts.append((rows, replace(test, loader=loader, batches=batches, samples=samples, same_file=test.same_file[:0],
                                    num_query=0, names=[test.names[row] for row in rows])))
    return parts
