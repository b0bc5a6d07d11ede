"""Search k1, k2, lambda and an ensemble's weights: python tools/tune_rerank.py --inputs DIR [DIR ...]

The DIRs are OUTPUT_DIRs of tools/test.py on the same images, with ground truth: a validation set, not the test set that
is reported on. Prints a table, best first, and the keys to paste. What is measured is kept in tuning.json and
tuning.csv: interrupted, or asked for more, it goes on from there. Under torchrun the processes share the work.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import add_ranking_arguments, make_compute, make_parser, open_tool
from utils.logger import run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--inputs", nargs="+", type=Path, required=True, metavar="DIR",
                        help="OUTPUT_DIRs of tools/test.py; several are an ensemble")
    parser.add_argument("--k1", nargs="+", type=int, default=[10, 20, 30], metavar="N", help="default: 10 20 30")
    parser.add_argument("--k2", nargs="+", type=int, default=[2, 6], metavar="N", help="default: 2 6")
    parser.add_argument("--lambda", nargs="+", type=float, default=[0.1, 0.3, 0.5], dest="lambdas", metavar="L",
                        help="shares of the original distance, 0 to 1; default: 0.1 0.3 0.5")
    parser.add_argument("--weights", nargs="+", default=["auto"], metavar="W",
                        help="auto: search them (default); or one number a DIR")
    parser.add_argument("--metric", default="naic_score", choices=("naic_score", "mAP", "rank1", "mINP"),
                        help="what to tune for (default: naic_score)")
    parser.add_argument("--domain", default="all", metavar="NAME",
                        help="all (default: their figures together), or a domain, such as green or normal")
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="folder for tuning.json and tuning.csv; default: tuning/ in the first input")
    add_ranking_arguments(parser)
    args = parser.parse_args()
    try:
        args.weights = None if args.weights == ["auto"] else [float(word) for word in args.weights]
    except ValueError:
        parser.error(f"--weights {' '.join(args.weights)}: auto, or one number a DIR")
    args.output = args.output or args.inputs[0] / "tuning"
    return args


def main() -> None:
    args = parse_args()
    from processor.evaluation.tuning import Grid, format_tuning, tune  # torch takes seconds to import

    for folder in args.inputs:  # before the log makes the first of them
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist; --inputs takes OUTPUT_DIRs of tools/test.py")
    with open_tool(args.output, "tune_log.txt") as workers:
        tuning = tune(args.inputs, args.output, Grid(args.k1, args.k2, args.lambdas, args.weights), args.metric,
                      args.domain, make_compute(args, workers))
        if workers.is_main:
            print(format_tuning(tuning))


if __name__ == "__main__":
    run_tool(main)
