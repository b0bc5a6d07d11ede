"""Every model on every test set, a table of mAP and Rank-1 with 95 % intervals.

    python tools/cross_domain.py --models imported output/r50/latest.pth --data market1501 msmt17 \\
        DATASETS.ROOT_DIR data [--adapt-bn set|camera]

A model is a model folder or a checkpoint; the network and its pictures are those that it tells of. With --adapt-bn the
statistics of its batch norms are taken from the test set's pictures, without their labels, or from each camera's.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs.defaults import RULES
from tools.arguments import make_parser
from utils.logger import run_tool, setup_logger


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", type=Path, required=True, metavar="DIR",
                        help="model folders or checkpoints")
    parser.add_argument("--data", nargs="+", required=True, metavar="SET",
                        help="test sets, as DATASETS.TEST_NAMES; KEY VALUE pairs may follow")
    parser.add_argument("--adapt-bn", nargs="?", const="set", default="none", choices=("none", "set", "camera"),
                        help="whose pictures give the batch norms' statistics: none (training's), set, camera")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs for all, such as DATASETS.ROOT_DIR data")
    args = parser.parse_intermixed_args()
    first = next((i for i, word in enumerate(args.data) if word in RULES), len(args.data))  # no set has a key's name
    from processor.cross_domain import format_cross, measure  # torch takes seconds: not before the arguments are right

    setup_logger()
    print(format_cross(measure(args.models, args.data[:first], [*args.data[first:], *args.opts], args.adapt_bn)))


if __name__ == "__main__":
    run_tool(main)
