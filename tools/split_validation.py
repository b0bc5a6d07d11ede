"""Cut a validation split, with its truth, from the training sets of a config: nothing is copied, one JSON records it.

    python tools/split_validation.py --config_file configs/naic/r101_ibn_b_192.yml --output output/validation.json \\
        --identities 1000 --distractors 1000 --green 0.5 [KEY VALUE ...]

Train, test and tune with DATASETS.VALIDATION output/validation.json: the identities are left out of training, and
evaluation measures on them. A file that is there already is kept: it is the same for everyone who measures with it.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_config_parser, parse_config
from utils.logger import run_tool, setup_logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to cut, and where to write it."""
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the JSON file to write")
    parser.add_argument("--identities", type=int, default=1000, metavar="N", help="with queries (%(default)s)")
    parser.add_argument("--distractors", type=int, default=1000, metavar="N",
                        help="identities that stand in the gallery only (%(default)s)")
    parser.add_argument("--green", metavar="SHARE",
                        help="share of both that are green, the rest normal; none: no domains, and no image is read "
                        "(default: 0.5 if naic is among the sets, else none)")
    parser.add_argument("--queries", type=int, default=1, metavar="N", help="of an identity, at most (%(default)s)")
    parser.add_argument("--no-compare", action="store_true",
                        help="do not read every image first to find identities that share a picture (a person under "
                        "two names, as in NAIC's sets)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (%(default)s)")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="processes that decode (default: one a core, eight at most)")
    parser.add_argument("--force", action="store_true", help="replace FILE")


def main() -> None:
    parser = make_config_parser(__doc__, "YAML file whose DATASETS are cut; without it the defaults")
    add_arguments(parser)
    args, cfg = parse_config(parser)
    from datasets.validation.cut import SplitRequest  # not before the arguments are right
    from processor.prepare import green_share, make_validation

    setup_logger()
    if args.output.exists() and not args.force:
        raise FileExistsError(f"{args.output} is there already; --force replaces it, and what was measured with it "
                              "cannot be compared with any more")
    request = SplitRequest(args.identities, args.distractors, green_share(args.green, cfg), args.queries, args.seed,
                           not args.no_compare)
    print(make_validation(cfg, request, args.output, args.workers), f"-> {args.output}", sep="\n")


if __name__ == "__main__":
    run_tool(main)
