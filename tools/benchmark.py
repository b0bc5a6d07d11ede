"""Measure speed and memory: python tools/benchmark.py WORD [--json FILE]

WORD is retrieval, evaluate, data, train, embed, linking, gallery or gallery-serve. Prints a table as GitHub markdown,
each run in a fresh process. docs/benchmarks.md explains the columns.
"""
import argparse
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.files import write_json
from utils.logger import run_tool, setup_logger


class Benchmark(NamedTuple):
    """What stands behind a word of the command line.

    Attributes:
        module: it has make_options(**arguments) and run_benchmark(options); imported late, for torch takes seconds.
    """

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    module: str


def add_retrieval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N",
                        help="images of query and gallery together (default: 5000 10000 20000 50000)")
    parser.add_argument("--large", action="store_true", help="also 100000, on CUDA 1000000 too")
    parser.add_argument("--dim", type=int, default=2048, help="length of a feature (default 2048)")
    parser.add_argument("--k1", type=int, default=20)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--lambda", type=float, default=0.3, dest="lambda_value", metavar="LAMBDA")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto: cuda if there is an accelerator")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts; from "
                        "50000 images on one (default 3)")
    parser.add_argument("--implementations", nargs="+", metavar="NAME",
                        help="only these of: top200_float32 top200_auto full_rows dense none tiles")
    parser.add_argument("--square", type=int, default=4096, metavar="N",
                        help="edge of the large product whose rate is measured (default 4096)")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queries", type=int, default=11_659, metavar="N", help="(default %(default)s, as in MSMT17)")
    parser.add_argument("--gallery", type=int, default=82_161, metavar="N", help="images (default %(default)s)")
    parser.add_argument("--identities", type=int, default=3060, metavar="N", help="(default %(default)s)")
    parser.add_argument("--cameras", type=int, default=15, metavar="N", help="(default %(default)s)")
    parser.add_argument("--dim", type=int, default=2048, help="length of a feature (default %(default)s)")
    parser.add_argument("--baseline-queries", type=int, default=1457, metavar="N",
                        help="the first of the queries, for the rows that hold all distances (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts (default 3)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these of: ours ours_part baseline")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", metavar="HxW", help="of the images (default: 256x128 384x192)")
    parser.add_argument("--folder", type=Path, metavar="DIR",
                        help="use the pictures in this folder and below it (default: rendered ones)")
    parser.add_argument("--images", type=int, default=1024, help="pictures in use (default 1024)")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch (default 64)")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one a core)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="where our batches are augmented; auto: cuda if there is an accelerator")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a run (default 3)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts (default 3)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these; a wrong name lists all")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", metavar="NAME",
                        help="backbones (default: resnet50_ibn_a; on CUDA resnet101_ibn_b, too; and vit_small at "
                        "256x128, in batches of 8 on the CPU)")
    parser.add_argument("--sizes", nargs="+", metavar="HxW",
                        help="of the images (default: 128x64; on CUDA 256x128 384x192 480x240)")
    parser.add_argument("--identities", nargs="+", type=int, metavar="N",
                        help="of the classifier (default: 500; on CUDA 52000, too)")
    parser.add_argument("--large", action="store_true", help="on the CPU: both models, 128x64 and 256x128, 500 and "
                        "52000 identities, which takes hours")
    parser.add_argument("--batch", type=int, help="images in a batch (default: 32; on CUDA 128)")
    parser.add_argument("--steps", type=int, help="measured in a run (default: 12; on CUDA 100)")
    parser.add_argument("--warmup", type=int, help="steps before them, after the first (default: 5; on CUDA 30)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto: cuda if there is an accelerator")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only these of: textbook_float32 textbook_fp16 "
                        "ours_float32 ours_float32_compile ours_fp16 ours_fp16_compile")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts (default 3)")
    parser.add_argument("--square", type=int, metavar="N",
                        help="edge of the product whose rate is the peak (default: 4096; on CUDA 8192)")


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="resnet50_ibn_a", metavar="NAME", help="backbone (default: %(default)s)")
    parser.add_argument("--size", default="256x128", metavar="HxW", help="of its pictures (default: %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="DIR",
                        help="use the pictures in this folder and below it (default: rendered ones)")
    parser.add_argument("--images", type=int, default=256, help="pictures in use (default 256)")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch, beside one (default 64)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto: cuda if there is an accelerator")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of a run's five figures (default 10)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts (default 3)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these; a wrong name lists all")


