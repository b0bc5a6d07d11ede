"""What tools do alike: their arguments, the config, the log, and the processes of torchrun."""
from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from configs import flatten_cfg, load_cfg, load_cfg_with_origins
from utils.logger import setup_logger

if TYPE_CHECKING:  # torch takes seconds to import: not before the arguments are right
    from processor.evaluation.sources import Compute
    from utils.dist import Workers

_HEADS = ("MODEL.NECK", "MODEL.IF_USE_PCB", "MODEL.EMBED_DIM")  # what stands behind a backbone


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring as it stands."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def make_config_parser(doc: str, config_file: str = "YAML file; without it the defaults") -> argparse.ArgumentParser:
    """A parser with --config_file, whose help is `config_file`, and KEY VALUE pairs; for `parse_config`."""
    parser = make_parser(doc)
    add_config_arguments(parser, config_file)
    return parser


def add_config_arguments(parser: argparse.ArgumentParser, config_file: str) -> None:
    """The arguments of `make_config_parser`."""
    parser.add_argument("--config_file", default=None, metavar="FILE", help=config_file)
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs that override what files set")


def parse_config(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, CfgNode]:
    """The command line, and the config that it asks for."""
    args = parser.parse_intermixed_args()
    return args, load_cfg(args.config_file, args.opts)


def with_model_folder(cfg: CfgNode, args: argparse.Namespace, key: str) -> CfgNode:
    """The config, with the network and the pictures of the model folder where `key` names such a folder.

    For a test (TEST.WEIGHT) these count more than the YAML file; a training (MODEL.PRETRAIN_PATH) takes those that the
    file does not set, and of the folder's network the backbone alone if MODEL.PRETRAIN_CHOICE is imagenet. The command
    line counts most.
    """
    folder = Path(flatten_cfg(cfg)[key] or "-")
    if not folder.is_dir():
        return cfg
    from processor.trained_model import folder_settings, read_info

    settings, training = folder_settings(read_info(folder)), key == "MODEL.PRETRAIN_PATH"
    if training and cfg.MODEL.PRETRAIN_CHOICE == "imagenet":
        settings = {name: value for name, value in settings.items()
                    if not name.startswith("TEST.") and name not in _HEADS}
    set_by_file = load_cfg_with_origins(args.config_file)[1] if training else {}
    words = [word for name, value in settings.items() if name not in set_by_file for word in (name, value)]
    return load_cfg(args.config_file, [*words, *args.opts])


@contextlib.contextmanager
def open_tool(output_dir: str | Path | None, log_name: str, **configs: CfgNode) -> Iterator[Workers]:
    """Log to the terminal and, unless `output_dir` is None, to a file there, the configs first; join the processes.

    Yields the processes under torchrun, or this one alone; they wait for each other as the configs say.
    """
    from utils.dist import SILENCE, worker_group

    logger = setup_logger(output_dir, log_name)
    for name, cfg in configs.items():
        logger.debug("%s:\n%s", name, cfg)
    with worker_group(min([cfg.SOLVER.DIST_TIMEOUT for cfg in configs.values()], default=SILENCE)) as workers:
        yield workers


def add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    """--precision, --memory (MiB) and --device: how distances are computed; none of them changes a result."""
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "tf32", "bf16"),
                        help="of the candidate search of re-ranking; the result is the same (default: auto)")
    parser.add_argument("--memory", type=int, default=0, metavar="MIB",
                        help="memory for re-ranking above the features; default: four fifths of what is free")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")


def make_compute(args: argparse.Namespace, workers: Workers) -> Compute:
    """How to rank, from the arguments of `add_ranking_arguments`."""
    from processor.evaluation.sources import Compute
    from utils.precision import select_device

    device = workers.device(select_device(args.device, "0"))
    return Compute(args.precision, args.memory * 2**20 or None, device, workers)


def add_unlabelled_arguments(parser: argparse.ArgumentParser) -> None:
    """--data_dir_query and --data_dir_gallery: the pictures that get pseudo-labels."""
    parser.add_argument("--data_dir_query", action="append", default=[], metavar="DIR",
                        help="folder of query images; may be left out if UDA.METHOD clusters, or given again")
    parser.add_argument("--data_dir_gallery", action="append", default=[], metavar="DIR",
                        help="folder of the other images; may be given again. Default of both: query/ and gallery/ of "
                             "DATASETS.TEST_DIR")
