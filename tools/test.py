"""Test a checkpoint: python tools/test.py --config_file FILE.yml TEST.WEIGHT FILE.pth [KEY VALUE ...]

Leaves submission.json, metrics.json (where the truth is known) and the features in OUTPUT_DIR. Under torchrun the
processes share the images and the ranking.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import load_cfg
from utils.logger import run_tool, setup_logger


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default=None, help="YAML file; without it the defaults")
    parser.add_argument("--save-distmat", action="store_true",
                        help="also write distmat_{1,2}.npy, query_path_{1,2}.npy and gallery_path_{1,2}.npy")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs that override the file")
    args = parser.parse_intermixed_args()
    cfg = load_cfg(args.config_file, args.opts)
    from processor.inference import do_inference  # torch takes seconds to import: not before the config is right
    from utils.dist import worker_group

    setup_logger(cfg.OUTPUT_DIR, "test_log.txt").debug("config:\n%s", cfg)
    with worker_group() as workers:
        do_inference(cfg, args.save_distmat, workers)
        if workers.is_main:
            print(f"wrote {Path(cfg.OUTPUT_DIR) / 'submission.json'}")


if __name__ == "__main__":
    run_tool(main)
