"""Make a model folder of a weight file that others published.

    python tools/import_weights.py market_bot_R50.pth --output imported
    python tools/import_weights.py FILE --as fastreid_bot --output DIR [KEY VALUE ...]
    python tools/import_weights.py FILE --output DIR --rank DATASETS.NAMES market1501 DATASETS.ROOT_DIR data

The layout is recognised by the file's keys. Every weight is loaded, or named with the reason why it is not needed;
anything else is an error. The folder is for tools/test.py, embed.py, export.py and train.py, and for `Embedder`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_parser
from tools.split_domains import split_if_missing
from utils.logger import run_tool, setup_logger


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a .pth, .tar or .safetensors file")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model folder")
    parser.add_argument("--as", dest="layout", default="", metavar="NAME",
                        help="the layout, if it is not recognised; a wrong NAME lists them")
    parser.add_argument("--views", type=int, default=0, metavar="N",
                        help="views of each camera, where the file's embeddings are of camera and view: it does not "
                             "tell how many")
    parser.add_argument("--force", action="store_true", help="replace another model that is in DIR")
    parser.add_argument("--rank", nargs="+", metavar="KEY VALUE",
                        help="test the model on this set, and write what it ranked as DIR/run/ranks/index.html")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs over what follows from the layout, such as "
                                                "INPUT.SIZE_TEST \"[384, 128]\"")
    args = parser.parse_intermixed_args()
    # torch takes seconds: not before the arguments are right
    from processor.import_weights import import_weights, rank_cfg, rank_page

    setup_logger()
    lines = import_weights(args.file, args.output, args.layout, args.opts, args.force, args.views)
    print("\n".join([*lines, f"wrote {args.output}"]))
    if args.rank:
        cfg = rank_cfg(args.output, args.rank)
        split_if_missing(cfg)
        print(f"wrote {rank_page(cfg)}")


if __name__ == "__main__":
    run_tool(main)
