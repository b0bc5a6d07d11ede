"""Pack the images of a data set into a few large files: python tools/pack.py --config_file FILE.yml --output DIR

A run with DATASETS.PACKED DIR reads them from there: the same batches, without opening a file for each image, and with
--decoded without decoding any. The lists are still read from the data folder, in which nothing is written. Stopped, it
goes on where it was when called again.

    python tools/pack.py --config_file configs/naic/r101_ibn_b_128.yml --output ../packed/naic [--decoded]
    python tools/pack.py --output ../packed/naic --verify
    python tools/pack.py --config_file configs/naic/r101_ibn_b_128.yml --output ../packed/naic --compare
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_config_parser, parse_config
from utils.logger import run_tool, setup_logger


def main() -> None:
    parser = make_config_parser(__doc__, "YAML file that names the set; without it the defaults")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the pack")
    parser.add_argument("--decoded", action="store_true",
                        help="decode at INPUT.SIZE_TRAIN, 3 bytes a pixel; default: the files as they are")
    parser.add_argument("--part", choices=("train", "test"),
                        help="only these images (default: both, as far as there is a test folder)")
    parser.add_argument("--threads", type=int, metavar="N", help="that read and decode (default: one a core)")
    parser.add_argument("--force", action="store_true", help="replace another pack that stands there")
    parser.add_argument("--verify", action="store_true", help="only check the checksum of every image of the pack")
    parser.add_argument("--compare", action="store_true", help="only check that every image is as its file gives it")
    args, cfg = parse_config(parser)
    from processor.prepare import PARTS, pack_set, verify_pack  # torch takes seconds: not before the config is right

    setup_logger()
    if args.verify or args.compare:
        packed = verify_pack(args.output, cfg if args.compare else None, args.threads)
        print(f"{args.output}: {packed.describe()}: all as they were packed")
        return
    packed = pack_set(cfg, args.output, args.decoded, [args.part] if args.part else PARTS, args.threads, args.force)
    print(f"{args.output}: {packed.describe()}; use it with DATASETS.PACKED {args.output}")


if __name__ == "__main__":
    run_tool(main)
