"""Make a model folder of a checkpoint, with files for other programs that prove themselves.

    python tools/export.py --weight output/r18_96/latest.pth --output exported
    python tools/export.py --weight FILE --output DIR --format onnx openvino torch --verify DATA_ROOT
    python tools/export.py --weight FILE --output DIR --format onnx --precision int8 --calibration FOLDER

Always written: model.safetensors, model.json and card.md. Each file of --format is compared with torch on the same
pictures, with --verify by its mAP, too; one that differs too much is not kept, and the exit code is 1.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_parser
from utils.logger import run_tool, setup_logger


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--weight", type=Path, required=True, metavar="FILE",
                        help="a checkpoint of tools/train.py, or a model folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model folder")
    parser.add_argument("--format", nargs="+", default=[], choices=("onnx", "openvino", "torch"),
                        help="files for onnxruntime, OpenVINO, and torch without this program; default: none")
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=("float32", "float16", "int8"),
                        help="of these files (default: float32); int8 needs --calibration or --verify")
    parser.add_argument("--calibration", type=Path, metavar="FOLDER",
                        help="pictures for the ranges of int8, and for the proof; default: of the set of --verify")
    parser.add_argument("--verify", default="", metavar="DATA_ROOT|CONFIG",
                        help="rank by torch and by each file: the folder of the sets that the model was trained on, or "
                             "a YAML file; KEY VALUE pairs change it")
    parser.add_argument("--max-drop", type=float, metavar="X",
                        help="points of mAP that a file may lose with --verify; default: float16 0.1, int8 1.0")
    parser.add_argument("--force", action="store_true", help="replace another model that is in DIR")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs for the config of --verify")
    args = parser.parse_intermixed_args()
    from processor.export_model import Request, export_model  # torch takes seconds: not before the arguments are right

    setup_logger()
    faults = export_model(Request(args.weight, args.output, args.format, args.precision, args.calibration, args.verify,
                                  args.opts, args.max_drop, args.force))
    print("\n".join([*faults, f"{args.output / 'card.md'} says what is there and how to call it"]))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    run_tool(main)
