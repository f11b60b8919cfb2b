"""The report of a sweep: its runs' `summary.json` files as a figure, a table and a spreadsheet."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from octnet.figure import draw_figure, save_figure
from octnet.options import UserError
from octnet.table import group_runs, natural, print_points, write_csv, write_markdown
from octnet.times import add_times

TEXT_KEYS = ("model", "status", "data")
NUMBER_KEYS = ("alpha", "seed", "epochs", "image_size_px")
RESULT_KEYS = ("top1", "macs", "params")  # of runs that are done


def read_summary(path: Path, sweep: str) -> dict[str, Any]:
    """One run's summary, with the name of its sweep added; UserError if a report could not rely on it."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable summary ({error}); delete its run folder or repair it") from None
    if not isinstance(run, dict):
        raise UserError(f"{path}: not a summary: a JSON object is expected")
    for key in TEXT_KEYS:
        if not isinstance(run.get(key), str):
            raise UserError(f"{path}: '{key}' is {run.get(key)!r}, not a text")
    for key in NUMBER_KEYS + (RESULT_KEYS if run["status"] == "done" else ()):
        if not isinstance(run.get(key), int | float) or not math.isfinite(run[key]):
            raise UserError(f"{path}: '{key}' is {run.get(key)!r}, not a number")
    return {**run, "sweep": sweep}


def read_summaries(output_dirs: list[Path]) -> list[dict[str, Any]]:
    """Summaries of all runs of the sweeps, sorted by what they are; UserError for a folder without runs."""
    folders = {Path(folder).resolve(): Path(folder) for folder in output_dirs}  # each once
    names = [resolved.name for resolved in folders]
    runs = []
    for resolved, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        paths = sorted(folder.glob("*/summary.json"))
        if not paths:
            hint = "it is a run itself: name its parent" if (folder / "summary.json").exists() else "no */summary.json"
            raise UserError(f"{folder}: not the output_dir of a sweep ({hint})")
        sweep = resolved.name if names.count(resolved.name) == 1 else str(folder)
        runs += [read_summary(path, sweep) for path in paths]

    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["data"], run["image_size_px"], run["epochs"], natural(run["model"]), run["alpha"], run["seed"]

    return sorted(runs, key=key)


def write_report(
    output_dirs: list[Path],
    destination: Path | None = None,
    published: str = "matching",
    times: tuple[Path, list[str]] | None = None,
) -> list[Path]:
    """Writes figures (PNG, SVG), `results.csv` (a row a run) and `results.md` (a row a point); returns their paths.

    `published` (all, matching, none): which published results join runs on ImageNet at 224 px. `times`: records of
    `benchmark.py model` and which of them (times.py), for a second figure against time.
    """
    runs = read_summaries(output_dirs)
    destination = Path(output_dirs[0] if destination is None else destination)
    paths = [destination / n for n in ("accuracy_vs_macs.png", "accuracy_vs_macs.svg", "results.csv", "results.md")]
    points, missing = group_runs(runs), [run["status"] for run in runs if run["status"] != "done"]
    figure = draw_figure(points, missing, published)
    against_time = None
    if times is not None:
        timed, label = add_times(points, *times)
        against_time = draw_figure(timed, missing, published, "time_ms", label)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        if against_time is not None:
            paths += [destination / f"accuracy_vs_time{suffix}" for suffix in (".png", ".svg")]
            save_figure(against_time, paths[4:])
        save_figure(figure, paths[:2])
        write_csv(runs, paths[2])
        write_markdown(runs, paths[3])
    except OSError as error:
        raise UserError(f"{destination}: cannot write the report there ({error.strerror})") from None
    return paths


def print_table(output_dirs: list[Path], console: Console | None = None) -> None:
    """Prints the sweeps' results in the terminal: a row for each data set, model and α."""
    print_points(read_summaries(output_dirs), Console() if console is None else console)
