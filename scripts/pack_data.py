"""Packs a folder of images once into shards that data.reader=packed reads: every image re-encoded, never enlarged."""

import argparse
import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from octnet.options import UserError
from octnet.packed import verify_pack
from octnet.packing import pack_folder

EXAMPLE = """\
SOURCE has train/ and val/, a folder a class in each. What was written is kept when it is stopped; the same command
continues. The same images and settings give the same bytes, whatever the number of processes.

example:
  python scripts/pack_data.py imagenet imagenet_packed
  python scripts/pack_data.py --verify imagenet_packed
  python train.py model=oct_resnet50 data=imagenet_packed data.root=imagenet_packed recipe=paper
"""


def main() -> int:
    """Parses the command line, packs or verifies; 2 is a user's mistake, 130 an interruption."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="folder of images; not needed for --verify")
    parser.add_argument("output", metavar="OUTPUT", help="folder of the pack")
    parser.add_argument(
        "--short-side-px", type=from_1, default=256, metavar="PX", help="of larger images (default: %(default)s)"
    )
    parser.add_argument(
        "--quality", type=quality, default=90, metavar="Q", help="JPEG's, 1 to 95 (default: %(default)s)"
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--processes", type=from_1, default=cores, metavar="N", help="default: a core each, %(default)s"
    )
    parser.add_argument("--verify", action="store_true", help="read all of OUTPUT and compare it with its checksums")
    args = parser.parse_args()
    if args.source is None and not args.verify:
        parser.error("SOURCE and OUTPUT are needed, or --verify OUTPUT")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    results = []
    try:
        with progress:
            if args.source is not None:
                settings = (args.short_side_px, args.quality, args.processes)
                images, size = pack_folder(args.source, args.output, *settings, progress)
                results.append(f"{images:,} images, {size / 1e6:,.1f} MB in {args.output}")
            if args.verify:
                results.append(f"{verify_pack(args.output, progress)} shards are as they were written")
    except UserError as error:
        print(f"pack_data.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pack_data.py: interrupted; the same command continues", file=sys.stderr)
        return 130
    print("; ".join(results))
    return 0


def from_1(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def quality(text: str) -> int:
    """A JPEG quality."""
    if not text.isdecimal() or not 1 <= int(text) <= 95:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to 95")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
