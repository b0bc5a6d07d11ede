"""CLIP-ReID's first stage: a text for each identity, learned with both encoders as they are."""
from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.batches import ImageLoader, SequentialBatches, open_loader
from datasets.make_dataloader import make_sets
from datasets.transforms import Normalize
from loss.prompt_loss import contrastive
from model.make_model import ReIDModel, make_model
from model.prompts import Prompts, read_prompts
from utils.checkpoint import save_checkpoint
from utils.precision import Precision, make_precision, select_device
from utils.progress import progress
from utils.seed import seed_everything

logger = logging.getLogger(__name__)
_WARMUP, _LOWEST = 5, 1e-6  # epochs; the learning rate at the end


def learn_prompts(cfg, weights: str | Path, output: Path, epochs: int = 120, lr: float = 3.5e-4,
                  batch: int = 64) -> float:
    """Learn the texts of the training identities and write them to `output`, for MODEL.PROMPTS.

    The images are embedded once, not augmented, by the image encoder of MODEL.NAME with the weights of
    MODEL.PRETRAIN_PATH.

    Args:
        weights: a file with CLIP's text encoder, see `read_prompts`.
        epochs, lr, batch: as published; Adam, a cosine after a linear warm-up.
    Returns:
        the share of images whose nearest text is their identity's.
    Raises:
        ValueError: the image encoder or the file is none of CLIP's; OSError: a file or a set is missing.
    """
    seed_everything(cfg.SOLVER.SEED)
    device = select_device(cfg.MODEL.DEVICE, cfg.MODEL.DEVICE_ID)
    data, source, _ = make_sets(cfg).load(True, False)
    prompts = read_prompts(weights, data.num_classes).to(device)
    texts_dim = prompts.encoder.text_projection.shape[1]
    model = make_model(cfg, data.num_classes)
    if model.base.text_dim != texts_dim:
        raise ValueError(f"MODEL.NAME={cfg.MODEL.NAME}: its images have {model.base.text_dim or 'no'} numbers among "
                         f"texts, and the texts of {weights} have {texts_dim}; use the image encoder of the same CLIP")
    batches = SequentialBatches(len(data.train), cfg.TEST.IMS_PER_BATCH)
    loader = open_loader(source, data.train, cfg.INPUT.SIZE_TRAIN, batches, cfg.DATALOADER.NUM_WORKERS)
    normalize = Normalize(list(cfg.INPUT.PIXEL_MEAN), list(cfg.INPUT.PIXEL_STD))
    precision = make_precision(device, cfg.SOLVER.FP16, dtype=cfg.SOLVER.AMP_DTYPE)
    feats = _embed(model.to(device).eval(), loader, normalize, precision)[:, -texts_dim:]
    pids = torch.tensor([sample.pid for sample in data.train], device=device)
    share = _optimise(prompts, feats, pids, epochs, lr, batch, cfg.SOLVER.SEED)
    with torch.no_grad():
        text_feats = prompts(torch.arange(data.num_classes, device=device))
    output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(output, {"text_feats": text_feats.cpu(), "cls_ctx": prompts.cls_ctx.detach().cpu(),
                             "pid_names": list(data.pid_names)})
    return share


@torch.no_grad()
def _embed(model: ReIDModel, loader: ImageLoader, normalize: Normalize, precision: Precision) -> Tensor:
    """[N, D] pooled features before the neck, in the loader's order."""
    feats = []
    for batch in progress(loader, "embed", "batch"):
        images = normalize(batch.images.to(precision.device))
        with precision.autocast():
            x, token = model.base.forward_tokens(images, **model.sides(batch.camids, batch.viewids))
        feats.append(model.gap(x, token))
    return torch.cat(feats)


def _optimise(prompts: Prompts, feats: Tensor, pids: Tensor, epochs: int, lr: float, batch: int, seed: int) -> float:
    optimizer = torch.optim.Adam([prompts.cls_ctx], lr, weight_decay=1e-4)
    for epoch in range(epochs):
        warm = min(1.0, (epoch + 1) / _WARMUP)
        falls = (1 + math.cos(math.pi * epoch / epochs)) / 2
        optimizer.param_groups[0]["lr"] = warm * (_LOWEST + (lr - _LOWEST) * falls)
        order = torch.randperm(len(pids), generator=torch.Generator().manual_seed(seed + epoch)).to(pids.device)
        total = 0.0
        for rows in order.split(batch):
            texts, mine = prompts(pids[rows]), pids[rows]
            loss = contrastive(feats[rows], texts, mine, mine) + contrastive(texts, feats[rows], mine, mine)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        logger.info("Epoch[%d] Loss: %.3f", epoch + 1, total / len(pids))
    with torch.no_grad():
        texts = prompts(torch.arange(len(prompts.cls_ctx), device=pids.device))
        return (F.linear(feats, texts).argmax(1) == pids).float().mean().item()
