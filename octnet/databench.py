"""The data benchmark: images a second on one core, of decoding alone, torchvision's usual pipeline, and our readers."""

import argparse
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simplejpeg
import torch
import torchvision
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torchvision import transforms

from octnet.data import Samples
from octnet.options import DataConfig, UserError
from octnet.packed import PackedImages
from octnet.randomness import epoch_order
from octnet.readers import FolderImages, Images
from octnet.run import provenance

REFERENCE = "torchvision's pipeline"
DECODERS: dict[str, Callable[[bytes], object]] = {
    "simplejpeg": simplejpeg.decode_jpeg,
    "Pillow": lambda jpeg: np.array(Image.open(io.BytesIO(jpeg)).convert("RGB")),
}
if hasattr(torchvision.io, "decode_jpeg"):  # deprecated since torchvision 0.29
    DECODERS["torchvision"] = lambda jpeg: torchvision.io.decode_jpeg(
        torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), torchvision.io.ImageReadMode.RGB
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `benchmark.py data`."""
    parser.add_argument("--root", required=True, metavar="DIR", help="folder with train/, a folder a class")
    parser.add_argument("--packed", metavar="DIR", help="the same images, packed by scripts/pack_data.py")
    parser.add_argument("--image-size-px", type=int, default=224, metavar="S", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the records to FILE")


def run_data_benchmark(args: argparse.Namespace) -> None:
    """Times every case in interleaved rounds and prints a table. Raises UserError: folders, options."""
    for option, value in (
        ("--image-size-px", args.image_size_px),
        ("--images", args.images),
        ("--rounds", args.rounds),
    ):
        if value < 1:
            raise UserError(f"{option} {value}: must be 1 or more")
    if args.json is not None and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {args.json.parent}")
    cases, images = open_cases(args.root, args.packed, args.image_size_px, args.images)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = measure(cases, images, args.rounds)
    finally:
        torch.set_num_threads(threads)
    records = summarize(rates, args.image_size_px, images)
    print_records(records)
    if args.json is not None:
        args.json.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")


def open_cases(
    root: str, packed: str | None, image_size_px: int, most: int
) -> tuple[dict[str, Callable[[int, int], object]], int]:
    """Return functions of (round, position) that load one image each, and the number of positions."""
    config = DataConfig(reader="folder", image_size_px=image_size_px, train_crop="resized", horizontal_flip=True)
    folder = FolderImages(root, "train", "--root")
    paths = [os.path.join(folder.folder, os.fsdecode(file)) for file in folder.files]
    order = [int(index) for index in epoch_order(0, 0, len(folder)) if _is_plain(paths[index])][:most]
    if not order:
        raise UserError(f"--root {root}: train/ has no colour or grey JPEG")
    encoded = [Path(paths[index]).read_bytes() for index in order]  # decoding alone opens no file
    mean, std = config.mean, config.std
    steps = [transforms.RandomResizedCrop(image_size_px), transforms.RandomHorizontalFlip()]
    usual = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
    cases: dict[str, Callable[[int, int], object]] = {
        f"decoding alone, {name}": lambda _, i, decode=decode: decode(encoded[i])  # type: ignore[misc]
        for name, decode in DECODERS.items()
    }
    cases[REFERENCE] = lambda _, i: usual(_open_as_torchvision(paths[order[i]]))
    cases["our folder reader"] = _reader(folder, order, config)
    if packed is not None:
        pack = PackedImages(packed, "train", "--packed")
        if (len(pack), pack.classes) != (len(folder), folder.classes):
            raise UserError(f"--packed {packed}: was not made of --root {root}: other classes or numbers of images")
        cases["our packed reader"] = _reader(pack, order, config)
    return cases, len(order)


def measure(cases: dict[str, Callable[[int, int], object]], images: int, rounds: int) -> dict[str, list[float]]:
    """Return images a second of each case in each round; the cases take turns, and the first round isn't counted."""
    rates: dict[str, list[float]] = {name: [] for name in cases}
    console = Console(stderr=True)
    for number in track(
        range(rounds + 1), "measuring", console=console, transient=True, disable=not console.is_terminal
    ):
        for name, load in cases.items():
            start = time.perf_counter()
            for i in range(images):
                load(number, i)
            if number > 0:
                rates[name].append(images / (time.perf_counter() - start))
    return rates


def summarize(rates: dict[str, list[float]], image_size_px: int, images: int) -> list[dict[str, Any]]:
    """Return a record a case: median and range over the rounds, and ratios of medians."""
    reference = median(rates[REFERENCE])
    fastest = max(median(rates[f"decoding alone, {name}"]) for name in DECODERS)
    made = provenance(torch.device("cpu"), 1)
    return [
        {
            "case": name,
            "images_per_second": round(median(values), 1),
            "slowest_round": round(min(values), 1),
            "fastest_round": round(max(values), 1),
            "ratio_to_reference": round(median(values) / reference, 3),
            "ratio_to_decoding": round(median(values) / fastest, 3),
            "image_size_px": image_size_px,
            "images": images,
            "rounds": len(values),
            **made,
        }
        for name, values in rates.items()
    ]


def print_records(records: list[dict[str, Any]]) -> None:
    """Prints a row a case."""
    table = Table(box=None, pad_edge=False)
    for column in ("one core", "images/s", "rounds from–to", "× torchvision's", "× fastest decoding"):
        table.add_column(column, justify="left" if column == "one core" else "right")
    for record in records:
        table.add_row(
            record["case"],
            f"{record['images_per_second']:,.0f}",
            f"{record['slowest_round']:,.0f}–{record['fastest_round']:,.0f}",
            f"{record['ratio_to_reference']:.2f}",
            f"{record['ratio_to_decoding']:.2f}",
        )
    console = Console(width=None if os.isatty(1) else 120, highlight=False)
    console.print(table)
    console.print(
        f"{records[0]['images']} JPEGs, {records[0]['rounds']} interleaved rounds, {records[0]['device']}. All but "
        f"decoding: random crop to {records[0]['image_size_px']} px and flip; torchvision's also normalises, ours "
        "leaves that to the training device."
    )


def _reader(images: Images, order: list[int], config: DataConfig) -> Callable[[int, int], object]:
    """What a loader process does for each image."""
    samples = Samples(images, config, seed=0)
    return lambda epoch, i: samples[epoch, order[i]]


def _open_as_torchvision(path: str) -> Image.Image:
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def _is_plain(path: str) -> bool:
    """Whether every decoder reads the file: a JPEG in colour or grey."""
    try:
        with Image.open(path) as image:
            return image.format == "JPEG" and image.mode in ("RGB", "L")
    except OSError as error:
        raise UserError(f"{path}: cannot be read as an image: {error}") from error
