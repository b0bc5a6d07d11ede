"""Learn a text for each identity: python tools/learn_prompts.py --config_file FILE --weights CLIP.pth --output FILE

The first of CLIP-ReID's two stages, with both encoders of CLIP as they are; tools/train.py with MODEL.PROMPTS FILE is
the second. --weights has the text encoder: CLIP's weights, or a checkpoint of CLIP-ReID.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_config_parser, open_tool, parse_config
from utils.logger import run_tool


def main() -> None:
    parser = make_config_parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="with CLIP's text encoder")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="for MODEL.PROMPTS")
    parser.add_argument("--epochs", type=int, default=120, metavar="N", help="default: %(default)s")
    args, cfg = parse_config(parser)
    if args.epochs < 1:
        parser.error("--epochs: at least 1")
    from processor.prompts import learn_prompts  # torch takes seconds to import

    with open_tool(cfg.OUTPUT_DIR, "prompts_log.txt", config=cfg):
        share = learn_prompts(cfg, args.weights, args.output, args.epochs)
        print(f"wrote {args.output}: {share:.1%} of the images are nearest to the text of their identity")


if __name__ == "__main__":
    run_tool(main)
