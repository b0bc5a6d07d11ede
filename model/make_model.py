"""The re-ID model: backbone, pooling, neck and classifier, from the config."""
from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from model.backbones import BACKBONES, WEIGHTS_URLS, Backbone, build_backbone, freeze_stages
from model.classifiers import CLASSIFIERS
from model.heads import BNNeck, HeadOutput
from model.pooling import POOLINGS
from model.pretrained import BACKBONE_HEADS, MODEL_HEADS, load_pretrained

GLOBAL = "global"


class ReIDModel(nn.Module):
    """Images to embeddings and, in training, to logits. state_dict keys: base.*, gap.p, bottleneck.*, classifier.*.

    Args:
        base: the backbone.
        gap: pooling [B, D, h, w] -> [B, D].
        bottleneck: the neck between the metric feature and the classifier; None = none.
        classifier: (feat, pids) -> (logits, plain logits).
        neck_feat: where an embedding is taken, "before" or "after" the neck. Without a neck it is the same.
    """

    def __init__(
        self, base: Backbone, gap: nn.Module, bottleneck: BNNeck | None, classifier: nn.Module, neck_feat: str
    ):
        super().__init__()
        self.base, self.gap, self.bottleneck, self.classifier = base, gap, bottleneck, classifier
        self.neck_feat = neck_feat

    @property
    def feat_dims(self) -> dict[str, int]:
        """Width D of each branch's feature."""
        return {GLOBAL: self.base.feat_dim}

    def forward(self, images: Tensor, pids: Tensor | None = None) -> dict[str, HeadOutput] | dict[str, Tensor]:
        """Training outputs where identities are given, else embeddings; each by branch.

        Args:
            images: [B, 3, H, W] float, normalised.
            pids: [B] int64 class indices, 0 <= pid < K; None at inference.
        Returns:
            {branch: HeadOutput} with pids, {branch: float32 [B, D]} without.
        """
        feat = self.gap(self.base(images))  # [B, D] float32
        if pids is None and (self.bottleneck is None or self.neck_feat == "before"):
            return {GLOBAL: feat}
        # Once per forward: its running statistics must move once per step.
        necked = feat if self.bottleneck is None else self.bottleneck(feat)
        if pids is None:
            return {GLOBAL: necked}
        logits, plain_logits = self.classifier(necked, pids)
        return {GLOBAL: HeadOutput(logits, plain_logits, feat)}


def make_model(cfg, num_class: int, pretrained: bool = True) -> ReIDModel:
    """The model of cfg.MODEL, on the CPU, with the weights that MODEL.PRETRAIN_CHOICE asks for.

    Args:
        num_class: K, identities in training; at inference any number will do.
        pretrained: False ignores MODEL.PRETRAIN_*, as for a model whose weights come from a checkpoint anyway.
    Raises:
        ValueError: a name is unknown, or the weights do not fit.
        FileNotFoundError: MODEL.PRETRAIN_PATH is empty or not there; says where to get the file.
    """
    _check_names(cfg)
    path = _pretrained_path(cfg) if pretrained else None
    base = build_backbone(cfg.MODEL.NAME, cfg.MODEL.LAST_STRIDE)
    model = ReIDModel(
        base,
        gap=POOLINGS[cfg.MODEL.POOLING_METHOD](cfg.MODEL.GEM_P, cfg.MODEL.GEM_LEARN_P),
        bottleneck=BNNeck(base.feat_dim) if cfg.MODEL.NECK == "bnneck" else None,
        classifier=CLASSIFIERS[cfg.MODEL.ID_LOSS_TYPE](
            base.feat_dim, num_class, cfg.SOLVER.COSINE_SCALE, cfg.SOLVER.COSINE_MARGIN
        ),
        neck_feat=cfg.TEST.NECK_FEAT,
    )
    if path is not None and cfg.MODEL.PRETRAIN_CHOICE == "imagenet":
        load_pretrained(model.base, path, skip=BACKBONE_HEADS)
    elif path is not None:
        # A model whose exponent was fixed has no gap.p: learning it starts from GEM_P.
        load_pretrained(model, path, skip=MODEL_HEADS, allow_missing=("gap.p",))
    freeze_stages(model.base, cfg.MODEL.FROZEN)
    if "softmax" not in cfg.DATALOADER.SAMPLER:
        # Without an ID loss nothing would reach these weights; DDP waits for the gradient of all that ask for one.
        for unused in (model.bottleneck, model.classifier):
            if unused is not None:
                unused.requires_grad_(False)
    return model


def _check_names(cfg) -> None:
    """Fail on an unknown name before anything slow starts."""
    tables = {
        ("MODEL", "POOLING_METHOD"): POOLINGS,
        ("MODEL", "ID_LOSS_TYPE"): CLASSIFIERS,
        ("MODEL", "NECK"): ("bnneck", "no"),
        ("MODEL", "PRETRAIN_CHOICE"): ("imagenet", "self", "finetune", "none"),
        ("TEST", "NECK_FEAT"): ("before", "after"),
    }
    for (node, key), choices in tables.items():
        if cfg[node][key] not in choices:
            raise ValueError(f"{node}.{key}={cfg[node][key]!r} is unknown; choices: {', '.join(choices)}")


def _pretrained_path(cfg) -> Path | None:
    """The file to start from; None where PRETRAIN_CHOICE is none or the backbone's name is not known."""
    name, choice, path = cfg.MODEL.NAME, cfg.MODEL.PRETRAIN_CHOICE, cfg.MODEL.PRETRAIN_PATH
    if choice == "none" or name not in BACKBONES:
        return None
    if path and Path(path).is_file():
        return Path(path)
    if choice != "imagenet":
        advice = "name a checkpoint of a whole model there"
    elif name in WEIGHTS_URLS:
        place = f"save them as {path}" if path else "name the file there"
        advice = f"get the ImageNet weights of {name} from {WEIGHTS_URLS[name]} and {place}"
    else:
        advice = f"there are no published ImageNet weights of {name}"
    raise FileNotFoundError(
        f"MODEL.PRETRAIN_PATH={path!r} {'is not a file' if path else 'is empty'}, but MODEL.PRETRAIN_CHOICE is "
        f"{choice}: {advice}. MODEL.PRETRAIN_CHOICE none starts from random weights"
    )
