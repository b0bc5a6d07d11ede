"""Examine data sets before anything is trained on them.

    python tools/doctor.py --root ../data --output output/doctor
    python tools/doctor.py --root ../data --output output/derived --write-clean-lists --near-duplicates
    python tools/doctor.py --config_file FILE.yml --output output/doctor [KEY VALUE ...]
    python tools/doctor.py --root ../data --output output/doctor DATASETS.NAMES market1501+tree:people

With a config file or KEY VALUE pairs the sets are those that the config trains and tests on (DATASETS), without them
NAIC's that are in MyDataSet/.

Writes doctor.txt, doctor.json and doctor.html (with the pictures side by side) into the output folder: lists and images
that cannot be read, equal pictures within and between the sets, what they say about wrong labels and about people that
have an identity in two sets, queries without a match, and how much there is of what. A run that was stopped goes on;
another run reads what is new or has changed.

--write-clean-lists (of NAIC) also writes new_train_list.txt, new_2019_fs_train_list.txt and
new_2019_cs_train_list.txt, without the images that stand in a set before them (2020_fs, 2020_cs, 2019_fs, 2019_cs) and
without lines that would stop a training, and the lists of those images, cs_2020equal_path.txt, fs_2019equal_path.txt
and cs_2019equal_path.txt. A training finds them in its DATASETS.DERIVED_DIR.

Exit code: 0, nothing stops a training; 1, there are faults that would stop one; 2, the arguments cannot be used.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import load_cfg
from tools.arguments import make_config_parser
from utils.logger import run_tool, setup_logger

if TYPE_CHECKING:
    from datasets.registry import ChosenSets


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = make_config_parser(__doc__, "YAML file whose DATASETS are examined")
    parser.add_argument("--root", type=Path, metavar="DATA_ROOT",
                        help="the folder that holds MyDataSet/, or MyDataSet itself, or the sets of a config: its "
                             "DATASETS.ROOT_DIR; nothing is written there")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of all that is written")
    parser.add_argument("--train-sets", nargs="+", default=(), metavar="SET",
                        help="of 2019_cs 2019_fs 2020_cs 2020_fs (default: those that are there)")
    parser.add_argument("--test-dir", metavar="NAME", help="the test folder's name in MyDataSet/ (image_B_v1_1)")
    parser.add_argument("--derived", type=Path, metavar="FOLDER",
                        help="read the cleaned lists and domain lists that lie there, as DATASETS.DERIVED_DIR does "
                             "(default: with a config, its own)")
    parser.add_argument("--lists-only", action="store_true", help="open no image: seconds")
    parser.add_argument("--near-duplicates", nargs="?", type=int, const=10, metavar="BITS",
                        help="also find nearly equal pictures, by up to BITS different bits of 256 (%(const)s; 0 … 15)")
    parser.add_argument("--write-clean-lists", action="store_true", help="see above")
    parser.add_argument("--equal", default="bytes", choices=("bytes", "pixels"),
                        help="what makes two images equal for the cleaned lists (default: bytes, as the original's)")
    parser.add_argument("--equal-list", nargs="+", type=Path, default=(), metavar="FILE",
                        help="write the cleaned lists of these existing lists of equal paths, matched by file name")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="processes that read images (default: one a core, sixteen at most)")
    args = parser.parse_intermixed_args()
    if args.root is None and not args.config_file and not {"DATASETS.ROOT_DIR", "DATASETS.ROOTS"} & set(args.opts):
        parser.error("name the data: --root DATA_ROOT, --config_file FILE or DATASETS.ROOT_DIR DATA_ROOT")
    return args


def choose_data(args: argparse.Namespace) -> tuple[Path | ChosenSets, int]:
    """The sets that the config names, without one the folder of NAIC's; and the identities that a batch takes."""
    if not args.config_file and not args.opts:
        return args.root, 2
    root = [] if args.root is None else ["DATASETS.ROOT_DIR", str(args.root)]
    cfg = load_cfg(args.config_file, [*args.opts, *root])
    from datasets.make_dataloader import make_sets
    from datasets.naic import TRAIN_SETS

    sets = make_sets(cfg)
    places = replace(sets.places, test_dir=args.test_dir or sets.places.test_dir,
                     train_sets=tuple(args.train_sets or sets.places.train_sets or TRAIN_SETS),
                     derived_dir=args.derived or sets.places.derived_dir)
    in_batch = cfg.SOLVER.IMS_PER_BATCH // cfg.DATALOADER.NUM_INSTANCE if "triplet" in cfg.DATALOADER.SAMPLER else 2
    return replace(sets, places=places), max(2, in_batch) if args.config_file else 2  # a batch that somebody chose


def main() -> None:
    args = parse_args()
    from datasets.naic import TEST_DIR
    from processor.doctor.examine import DoctorOptions, examine
    from processor.doctor.report import summary_lines  # not before the arguments are right

    setup_logger()
    data, least_identities = choose_data(args)
    report = examine(data, args.output, DoctorOptions(
        train_sets=args.train_sets, test_dir=args.test_dir or TEST_DIR, derived_dir=args.derived,
        lists_only=args.lists_only, least_identities=least_identities,
        near_bits=args.near_duplicates, write_clean_lists=args.write_clean_lists, equal_lists=args.equal_list,
        equal_by=args.equal, workers=args.workers))
    sys.stdout.reconfigure(errors="backslashreplace")  # names may hold what the terminal cannot show
    print("\n".join([*summary_lines(report), f"wrote {args.output / 'doctor.html'}, doctor.json and doctor.txt"]))
    sys.exit(1 if report.stops else 0)


if __name__ == "__main__":
    run_tool(main)
