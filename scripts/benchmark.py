"""Measures speed on this machine, everything that is compared interleaved in one process."""

import argparse
import sys

from octnet import databench, modelbench
from octnet.options import UserError

EXAMPLE = """\
examples:
  python scripts/benchmark.py model --models oct_resnet50 oct_mobilenetv1_100 --alphas .125 .25 .5 --json model.json
  python scripts/benchmark.py data --root imagenet --packed imagenet_packed --json data.json
"""


def main() -> int:
    """Parses the command line and runs one benchmark; 2 is a user's mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    model = commands.add_parser(
        "model", help="octave networks against vanilla ones: time and memory", description=modelbench.__doc__
    )
    modelbench.add_arguments(model)
    model.set_defaults(run=modelbench.run_model_benchmark)
    data = commands.add_parser("data", help="reading, decoding and augmenting images", description=databench.__doc__)
    databench.add_arguments(data)
    data.set_defaults(run=databench.run_data_benchmark)
    args = parser.parse_args()
    try:
        args.run(args)
    except UserError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
