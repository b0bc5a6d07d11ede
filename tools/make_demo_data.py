"""Render the demo set, `OUTPUT/MyDataSet`, in NAIC's on-disk format. No download, no GPU.

    python tools/make_demo_data.py --output output/demo_data --seed 0
    python tools/make_demo_data.py --output output/demo_data --picture output/people.png
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.demo.plan import Sizes
from datasets.demo.synthetic import make_demo_data, sample_sheet
from tools.arguments import make_parser
from utils.logger import run_tool, setup_logger


def parse_args() -> argparse.Namespace:
    """The command line; every field of `Sizes` is an option."""
    parser = make_parser(__doc__)
    parser.add_argument("--output", required=True, help="folder to make MyDataSet/ in")
    parser.add_argument("--seed", type=int, default=0, help="which demo set; the files are a function of it")
    parser.add_argument("--workers", type=int, help="processes that render (default: one a core, four at most)")
    parser.add_argument("--force", action="store_true", help="replace another demo set that stands there")
    parser.add_argument("--picture", metavar="FILE", help="also write a PNG contact sheet of a few test persons")
    for size in fields(Sizes):
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=int, default=size.default,
                            metavar="N", help=f"see datasets.demo.plan.Sizes (default {size.default})")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    setup_logger()
    sizes = Sizes(**{size.name: getattr(args, size.name) for size in fields(Sizes)})
    folder = make_demo_data(args.output, args.seed, sizes, args.workers, args.force)
    if args.picture:
        sample_sheet(args.picture, args.seed, sizes)
    print(folder)


if __name__ == "__main__":
    run_tool(main)
