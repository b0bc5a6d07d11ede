"""Combine tested models: python tools/ensemble.py --inputs DIR DIR ... [--weights W W ...] --output submission.json

Sums the (re-ranked) distances of several models, block by block, from their feature banks or saved distmats, and
writes the submission and, beside it, metrics.json if the truth is known. Under torchrun the processes share the
work: torchrun --nproc_per_node 2 tools/ensemble.py ...
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import add_ranking_arguments, make_compute, make_parser, open_tool
from utils.logger import run_tool


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--inputs", nargs="+", type=Path, required=True, metavar="DIR",
                        help="OUTPUT_DIRs of tools/test.py")
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="a number a folder; default: equal")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the submission JSON to write")
    parser.add_argument("--mode", choices=("sum", "concat"), default="sum",
                        help="sum distances (default), or concatenate the normalised features and rank once")
    parser.add_argument("--top_k", type=int, help="length of a query's list; default: as the models were tested")
    parser.add_argument("--distmats", action="store_true", help="read saved distmats even beside a feature bank")
    add_ranking_arguments(parser)
    args = parser.parse_args()
    from processor.evaluation.ensemble import ensemble  # torch takes seconds to import

    with open_tool(args.output.parent, "ensemble_log.txt") as workers:
        ensemble(args.inputs, args.weights, args.output, args.mode, args.top_k, args.distmats,
                 make_compute(args, workers))
        if workers.is_main:
            print(f"wrote {args.output}")


if __name__ == "__main__":
    run_tool(main)
