"""Label unlabelled pictures with a trained model, as a training set for DATASETS.USE_UNLABEL.

    python tools/pseudo_label.py --config_file FILE.yml TEST.WEIGHT FILE.pth MODEL.THRESH 0.3 \\
        --data_dir_query DIR --data_dir_gallery DIR --output output/derived/unlabel

The rules are the keys of the section UDA: by the nearest query, or by clustering (--data_dir_gallery alone will do).
Under torchrun the processes share the extraction of features.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import add_unlabelled_arguments, make_config_parser, open_tool, parse_config
from utils.logger import run_tool


def main() -> None:
    parser = make_config_parser(__doc__, "YAML file of the model; without it the defaults")
    add_unlabelled_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="folder for images/, label.txt, report.json and samples.png; default: unlabel/ in "
                             "DATASETS.DERIVED_DIR")
    parser.add_argument("--copy", action="store_true", help="copy the images; else they are linked if that is possible")
    args, cfg = parse_config(parser)
    from processor.pseudo.report import describe
    from processor.pseudo_label import default_place, pseudo_label, unlabelled_images  # torch takes seconds to import

    place = args.output or default_place(cfg)
    with open_tool(cfg.OUTPUT_DIR, "pseudo_label_log.txt", config=cfg) as workers:
        unlabelled = unlabelled_images(cfg, args.data_dir_query, args.data_dir_gallery)
        report = pseudo_label(cfg, unlabelled, place, Path(cfg.OUTPUT_DIR) / "unlabelled_features", args.copy,
                              workers=workers)
        if workers.is_main:
            print(f"wrote {place}: {describe(report)}")
            print(f"train on it with DATASETS.USE_UNLABEL True DATASETS.UNLABEL_DIR {place}")


if __name__ == "__main__":
    run_tool(main)
