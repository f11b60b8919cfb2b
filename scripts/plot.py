"""Draws the figure of one or more sweeps and prints their table."""

import argparse
import sys
from pathlib import Path

from octnet.options import UserError
from octnet.report import print_table, write_report

EXAMPLE = """\
example:
  python scripts/plot.py runs/cifar10 runs/imagenet --output results
  python scripts/plot.py runs/imagenet --times speed.json mode=inference dtype=bfloat16

reads every <output_dir>/*/summary.json and writes into --output:
  accuracy_vs_macs.png, .svg   top-1 against multiply-adds, a line a backbone, α at each point
  accuracy_vs_time.png, .svg   with --times: the same against measured time
  results.csv                  a row a run, with every fact of its summary
  results.md                   a row for each data set, model and α: mean and spread over the seeds
"""


def main() -> int:
    """Parses the command line, prints the table and the paths of what was written; 2 is a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "output_dirs", nargs="+", type=Path, metavar="OUTPUT_DIR", help="a sweep: the folder of its runs"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: the first OUTPUT_DIR)")
    parser.add_argument(
        "--published",
        choices=("all", "matching", "none"),
        default="matching",
        help="published results beside runs on imagenet at 224 px: of all networks, of those that are drawn"
        " (matching, the default), or none",
    )
    parser.add_argument(
        "--times",
        nargs="+",
        metavar=("FILE", "KEY=VALUE"),
        help="records of benchmark.py model --json, and which of them if there are several kinds",
    )
    args = parser.parse_args()
    times = None if args.times is None else (Path(args.times[0]), args.times[1:])
    try:
        print_table(args.output_dirs)
        for path in write_report(args.output_dirs, args.output, args.published, times):
            print(path)
    except UserError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
