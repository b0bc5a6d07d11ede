"""Arguments that several tools have."""
from __future__ import annotations

import argparse


def add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    """--precision, --memory (MiB) and --device: how distances are computed; none of them changes a result."""
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "tf32", "bf16"),
                        help="of the candidate search of re-ranking; the result is the same (default: auto)")
    parser.add_argument("--memory", type=int, default=0, metavar="MIB",
                        help="memory for re-ranking above the features; default: four fifths of what is free")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")


def add_unlabelled_arguments(parser: argparse.ArgumentParser) -> None:
    """--data_dir_query and --data_dir_gallery: the pictures that get pseudo-labels."""
    parser.add_argument("--data_dir_query", action="append", default=[], metavar="DIR",
                        help="folder of query images; may be left out where UDA.METHOD clusters, or given again")
    parser.add_argument("--data_dir_gallery", action="append", default=[], metavar="DIR",
                        help="folder of the other images; may be given again. Default of both: query/ and gallery/ of "
                             "DATASETS.TEST_DIR")
