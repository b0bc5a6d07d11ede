"""A trained model from its file alone: a checkpoint, whose config is in it, or a model folder."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from configs import change_cfg, flatten_cfg, load_cfg, load_cfg_text
from configs.defaults import get_cfg_defaults
from datasets.transforms import Normalize
from model.embedding import EmbeddingNet
from model.make_backbone import network_name, setting_keys
from model.make_model import ReIDModel, make_model
from model.pretrained import MODEL_HEADS, load_weights
from processor.evaluation.feature_bank import Ranking
from processor.export.model_folder import (
    INFO,
    RESIZING,
    WEIGHTS,
    ModelInfo,
    feature_weights,
    read_info,
    read_weights,
    with_model_id,
)
from utils.checkpoint import identity_names, read_checkpoint

# The keys that say what the network is. All others are of training, of data, or of how it is run.
ARCHITECTURE = (
    "MODEL.NAME", "MODEL.LAST_STRIDE", "MODEL.NECK", "MODEL.POOLING_METHOD", "MODEL.GEM_P", "MODEL.GEM_LEARN_P",
    "MODEL.IF_USE_PCB", "MODEL.MERGE_PCB_FEAT", "MODEL.PCB_GATE", "MODEL.PCB_RPP", "TEST.NECK_FEAT", "TEST.USE_LOCAL",
    "TEST.PCB_GLOBAL_FEAT_ENSEMBLE", "TEST.USE_PCB_MERGE_FEAT", "TEST.PCB_PART_FEAT",
)


# Those that are named where they are not the default: most are of TransReID's descendants.
IF_CHANGED = ("MODEL.EMBED_DIM", "MODEL.TRANSFORMER_TYPE", "MODEL.STEM_CONV", "MODEL.PRETRAIN_HW_RATIO",
              "MODEL.POOLING", "MODEL.GEM_POOLING", "MODEL.FEAT_FUSION")


class TrainedModel(NamedTuple):
    """model: on the CPU, in eval mode. info: what it is, and what its pictures are. pid_names: the identities of its
    classifiers in class order; () if these are random."""

    model: ReIDModel
    info: ModelInfo
    pid_names: tuple[str, ...] = ()

    def network(self, kind: type[EmbeddingNet] = EmbeddingNet) -> EmbeddingNet:
        """Pictures in, rows out."""
        steps = self.info.preprocessing
        return kind(self.model, Normalize(steps["mean"], steps["std"]), steps["flip"], self.info.weights)


def open_trained(file: str | Path, heads: bool = False) -> TrainedModel:
    """A model from a checkpoint of tools/train.py or a folder of tools/export.py; nothing else is needed.

    Args:
        heads: with the classifiers, if the file has them and names their identities; else they are random.
    Raises:
        FileNotFoundError: there is no such file, or the folder is no model folder.
        ValueError: the file is damaged, or has no config in it and therefore does not say what model it is of.
    """
    path = Path(file)
    if path.name == WEIGHTS and (path.parent / INFO).is_file():
        path = path.parent
    if path.is_dir():
        info = read_info(path)
        model = _build(info)
        load_weights(model, read_weights(path, info), path, skip=MODEL_HEADS)
        return TrainedModel(model.eval(), info)
    checkpoint = read_checkpoint(path)
    cfg = _cfg_inside(checkpoint, path)
    pid_names = identity_names(checkpoint, path) if heads else ()
    model = make_model(cfg, num_class=len(pid_names) or 1, pretrained=False)
    # A model may have been trained with a branch that a test leaves out.
    load_weights(model, checkpoint, path, skip=() if pid_names else MODEL_HEADS,
                 allow_unexpected=("pcb.local.*", "pcb.classifiers.local.*"))
    return TrainedModel(model.eval(), describe_model(cfg, model, _origin(cfg, checkpoint, path)), pid_names)


def cfg_of_weights(file: Path, cfg: CfgNode) -> CfgNode:
    """The config that a checkpoint was trained with; for a model folder, `cfg` with its network and pictures.

    Raises:
        As `open_trained`.
    """
    if file.is_dir():
        return change_cfg(cfg, folder_settings(read_info(file)))
    return _cfg_inside(read_checkpoint(file), file)


def _cfg_inside(checkpoint: Mapping[str, Any], path: Path) -> CfgNode:
    if not isinstance(checkpoint.get("config"), str):
        raise ValueError(f"{path}: holds weights without the config that they were trained with, so that neither the "
                         "network nor its pictures are known; name a checkpoint that tools/train.py wrote, or the "
                         "folder that tools/import_weights.py makes of a file that others published")
    return load_cfg_text(checkpoint["config"], str(path))


def folder_settings(info: ModelInfo) -> dict[str, Any]:
    """{config key: value} of what model.json says of the network and its pictures."""
    steps = info.preprocessing
    return {"INPUT.SIZE_TRAIN": steps["size"], **info.architecture, "INPUT.SIZE_TEST": steps["size"],
            "INPUT.PIXEL_MEAN": steps["mean"], "INPUT.PIXEL_STD": steps["std"], "TEST.FLIP_FEATS": steps["flip"]}


def describe_model(cfg, model: ReIDModel, trained_on: dict[str, Any]) -> ModelInfo:
    """What is known of a configured model with its weights."""
    values, defaults = flatten_cfg(cfg), flatten_cfg(get_cfg_defaults())
    named = [*ARCHITECTURE, *setting_keys(network_name(cfg)).values(),
             *(key for key in IF_CHANGED if values[key] != defaults[key])]
    weights = Ranking(cfg.TEST.FEAT_NORM, cfg.TEST.DISTANCE, None, cfg.TEST.LOCAL_WEIGHT).branch_weights(
        model.embedding_dims)
    info = ModelInfo(
        model_id="", architecture={key: values[key] for key in named},
        preprocessing={"size": list(cfg.INPUT.SIZE_TEST), "color": "RGB", "mean": list(cfg.INPUT.PIXEL_MEAN),
                       "std": list(cfg.INPUT.PIXEL_STD), "flip": cfg.TEST.FLIP_FEATS, "resizing": RESIZING},
        branches={name: {"dim": dim, "weight": weights[name]} for name, dim in model.embedding_dims.items()},
        evaluation={"mixed_precision": cfg.SOLVER.FP16, "dtype": cfg.SOLVER.AMP_DTYPE,
                    "batch_size": cfg.TEST.IMS_PER_BATCH, "channels_last": cfg.MODEL.CHANNELS_LAST},
        trained_on=trained_on,
    )
    return with_model_id(info, feature_weights(model))


def _origin(cfg, checkpoint: dict, path: Path) -> dict[str, Any]:
    versions, epoch = checkpoint.get("versions"), checkpoint.get("epoch")
    return {"sets": cfg.DATASETS.NAMES, "identities": len(identity_names(checkpoint, path)),
            "epoch": epoch if isinstance(epoch, int) else None, "checkpoint": path.name,
            "commit": str(versions.get("commit", "unknown")) if isinstance(versions, dict) else "unknown"}


def _build(info: ModelInfo) -> ReIDModel:
    """The network that model.json describes, its weights random."""
    options = [word for key, value in info.architecture.items() for word in (key, value)]
    return make_model(load_cfg(None, [*options, "MODEL.PRETRAIN_CHOICE", "none"]), num_class=1, pretrained=False)
