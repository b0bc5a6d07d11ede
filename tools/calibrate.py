"""Thresholds of a model: python tools/calibrate.py --run OUTPUT_DIR --model DIR [--fpr 1e-3 ...]

Writes into DIR/model.json, from the features that tools/test.py left in OUTPUT_DIR, the cosine from which on two
pictures are taken for the same person at a false positive rate, and the probability that they are.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_parser
from utils.logger import run_tool, setup_logger


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="OUTPUT_DIR", help="of tools/test.py")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of tools/export.py")
    parser.add_argument("--fpr", type=float, action="append", default=[], metavar="RATE",
                        help="share of different persons' pairs to accept, between 0 and 1; may be given again "
                             "(default: 1e-2, 1e-3 and 1e-4, as far as there are enough pairs)")
    args = parser.parse_args()
    if not all(0 < rate < 1 for rate in args.fpr):
        parser.error("--fpr: a rate lies between 0 and 1")
    from processor.evaluation.calibrate import calibrate, format_thresholds

    setup_logger(None, "")
    print(format_thresholds(calibrate(args.run, args.model, args.fpr)))


if __name__ == "__main__":
    run_tool(main)
