"""Is run B better than run A, or is it noise? python tools/compare.py RUN_A RUN_B [--kind plain|re_ranked]

A run is a folder with per_query.json: the OUTPUT_DIR of tools/test.py, or where tools/ensemble.py wrote its answer.
Both must have ranked the same queries. Prints each metric of both, the 95 % interval of the difference, and p.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_parser
from utils.logger import run_tool


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="folder with per_query.json")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="the folder to compare it with")
    parser.add_argument("--kind", metavar="KIND",
                        help="plain or re_ranked (an ensemble may have others); default: the last that both have")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and the permutations (default 0)")
    args = parser.parse_args()
    from processor.evaluation.comparison import compare_runs, format_comparison

    print(format_comparison(compare_runs(args.run_a, args.run_b, args.kind, args.seed)))


if __name__ == "__main__":
    run_tool(main)
