"""Check a submission as a competition would: python tools/validate_submission.py submission.json --data DATA_ROOT

    python tools/validate_submission.py submission.json --config_file FILE.yml [KEY VALUE ...]

With a config it is checked against the sets, or the validation split, that the config tests on.

Every query once, with enough different names of gallery images. Prints a line, and the score if the test folder has
ground truth, and exits with 0; or prints what is wrong and exits with 1; 2: the arguments cannot be used.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import load_cfg
from datasets.naic import TEST_DIR
from tools.arguments import add_config_arguments, make_parser
from utils.logger import run_tool, setup_logger

if TYPE_CHECKING:  # torch takes seconds to import: not before the arguments are right
    from processor.evaluation.submission_check import SubmissionReport

TOP_K = 200  # of the competition


def check(args: argparse.Namespace) -> SubmissionReport:
    """The report on the file that the arguments name."""
    from processor.evaluation.submission_check import validate_ranking, validate_submission

    if not args.config_file and not args.opts:
        return validate_submission(args.file, args.data, args.test_dir or TEST_DIR, args.top_k or TOP_K, args.derived)
    root = [] if args.data is None else ["DATASETS.ROOT_DIR", str(args.data)]
    cfg = load_cfg(args.config_file, [*args.opts, *root])
    from datasets.make_dataloader import make_sets  # torch takes seconds to import

    sets, top_k = make_sets(cfg), args.top_k or cfg.TEST.TOP_K
    places = replace(sets.places, test_dir=args.test_dir or sets.places.test_dir,
                     derived_dir=args.derived or sets.places.derived_dir)
    if [reference.kind for reference in sets.tested] == ["naic"] and not sets.validation:
        return validate_submission(args.file, places.root_of("naic"), places.test_dir, top_k,
                                   args.derived or cfg.DATASETS.DERIVED_DIR or None)
    return validate_ranking(args.file, replace(sets, places=places), top_k)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the submission JSON")
    add_config_arguments(parser, "YAML file that names what was tested on")
    parser.add_argument("--data", type=Path, metavar="DATA_ROOT",
                        help="the folder that holds MyDataSet/, or MyDataSet itself, or the sets of a config: its "
                             "DATASETS.ROOT_DIR")
    parser.add_argument("--test_dir", help=f"the test folder's name in MyDataSet/ ({TEST_DIR})")
    parser.add_argument("--top_k", type=int, help=f"length of a query's list ({TOP_K}; with a config its TEST.TOP_K)")
    parser.add_argument("--derived", type=Path, metavar="DIR",
                        help="folder of the domain lists; default: `derived` beside FILE or beside its folder")
    args = parser.parse_intermixed_args()
    if args.data is None and not args.config_file and "DATASETS.ROOT_DIR" not in args.opts:
        parser.error("name the data: --data DATA_ROOT, --config_file FILE or DATASETS.ROOT_DIR DATA_ROOT")
    setup_logger()
    report = check(args)
    sys.stdout.reconfigure(errors="backslashreplace")  # names may hold what the terminal cannot show
    print("\n".join(report.lines()))
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    run_tool(main)
