"""Finished runs grouped into points (mean and spread over the seeds), and the tables made of them."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

HEADERS = ("model", "α", "seeds", "top-1 %", "top-5 %", "MACs", "MACs %", "params", "images/s")
LEGEND = (
    "top-1, top-5: last epoch, mean over the seeds; ±: sample standard deviation of top-1",
    "MACs: multiply-adds for one image; MACs %: of the same network's at α = 0",
)
CSV_NAMES = {"top1": "top1_percent", "top5": "top5_percent", "macs": "macs_multiply_adds", "params": "params_count"}
CSV_FIRST = ("data", "image_size_px", "epochs", "model", "alpha", "seed", "status", "top1", "top5", "macs", "params")
MADE = {"device": "device", "torch": "versions_torch", "octnet": "versions_octnet", "git commit": "git_commit"}
MISSING = "–"


@dataclass(frozen=True)
class Point:
    """The finished runs that differ in nothing but their seed: accuracies in percent, last epoch, one a seed."""

    data: str
    image_size_px: int
    epochs: int
    line: str  # its points are joined in the figure: a backbone, with its sweep where two sweeps hold the same runs
    model: str
    alpha: float
    macs: int
    params: int
    top1: tuple[float, ...]
    top5: tuple[float, ...]  # empty: not measured
    images_per_second: float | None  # null: not measured, or on different devices
    time_ms: float | None = None  # for one image, where a benchmark's records were joined

    @property
    def mean(self) -> float:
        """Mean top-1 over the seeds, percent."""
        return fmean(self.top1)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of top-1 over the seeds, percentage points; one seed has none."""
        return stdev(self.top1) if len(self.top1) > 1 else None


def backbone(model: str) -> str:
    """The vanilla network's name: at α = 0 the two are the same network."""
    return model.removeprefix("oct_")


def natural(name: str) -> list[str | int]:
    """Sort key in which resnet50 comes before resnet101."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def group_runs(runs: list[dict[str, Any]]) -> list[Point]:
    """Points of the runs that are done, in the order of data, image size, epochs, line and α."""
    done = [run for run in runs if run["status"] == "done"]

    def setting(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["data"], run["image_size_px"], run["epochs"], backbone(run["model"])

    # One seed twice in one setting is no second seed: something else differs, so each sweep gets a line of its own.
    counts = Counter((*setting(run), run["alpha"], run["seed"]) for run in done)
    ambiguous = {key[:4] for key, count in counts.items() if count > 1}

    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        where = setting(run)
        line = f"{run['model']} ({run['sweep']})" if where in ambiguous else where[3]
        return *where[:3], natural(line), line, run["alpha"], run["model"], run["macs"], run["params"]

    points = []
    for (data, size, epochs, _, line, alpha, model, macs, params), group in groupby(sorted(done, key=key), key):
        members = list(group)
        top1 = tuple(run["top1"] for run in members)
        top5 = tuple(run["top5"] for run in members if run.get("top5") is not None)
        speeds = [run["images_per_second"] for run in members if run.get("images_per_second") is not None]
        speed = fmean(speeds) if speeds and len({run.get("device") for run in members}) == 1 else None
        points.append(Point(data, size, epochs, line, model, alpha, macs, params, top1, top5, speed))
    return points


def count_epochs(n: int) -> str:
    """“1 epoch”, “8 epochs”."""
    return f"{n} epoch{'' if n == 1 else 's'}"


def describe_data(name: str, image_size_px: int) -> str:
    """A data set as titles call it."""
    return f"{name} (synthetic), {image_size_px} px" if name == "shapes" else f"{name}, {image_size_px} px"


def split_unit(count: float) -> tuple[float, str]:
    """A count as a number of G, M, k or ones, and that unit."""
    factor, unit = next(((f, u) for f, u in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if count >= f), (1, ""))
    return count / factor, unit


def format_count(count: float) -> str:
    """Three digits and a unit: 4.09 G."""
    scaled, unit = split_unit(count)
    return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"


def format_point(point: Point, points: list[Point]) -> tuple[str, ...]:
    """The cells of a point under HEADERS; MACs are compared with the same line's α = 0."""
    line = (point.data, point.image_size_px, point.line)
    vanilla = [p.macs for p in points if p.alpha == 0 and (p.data, p.image_size_px, p.line) == line]
    return (
        point.model if point.line == backbone(point.model) else point.line,
        f"{point.alpha:g}",
        str(len(point.top1)),
        f"{point.mean:.2f}" + (f" ± {point.spread:.2f}" if point.spread is not None else ""),
        f"{fmean(point.top5):.2f}" if point.top5 else MISSING,
        format_count(point.macs),
        f"{100 * point.macs / vanilla[0]:.1f}" if vanilla else MISSING,
        format_count(point.params),
        f"{point.images_per_second:.0f}" if point.images_per_second is not None else MISSING,
    )


