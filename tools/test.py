"""Test a checkpoint: python tools/test.py --config_file FILE.yml TEST.WEIGHT FILE.pth [KEY VALUE ...]

TEST.WEIGHT may be a model folder (tools/export.py, tools/import_weights.py): the network and the size and statistics of
its pictures are then the folder's, whatever FILE.yml says.

Leaves submission.json, metrics.json (if the truth is known) and the features in OUTPUT_DIR. Under torchrun the
processes share the images and the ranking.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_config_parser, open_tool, parse_config, with_model_folder
from utils.logger import run_tool


def main() -> None:
    parser = make_config_parser(__doc__)
    parser.add_argument("--save-distmat", action="store_true",
                        help="also write distmat_{1,2}.npy, query_path_{1,2}.npy and gallery_path_{1,2}.npy")
    args, cfg = parse_config(parser)
    cfg = with_model_folder(cfg, args, "TEST.WEIGHT")
    from processor.inference import do_inference  # torch takes seconds to import: not before the config is right

    with open_tool(cfg.OUTPUT_DIR, "test_log.txt", config=cfg) as workers:
        do_inference(cfg, args.save_distmat, workers)
        if workers.is_main:
            print(f"wrote {Path(cfg.OUTPUT_DIR) / 'submission.json'}")


if __name__ == "__main__":
    run_tool(main)
