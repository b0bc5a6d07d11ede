"""Train a model: python tools/train.py --config_file configs/naic/r101_ibn_b_192.yml [KEY VALUE ...]

Several GPUs: MODEL.DEVICE_ID 0,1 (one process), or torchrun --nproc_per_node 2 tools/train.py ... (one each, faster).
SIGTERM and Ctrl-C write a checkpoint and end with exit code 75; the same command with --resume goes on to the bit.
"""
import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import load_cfg
from utils.logger import run_tool, setup_logger


def _auto_resume(words: list[str]) -> list[str]:
    """--resume KEY VALUE: the word after it is a key of the config, not a checkpoint's name."""
    keys = [bool(re.fullmatch(r"[A-Z_]+(\.[A-Z0-9_]+)?", word)) for word in [*words[1:], ""]]
    return ["--resume=auto" if word == "--resume" and key else word for word, key in zip(words, keys, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default=None, help="YAML file; without it the defaults")
    parser.add_argument("--resume", nargs="?", const="auto", default="none", metavar="CHECKPOINT",
                        help="go on from this checkpoint, or without a name from OUTPUT_DIR's newest")
    parser.add_argument("--dry-run", action="store_true",
                        help="build everything, run a step and an evaluation batch, print the plan, write nothing")
    parser.add_argument("--list-models", action="store_true", help="print the backbones of MODEL.NAME, and stop")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs that override the file")
    args = parser.parse_intermixed_args(_auto_resume(sys.argv[1:]))
    if args.list_models:
        from model.zoo import format_zoo

        print(format_zoo())
        return
    cfg = load_cfg(args.config_file, args.opts)
    from processor.trainer import do_train
    from processor.training.dry_run import dry_run  # torch takes seconds to import: not before the config is right
    from utils.dist import worker_group

    setup_logger(None if args.dry_run else cfg.OUTPUT_DIR, "train_log.txt").debug("config:\n%s", cfg)
    with worker_group() as workers:
        if not args.dry_run:
            do_train(cfg, args.resume, workers)
            return
        plan = dry_run(cfg, workers)
        if workers.is_main:
            print(plan)


if __name__ == "__main__":
    run_tool(main)
