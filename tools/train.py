"""Train a model: python tools/train.py --config_file configs/naic/r101_ibn_b_192.yml [KEY VALUE ...]

Several GPUs: MODEL.DEVICE_ID 0,1 (one process), or torchrun --nproc_per_node 2 tools/train.py ... (one each, faster).
MODEL.PRETRAIN_PATH may be a model folder (tools/export.py, tools/import_weights.py): what no file sets of the network
and its pictures is then the folder's.
SIGTERM, Ctrl-C and a closed terminal (SIGHUP) write a checkpoint and end with exit code 75; the same command with
--resume goes on to the bit.
"""
import itertools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import dump_cfg, load_cfg, load_cfg_with_origins
from configs.defaults import RULES
from tools.arguments import make_config_parser, open_tool, with_model_folder
from utils.logger import run_tool


def name_resumed_file(words: list[str]) -> list[str]:
    """The command line with `--resume FILE`, the old spelling, as `--resume-from FILE`.

    The words that follow --resume up to the next option are KEY VALUE pairs; an odd count of them begins with a file.
    """
    words = [word.replace("--resume=", "--resume-from=", 1) if word.startswith("--resume=") else word for word in words]
    place = words.index("--resume") if "--resume" in words else len(words)
    following = list(itertools.takewhile(lambda word: not word.startswith("--"), words[place + 1:]))
    if len(following) % 2 and following[0] not in RULES:  # load_cfg refuses a key without a value
        words[place] = "--resume-from"
    return words


def main() -> None:
    parser = make_config_parser(__doc__)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUTPUT_DIR")
    parser.add_argument("--resume-from", metavar="FILE", help="go on from this checkpoint")
    parser.add_argument("--force", action="store_true",
                        help="train anew though OUTPUT_DIR holds checkpoints: it is moved aside to OUTPUT_DIR.1")
    parser.add_argument("--dry-run", action="store_true",
                        help="build everything, run a step and an evaluation batch, print the plan, write nothing")
    parser.add_argument("--print-config", action="store_true",
                        help="print the merged config as YAML, with the file that each value is from, and stop")
    parser.add_argument("--list-models", action="store_true",
                        help="print the backbones of MODEL.NAME and re-ID weights that others published, and stop")
    args = parser.parse_intermixed_args(name_resumed_file(sys.argv[1:]))
    if args.list_models:
        from model.published.checkpoints import format_checkpoints
        from model.zoo import format_zoo

        print(f"{format_zoo()}\n\n{format_checkpoints()}")
        return
    if args.print_config:
        sys.stdout.reconfigure(encoding="utf-8")  # as load_cfg reads it
        print(dump_cfg(*load_cfg_with_origins(args.config_file, args.opts)), end="")
        return
    cfg = with_model_folder(load_cfg(args.config_file, args.opts), args, "MODEL.PRETRAIN_PATH")
    if args.force and (args.resume or args.resume_from):
        parser.error("--force trains anew and --resume goes on; give one of them")
    resume = args.resume_from or ("auto" if args.resume else "none")
    from processor.trainer import do_train, dry_run, prepare_folder  # torch takes seconds to import

    if not args.dry_run and os.environ.get("RANK", "0") == "0":
        prepare_folder(cfg, resume, args.force)
    with open_tool(None if args.dry_run else cfg.OUTPUT_DIR, "train_log.txt", config=cfg) as workers:
        if not args.dry_run:
            do_train(cfg, resume, workers)
            return
        plan = dry_run(cfg, workers, resume)
        if workers.is_main:
            print(plan)
            try:
                prepare_folder(cfg, "auto" if args.force else resume)
            except FileExistsError as error:
                print(f"\na training would stop: {error}")


if __name__ == "__main__":
    run_tool(main)
