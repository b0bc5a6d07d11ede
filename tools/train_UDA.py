"""Label unlabelled pictures with a trained model, then train on them and on the training sets together.

    python tools/train_UDA.py --config_file TRAIN.yml --config_file_test TEST.yml \\
        --data_dir_query DIR --data_dir_gallery DIR [KEY VALUE ...]

TEST.yml is the model that labels (TEST.WEIGHT), TRAIN.yml the recipe that is trained, with the rules in its section
UDA. Given again after it was interrupted, the command goes on where it stopped. Under torchrun the processes extract
and train together.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import load_cfg
from tools.arguments import add_unlabelled_arguments, make_config_parser, open_tool, parse_config
from utils.logger import run_tool


def main() -> None:
    parser = make_config_parser(__doc__, "YAML file of the recipe; without it the defaults")
    parser.add_argument("--config_file_test", default=None,
                        help="YAML file of the model that labels first; without it that of the recipe")
    add_unlabelled_arguments(parser)
    args, cfg = parse_config(parser)
    cfg_test = load_cfg(args.config_file_test or args.config_file, args.opts)
    from processor.uda import do_uda  # torch takes seconds to import: not before the configs are right

    with open_tool(cfg.OUTPUT_DIR, "train_UDA_log.txt", config=cfg, config_of_the_labeller=cfg_test) as workers:
        last = do_uda(cfg, cfg_test, args.data_dir_query, args.data_dir_gallery, workers)
        if workers.is_main:
            print(f"wrote {last}")


if __name__ == "__main__":
    run_tool(main)
