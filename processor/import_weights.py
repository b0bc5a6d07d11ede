"""From a file that others published to a model folder, strictly: every weight is loaded or accounted for."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from yacs.config import CfgNode

from configs import load_cfg
from model.backbones import PREFIX
from model.backbones.base import Sides
from model.make_model import make_model
from model.pretrained import MODEL_HEADS, load_weights, unwrap_state_dict
from model.published import LAYOUTS, convert, recognise
from processor.export.card import write_card
from processor.export.model_folder import feature_weights, holds_other_model, read_info, write_model_folder
from processor.export_model import remove_exports
from processor.inference import do_inference
from processor.trained_model import describe_model, folder_settings
from processor.visualize import PageOptions, make_rank_page
from utils.checkpoint import read_checkpoint


def import_weights(file: Path, output: Path, layout: str = "", opts: Sequence[str] = (), force: bool = False,
                   views: int = 0) -> list[str]:
    """Write a model folder of a published file.

    Args:
        layout: a key of LAYOUTS; "" = recognised by the file's keys.
        opts: KEY VALUE pairs over the settings that the layout brings. MODEL.NAME timm:NAME reads any network of
            timm's; DATASETS.NAMES says what a model with camera embeddings was trained on: elsewhere its cameras are
            unknown.
        force: replace another model's folder.
        views: of each camera, in a table of embeddings of both, which does not tell; 0 = it is of cameras alone, or of
            what MODEL.SIE_CAMERA and SIE_VIEW say.
    Returns:
        What was recognised, what happened to the file's keys, and the settings: a line each.
    Raises:
        FileNotFoundError, ValueError: before anything is written: the file cannot be read, its layout is unknown or
            cannot be built, a weight is in excess or missing, or the folder has another model in it.
    """
    if layout and layout not in LAYOUTS:
        raise ValueError(f"--as {layout}: no such layout; there are {', '.join(LAYOUTS)}")
    checkpoint = read_checkpoint(file)
    if isinstance(checkpoint.get("config"), str):
        raise ValueError(f"{file}: a checkpoint of tools/train.py; tools/export.py makes its model folder")
    state = unwrap_state_dict(checkpoint, file)
    given = dict(zip(opts[::2], opts[1::2], strict=False))
    published = convert(state, layout or _layout_for(str(given.get("MODEL.NAME", "")), state, file), file)
    sides = _sides_of(published.weights, views, file) if views else None
    if sides:
        published.config.update({"MODEL.SIE_CAMERA": True, "MODEL.SIE_VIEW": True})
    size = published.config.get("INPUT.SIZE_TEST", [256, 128])
    settings = [word for pair in {"INPUT.SIZE_TRAIN": size, **published.config}.items() for word in pair]
    cfg = load_cfg(None, [*settings, *opts, "MODEL.PRETRAIN_CHOICE", "none"])
    if cfg.MODEL.SIE_CAMERA and cfg.MODEL.SIE_VIEW and not views:
        raise ValueError(f"{file}: a table of cameras and views does not tell how many views there are; give --views N")
    model = make_model(cfg, num_class=1, pretrained=False, sides=sides)
    if published.layout.alone:
        weights = {key.removeprefix("base."): value for key, value in published.weights.items()}
        load_weights(model.base, weights, file, skip=())
    else:
        load_weights(model, published.weights, file, skip=MODEL_HEADS)
    now = {key.replace("base.net.", "base.", 1): value for key, value in model.state_dict().items()}
    resized = [f"{key} {list(value.shape)} to {list(now[key].shape)}" for key, value in published.weights.items()
               if key in now and now[key].shape != value.shape]
    origin = {"checkpoint": file.name, "layout": published.layout.title}
    if "DATASETS.NAMES" in given:
        origin["sets"] = cfg.DATASETS.NAMES
    info = describe_model(cfg, model.eval(), origin)
    if holds_other_model(output, info, force):
        remove_exports(output)
    write_model_folder(output, info, feature_weights(model))
    write_card(output)
    return [f"{file}: {published.layout.title}, {cfg.MODEL.NAME}", *published.describe(),
            *([f"resized: {', '.join(resized)}"] if resized else []),
            "settings: " + " ".join(f"{key} {value}" for key, value in
                                    {**published.config, **info.architecture}.items() if key in published.config)]


def _sides_of(weights: dict[str, Tensor], views: int, file: Path) -> Sides:
    """Cameras, from 1, and views, from 0, of a published table whose rows are camera * views + view."""
    table = next((value for key, value in weights.items() if key.endswith(("sie_embed", "cv_embed"))), None)
    if table is None:
        raise ValueError(f"--views {views}: {file} has no embeddings of cameras or views; leave it out")
    if views < 1 or len(table) % views:
        raise ValueError(f"--views {views}: the {len(table)} rows of cameras and views of {file} are no multiple of it")
    return list(range(1, len(table) // views + 1)), list(range(views))


def _layout_for(name: str, state: dict[str, Tensor], file: Path) -> str:
    """The layout that a file is read as for a network, "" = the one that its layout tells of."""
    if name.startswith(PREFIX):
        return "timm"
    layout = recognise(state, file)
    return "solider_of_swin" if layout == "swin" and name.startswith("solider_swin") else layout


def rank_cfg(folder: Path, data: Sequence[str]) -> CfgNode:
    """The config of a test of a model folder, with its results in FOLDER/run.

    Args:
        data: KEY VALUE pairs of the set, such as DATASETS.NAMES and DATASETS.ROOT_DIR.
    """
    words = [word for pair in folder_settings(read_info(folder)).items() for word in pair]
    return load_cfg(None, [*words, "OUTPUT_DIR", str(folder / "run"), *data, "TEST.WEIGHT", str(folder)])


def rank_page(cfg) -> Path:
    """Test, as tools/test.py, and write the page of what was ranked; returns its index.html.

    Raises:
        As `processor.inference.do_inference` and `processor.visualize.make_rank_page`.
    """
    do_inference(cfg)
    return make_rank_page(Path(cfg.OUTPUT_DIR), PageOptions())
