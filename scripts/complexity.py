"""Counts what every registered octave network costs at each α: a table, and with --csv a file.

With --paper: the counts of the authors' own code beside ours, to the unit; exit code 1 if any differs.
"""

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import timm
from rich.console import Console
from rich.progress import track
from rich.table import Table

from octnet.complexity import Complexity, check_model
from octnet.options import UserError

ALPHAS = (0.0, 0.125, 0.25, 0.5, 0.75)
CLASSES = 1000


def main() -> int:
    """Parses the command line and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
params    parameters, the same at every α
MACs      multiply-adds of convolutions and linear layers, one multiply-add = 1
FLOPs     the authors' own rule: MACs + biases + pools (output x k x k) + ReLUs
maps      outputs of all convolutions and linear layers of one image in float32, 10^6 bytes

example: python scripts/complexity.py oct_resnet50 oct_densenet121 --alpha 0 0.5 --csv counts.csv
         python scripts/complexity.py --paper""",
    )
    parser.add_argument("models", nargs="*", help="timm names; all octave networks if none is given")
    parser.add_argument("--alpha", type=float, nargs="+", default=ALPHAS, metavar="A", help="default: %(default)s")
    parser.add_argument("--image-size-px", type=size_px, metavar="S", help="default: the network's own, 224 or 32")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write all rows to FILE")
    parser.add_argument("--paper", action="store_true", help="compare with the authors' counts, and nothing else")
    args = parser.parse_args()
    if args.paper:
        return compare_with_authors()
    if args.csv is not None and not args.csv.parent.is_dir():
        parser.error(f"--csv {args.csv}: there is no folder {args.csv.parent}")
    try:
        rows = list(count(args.models or octave_networks(), args.alpha, args.image_size_px))
    except UserError as error:
        print(f"complexity.py: {error}", file=sys.stderr)
        return 2
    print_table(rows)
    if args.csv is not None:
        write_csv(rows, args.csv)
    return 0


def compare_with_authors() -> int:
    """Prints a row for each of the authors' counts that has a name here; returns 1 if any differs, or 0."""
    with (files("octnet") / "official_macs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] and row["alpha"] != "0oct"]
    table = Table(box=None, pad_edge=False)
    for column in ("model", "α", "params", "authors'", "MACs", "authors'", "FLOPs", "authors'", "equal"):
        table.add_column(column, justify="left" if column == "model" else "right")
    differing = 0
    console = Console(stderr=True)
    for row in track(rows, "counting", console=console, transient=True, disable=not console.is_terminal):
        counts = check_model(f"oct_{row['model']}", float(row["alpha"]), {}, CLASSES, 224)
        ours = (counts.params, counts.macs, counts.flops_paper)
        theirs: list[int | None] = [int(row[key]) for key in ("params", "macs", "flops_paper")]
        if row["authors_api"] == "gluon" and row["alpha"] == "0":
            theirs[2] = None
        equal = all(t is None or t == o for o, t in zip(ours, theirs, strict=True))
        differing += not equal
        pairs = zip(ours, theirs, strict=True)
        cells = (text for o, t in pairs for text in (f"{o:,}", "–" if t is None else f"{t:,}"))
        table.add_row(row["model"], row["alpha"], *cells, "yes" if equal else "NO")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print("FLOPs: the authors' rule. –: their figure counts average pools that a vanilla network lacks.")
    console.print(f"{differing} of {len(rows)} rows differ", highlight=False)
    return 1 if differing else 0


Row = tuple[str, float, int, Complexity | str]  # model, α, image size in px, counts or why there are none


def size_px(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of pixels")
    return int(text)


def octave_networks() -> list[str]:
    """Every octave network that is registered."""
    return timm.list_models("oct_*")


def count(names: list[str], alphas: list[float], image_size_px: int | None) -> Iterator[Row]:
    """The rows, one for each network and α. Raises UserError for an unknown network."""
    console = Console(stderr=True)
    pairs = [(name, alpha) for name in names for alpha in (alphas if name.startswith("oct_") else [0.0])]
    for name, alpha in track(pairs, "counting", console=console, transient=True, disable=not console.is_terminal):
        size = image_size_px if image_size_px is not None else own_size_px(name)
        try:
            yield name, alpha, size, check_model(name, alpha, {}, CLASSES, size)
        except UserError as error:
            if not timm.is_model(name) or not 0 <= alpha <= 1:
                raise
            yield name, alpha, size, str(error).partition(": ")[2]


def own_size_px(name: str) -> int:
    """The image size that a network is made for; 224 if it doesn't say."""
    cfg = timm.get_pretrained_cfg(name.removeprefix("oct_"), allow_unregistered=True)
    return cfg.input_size[-1] if cfg is not None else 224


def print_table(rows: list[Row]) -> None:
    """A row each; the MACs also as a share of the same network's at α = 0."""
    table = Table(box=None, pad_edge=False)
    for column in ("model", "α", "px", "params (M)", "MACs (M)", "MACs %", "FLOPs, authors' rule (M)", "maps (MB)"):
        table.add_column(column, justify="left" if column == "model" else "right")
    full = {(name, size): c.macs for name, alpha, size, c in rows if alpha == 0 and isinstance(c, Complexity)}
    for i, (name, alpha, size, counts) in enumerate(rows):
        last = i + 1 == len(rows) or rows[i + 1][0] != name
        if isinstance(counts, str):
            table.add_row(name, f"{alpha:g}", str(size), "–", "–", "–", "–", "–", end_section=last)
            continue
        share = f"{100 * counts.macs / full[name, size]:.1f}" if (name, size) in full else "–"
        numbers = (counts.params / 1e6, counts.macs / 1e6, counts.flops_paper / 1e6, counts.feature_map_mb)
        params, macs, flops, maps = (f"{n:,.2f}" for n in numbers)
        table.add_row(name, f"{alpha:g}", str(size), params, macs, share, flops, maps, end_section=last)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for name, alpha, _, counts in rows:
        if isinstance(counts, str):
            console.print(f"{name} at α = {alpha:g} can't be built: {counts}", highlight=False, soft_wrap=True)


def write_csv(rows: list[Row], path: Path) -> None:
    """Model, α, image size and the fields of Complexity; a network that can't be built has no row."""
    names = [field.name for field in dataclasses.fields(Complexity)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "alpha", "image_size_px", *names])
        for name, alpha, size, counts in rows:
            if isinstance(counts, Complexity):
                writer.writerow([name, f"{alpha:g}", size, *dataclasses.astuple(counts)])


if __name__ == "__main__":
    sys.exit(main())
