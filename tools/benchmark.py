"""Measure speed and memory: python tools/benchmark.py retrieval [--large] [--json FILE]

Prints a table as GitHub markdown: re-ranking of this repository beside a dense baseline, each run in a fresh process.
docs/benchmarks.md explains the columns.
"""
import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.files import write_json
from utils.logger import run_tool, setup_logger


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("retrieval",))
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N",
                        help="images of query and gallery together (default: 5000 10000 20000 50000)")
    parser.add_argument("--large", action="store_true", help="also 100000, on CUDA 1000000 too")
    parser.add_argument("--dim", type=int, default=2048, help="length of a feature (default 2048)")
    parser.add_argument("--k1", type=int, default=20)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--lambda", type=float, default=0.3, dest="lambda_value", metavar="LAMBDA")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts; from "
                        "50000 images on one (default 3)")
    parser.add_argument("--implementations", nargs="+", metavar="NAME",
                        help="only these of: top200_float32 top200_auto full_rows dense none tiles")
    parser.add_argument("--square", type=int, default=4096, metavar="N",
                        help="edge of the large product whose rate is measured (default 4096)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the raw figures, of every run")
    return parser.parse_args()


def main() -> None:
    args = vars(parse_args())
    from processor.benchmarks.report import to_markdown  # torch takes seconds to import
    from processor.benchmarks.retrieval import benchmark_retrieval, make_plan

    setup_logger()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by a batch system: clean up as at Ctrl-C
    del args["what"]
    json_file = args.pop("json")
    report = benchmark_retrieval(make_plan(**args))
    if json_file:
        write_json(json_file, report)
    print(to_markdown(report))
    sys.exit(any(row["note"].startswith("failed") for row in report["rows"]))


if __name__ == "__main__":
    run_tool(main)