def add_linking_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, default=Path("output/r18_64"), metavar="DIR",
                        help="OUTPUT_DIR of tools/test.py, whose features are used (default: %(default)s, the demo's)")
    parser.add_argument("--rates", nargs="+", type=float, metavar="FPR",
                        help="false positive rates that give the thresholds (default: 0.03 0.01 0.005 0.003)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="of the streams (default: 0 1 2)")


def add_gallery_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="vectors (default %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="of a vector (default %(default)s)")
    parser.add_argument("--vectors", choices=("float32", "float16"), default="float32", help="(default %(default)s)")
    parser.add_argument("--k", type=int, default=200, help="rows that are asked for (default %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="queries at once, beside one (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each, of which the median counts (default 5)")
    parser.add_argument("--checked", type=int, default=4, metavar="Q",
                        help="queries that the slow search answers, too (default %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="DIR",
                        help="where the gallery is made, or is already, and stays (default: a temporary folder)")


def add_serving_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, metavar="N", help="of the gallery at first (default 100000)")
    parser.add_argument("--dim", type=int, help="of its vectors (default 512)")
    parser.add_argument("--clients", type=int, metavar="N", help="that ask at a time (default 32)")
    parser.add_argument("--seconds", type=float, help="that they do so (default 60)")


BENCHMARKS = {
    "retrieval": Benchmark("re-ranking, beside a dense baseline", add_retrieval_arguments,
                           "tools.benchmarks.retrieval"),
    "evaluate": Benchmark("a test set's ranking and figures, beside a dense matrix", add_evaluate_arguments,
                          "tools.benchmarks.evaluation"),
    "data": Benchmark("decoding, augmentation and the whole loader, beside PIL and torchvision", add_data_arguments,
                      "tools.benchmarks.data"),
    "train": Benchmark("the trainer's steps, beside a textbook loop", add_train_arguments, "tools.benchmarks.training"),
    "embed": Benchmark("pictures to vectors, beside the textbook's extractor", add_embed_arguments,
                       "tools.benchmarks.embed"),
    "linking": Benchmark("following people, beside the nearest neighbour and clustering afterwards",
                         add_linking_arguments, "tools.benchmarks.linking"),
    "gallery": Benchmark("exact search in a gallery, beside numpy's product over the same files",
                         add_gallery_arguments, "tools.benchmarks.gallery.search"),
    "gallery-serve": Benchmark("the gallery's service under many clients that read and write", add_serving_arguments,
                               "tools.benchmarks.gallery.serving"),
}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = parser.add_subparsers(dest="what", required=True, metavar="|".join(BENCHMARKS))
    for name, benchmark in BENCHMARKS.items():
        word = words.add_parser(name, help=benchmark.summary, description=benchmark.summary.capitalize() + ".")
        benchmark.add_arguments(word)
        word.add_argument("--json", type=Path, metavar="FILE", help="also write the raw figures, of every run")
    return parser.parse_args()


def main() -> None:
    args = vars(parse_args())
    setup_logger()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by a batch system: clean up as at Ctrl-C
    what, json_file = args.pop("what"), args.pop("json")
    benchmark = import_module(BENCHMARKS[what].module)
    from tools.benchmarks.reports import FORMATS

    report = benchmark.run_benchmark(benchmark.make_options(**args))
    if json_file:
        write_json(json_file, report)
    print(FORMATS[what](report))
    sys.exit(any(row["note"].startswith("failed") for row in report["rows"]))


if __name__ == "__main__":
    run_tool(main)
