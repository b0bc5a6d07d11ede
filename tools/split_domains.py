"""Split a NAIC test set into its green and normal pictures: writes the four domain lists.

    python tools/split_domains.py --data_dir_query ../data/MyDataSet/image_B_v1_1/query \\
        --data_dir_gallery ../data/MyDataSet/image_B_v1_1/gallery --save_dir output/derived
    python tools/split_domains.py --config_file FILE.yml --save_dir output/derived [KEY VALUE ...]

With a config the folders are query/ and gallery/ of its DATASETS.TEST_DIR. Other sets than NAIC have no domains.

An image whose B, G and R means are all above 65 is green, any other normal.
"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.naic import find_test_parts
from datasets.registry import DATASETS, parse_names
from datasets.sets.domains import split_domains
from tools.arguments import make_config_parser, parse_config
from utils.logger import run_tool, setup_logger


def find_test_folders(cfg) -> list[Path]:
    """query/ and gallery/ of the NAIC test folder that a config tests on.

    Raises:
        ValueError: it tests on other sets.
        OSError: they are not there.
    """
    from datasets.make_dataloader import make_places  # torch takes seconds to import

    names = cfg.DATASETS.TEST_NAMES or cfg.DATASETS.NAMES
    naic = [reference for reference in parse_names(names) if reference.kind == "naic"]
    if not naic:
        raise ValueError(f"{names} has no domains: only NAIC's test pictures are green or normal. There is nothing to "
                         "split; test and train without domain lists")
    return find_test_parts(DATASETS["naic"].folder(naic[0], make_places(cfg)) / cfg.DATASETS.TEST_DIR)


def split_if_missing(cfg) -> None:
    """Write the domain lists where a config looks for them, if it tests on NAIC and they are not there yet."""
    from datasets.make_dataloader import make_places

    names = cfg.DATASETS.TEST_NAMES or cfg.DATASETS.NAMES
    if cfg.DATASETS.VALIDATION or all(reference.kind != "naic" for reference in parse_names(names)):
        return
    query, gallery = find_test_folders(cfg)
    derived = make_places(cfg).derived_dir
    if not any((place / "query_green.txt").is_file() for place in (query.parent, derived)):
        split_domains(query, gallery, derived)


def main() -> None:
    parser = make_config_parser(__doc__, "YAML file that names the test folder")
    parser.add_argument("--data_dir_query", metavar="DIR", help="folder with the query images")
    parser.add_argument("--data_dir_gallery", metavar="DIR", help="folder with the gallery images")
    parser.add_argument("--save_dir", required=True, metavar="DIR",
                        help="folder for query_green.txt, query_normal.txt, gallery_green.txt, gallery_normal.txt")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="processes that decode (default: one a core, eight at most)")
    args, cfg = parse_config(parser)
    folders = [folder for folder in (args.data_dir_query, args.data_dir_gallery) if folder]
    if len(folders) == 1 or not (folders or args.config_file or args.opts):
        parser.error("name both --data_dir_query and --data_dir_gallery, or a config whose test folder is split")
    setup_logger()
    counts = split_domains(*(folders or find_test_folders(cfg)), args.save_dir, args.workers)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()), "->", Path(args.save_dir))


if __name__ == "__main__":
    run_tool(main)