def unfinished(runs: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each run that has no result: its status, its name, and why."""
    for run in sorted(runs, key=lambda run: run["status"]):
        if run["status"] != "done":
            step = f", step {run['diverged_step']}" if run.get("diverged_step") is not None else ""
            error = str(run.get("error") or "").strip().splitlines()  # of a traceback, the last line says what happened
            where = f"{run['model']}, α = {run['alpha']:g}, seed {run['seed']}"
            data = f"{describe_data(run['data'], run['image_size_px'])}, {count_epochs(run['epochs'])}"
            yield f"{run['status']}{step}: {where} ({data})" + (f": {error[-1].strip()}" if error else "")


def print_points(runs: list[dict[str, Any]], console: Console) -> None:
    """A table for each data set, image size and number of epochs, then the runs without a result."""
    points = group_runs(runs)
    for (data, size, epochs), group in groupby(points, lambda p: (p.data, p.image_size_px, p.epochs)):
        title = f"{describe_data(data, size)}, {count_epochs(epochs)}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, collapse_padding=True)
        for header in HEADERS:
            left = header == "model"
            table.add_column(header, justify="left" if left else "right", overflow="fold", no_wrap=not left)
        for _, line in groupby(group, lambda p: p.line):
            rows = (format_point(point, points) for point in line)
            for _, named in groupby(rows, lambda row: row[0]):
                first, *rest = named
                table.add_row(*first)
                for row in rest:
                    table.add_row("", *row[1:])  # a long name folds once
            table.add_section()
        console.print(table)
    console.print(*LEGEND, sep="\n", style="dim", highlight=False)
    for text in unfinished(runs):
        console.print(text, markup=False, highlight=False)


def flatten(run: dict[str, Any]) -> dict[str, Any]:
    """A summary for a spreadsheet: versions = {torch: …} becomes versions_torch = …"""
    flat: dict[str, Any] = {}
    for key, value in run.items():
        flat |= {f"{key}_{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def write_csv(runs: list[dict[str, Any]], path: Path) -> None:
    """One row a run with every fact of its summary; units are in the headers."""
    rows = [flatten(run) for run in runs]
    keys = dict.fromkeys([*CSV_FIRST, *(key for row in rows for key in row)])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([CSV_NAMES.get(key, key) for key in keys])
        writer.writerows([row.get(key) for key in keys] for row in rows)


def write_markdown(runs: list[dict[str, Any]], path: Path) -> None:
    """The grouped table, what it says, where it was made, and the runs without a result."""
    points = group_runs(runs)
    headers = ("data", "epochs", *HEADERS)
    rows = [(describe_data(p.data, p.image_size_px), str(p.epochs), *format_point(p, points)) for p in points]
    flat = [flatten(run) for run in runs]
    made = (
        f"{label}: {', '.join(sorted({str(run[key]) for run in flat if run.get(key) is not None}))}"
        for label, key in MADE.items()
        if any(run.get(key) is not None for run in flat)
    )
    lines = [
        *(f"{line}." for line in LEGEND),
        "",
        *("| " + " | ".join(row) + " |" for row in (headers, ["---"] * len(headers), *rows)),
        "",
        *("- " + text.replace("|", r"\|") for text in (*unfinished(runs), *made)),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
