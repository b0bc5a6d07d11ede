"""Split a NAIC test set into its green and normal pictures: writes the four domain lists.

    python tools/split_domains.py --data_dir_query ../data/MyDataSet/image_B_v1_1/query \\
        --data_dir_gallery ../data/MyDataSet/image_B_v1_1/gallery --save_dir output/derived

An image whose B, G and R means are all above 65 is green, any other normal.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.sets.domains import split_domains
from tools.arguments import make_parser
from utils.logger import run_tool, setup_logger


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir_query", required=True, metavar="DIR", help="folder with the query images")
    parser.add_argument("--data_dir_gallery", required=True, metavar="DIR", help="folder with the gallery images")
    parser.add_argument("--save_dir", required=True, metavar="DIR",
                        help="folder for query_green.txt, query_normal.txt, gallery_green.txt, gallery_normal.txt")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="processes that decode (default: one a core, eight at most)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    setup_logger()
    counts = split_domains(args.data_dir_query, args.data_dir_gallery, args.save_dir, args.workers)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()), "->", Path(args.save_dir))


if __name__ == "__main__":
    run_tool(main)
