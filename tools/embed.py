"""Turn pictures, or the boxes of tracks, into rows of length 1, with nothing but a model's file.

    python tools/embed.py --model output/r18_96/latest.pth --images FOLDER|LIST.txt|FILE.csv --output DIR
    python tools/embed.py --model DIR --boxes tracks.txt --frames FOLDER|VIDEO --output DIR [--tracklets]

DIR gets feats.npy (float32 [N, D], in the order of names.txt), names.txt, info.json (model_id) and, of a CSV or of
boxes, rows.csv. A run that was stopped goes on when it is called again; under torchrun the processes share the work.
docs/deploy.md tells about the formats.
"""
import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_parser, open_tool
from utils.logger import run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="FILE",
                        help="a checkpoint of tools/train.py, a folder of tools/export.py, or an .onnx or .xml in it")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of all that is written")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=Path, metavar="PLACE", help="a folder, with all below it; a text file with a "
                      "path a line; a CSV with a column `path`; paths are relative to the file's folder, or absolute")
    what.add_argument("--boxes", type=Path, metavar="FILE",
                      help="lines `frame, id, x, y, w, h, conf` (MOTChallenge): a row each")
    parser.add_argument("--skip-bad", action="store_true",
                        help="a picture that cannot be used has a row of NaN and a line in problems.txt")
    parser.add_argument("--restart", action="store_true", help="begin anew, and replace rows that are there")
    parser.add_argument("--raw", action="store_true",
                        help="feats.BRANCH.npy: each branch before normalisation, as tools/test.py keeps it")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: the model's TEST.IMS_PER_BATCH")
    parser.add_argument("--threads", type=int, metavar="N", help="that decode (default: one a core)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
                        help="auto: bfloat16 on a CPU that has it, float16 on CUDA, else float32")
    boxes = parser.add_argument_group("with --boxes")
    boxes.add_argument("--frames", type=Path, metavar="PLACE", help="a folder of pictures, or a video")
    boxes.add_argument("--tracklets", action="store_true", help="a row an id: the mean of its boxes', of length 1")
    boxes.add_argument("--save-crops", type=Path, metavar="DIR",
                       help="write the crops as ID/FRAME_ID.jpg: a set to train on, DATASETS.NAMES tree:DIR")
    boxes.add_argument("--zero-based", action="store_true",
                       help="x and y count from 0, as many trackers write them (MOTChallenge: from 1)")
    boxes.add_argument("--min-conf", type=float, default=-math.inf, metavar="X", help="leave out boxes of less conf")
    args = parser.parse_args()
    if args.boxes and not args.frames:
        parser.error("--boxes needs --frames, the pictures that they are boxes of")
    if args.images and (args.frames or args.tracklets or args.save_crops):
        parser.error("--frames, --tracklets and --save-crops go with --boxes")
    if any(number is not None and number < 1 for number in (args.batch_size, args.threads)):
        parser.error("--batch-size and --threads are at least 1")
    return args


def main() -> None:
    args = parse_args()
    from processor.embed_files import Boxes, Request, embed_boxes_of, embed_pictures  # torch takes seconds to import
    from processor.embedder import Embedder
    from utils.precision import select_device

    with open_tool(None, "embed_log.txt") as workers:
        device = workers.device(select_device(args.device, "0"))
        embedder = Embedder.load(args.model, device, args.precision, args.batch_size, args.threads)
        request = Request(args.output, args.raw, args.skip_bad, args.restart, workers)
        if args.boxes:
            boxes = Boxes(args.boxes, args.frames, args.tracklets, args.save_crops, int(not args.zero_based),
                          args.min_conf)
            written = embed_boxes_of(embedder, boxes, request)
        else:
            written = embed_pictures(embedder, args.images, request)
        if workers.is_main:
            print(written)


if __name__ == "__main__":
    run_tool(main)
