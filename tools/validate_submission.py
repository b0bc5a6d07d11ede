"""Check a submission as a competition would: python tools/validate_submission.py submission.json --data DATA_ROOT

Every query once, with enough different names of gallery images. Prints a line, and the score if the test folder has
ground truth, and exits with 0; or prints what is wrong and exits with 1; 2: the arguments cannot be used.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_parser
from utils.logger import run_tool, setup_logger


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the submission JSON")
    parser.add_argument("--data", type=Path, required=True, metavar="DATA_ROOT",
                        help="the folder that holds MyDataSet/, or MyDataSet itself")
    parser.add_argument("--test_dir", default="image_B_v1_1", help="the test folder's name in MyDataSet/ (%(default)s)")
    parser.add_argument("--top_k", type=int, default=200, help="length of a query's list (%(default)s)")
    parser.add_argument("--derived", type=Path, metavar="DIR",
                        help="folder of the domain lists; default: `derived` beside FILE or beside its folder")
    args = parser.parse_args()
    from processor.evaluation.submission_check import validate_submission  # not before the arguments are right

    setup_logger()
    report = validate_submission(args.file, args.data, args.test_dir, args.top_k, args.derived)
    sys.stdout.reconfigure(errors="backslashreplace")  # names may hold what the terminal cannot show
    print("\n".join(report.lines()))
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    run_tool(main)
