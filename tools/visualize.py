"""A run's ranked lists as a page: python tools/visualize.py --run OUTPUT_DIR [--compare RUN] [--maps N] [--scatter]

A run is the OUTPUT_DIR of tools/test.py, or the folder where tools/ensemble.py (or run.sh) wrote its answer. Writes
OUTPUT_DIR/ranks/index.html, which a browser opens from the disk: every query with what was ranked for it, and charts.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import add_ranking_arguments, make_compute, make_parser
from utils.logger import run_tool, setup_logger


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a tested model or an ensemble")
    parser.add_argument("--top", type=int, default=10, help="gallery pictures of a query (default 10)")
    parser.add_argument("--limit", type=int, default=2000,
                        help="queries listed, half of them the worst (default 2000; 0: all); figures are of all")
    parser.add_argument("--compare", type=Path, metavar="DIR", help="another run, whose lists stand beside")
    parser.add_argument("--maps", type=int, default=0, metavar="N",
                        help="activation maps of the N worst and the N best queries")
    parser.add_argument("--model", type=Path, metavar="FILE",
                        help="the checkpoint or model folder for --maps; default: the tested one; an ensemble needs it")
    parser.add_argument("--scatter", action="store_true", help="the features in two dimensions (t-SNE)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="DATASETS.ROOT_DIR, if the pictures were moved")
    add_ranking_arguments(parser)
    args = parser.parse_args()
    from processor.visualize import PageOptions, make_rank_page  # torch takes seconds to import
    from utils.dist import ALONE

    if not args.run.is_dir():
        raise NotADirectoryError(f"--run {args.run} is not a folder")
    options = {name: getattr(args, name) for name in ("top", "limit", "compare", "maps", "model", "scatter", "data")}
    setup_logger()
    print(f"wrote {make_rank_page(args.run, PageOptions(**options), make_compute(args, ALONE))}")


if __name__ == "__main__":
    run_tool(main)
