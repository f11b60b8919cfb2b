"""Measured times as the figure's x axis: the records of `benchmark.py model` joined to the points of sweeps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from octnet.options import UserError
from octnet.table import Point

KEYS = {"model", "alpha", "mode", "device", "dtype", "compiled", "cuda_graphs", "batch", "image_size_px", "time_ms"}
SETTING = ("mode", "compiled", "cuda_graphs", "dtype", "batch", "device")  # what all times of one figure have in common

LATER = {"cuda_graphs": False}  # keys that older records lack, as they were measured


def add_times(points: list[Point], path: Path, chosen: list[str]) -> tuple[list[Point], str]:
    """The points with `time_ms` (one image) from the records that agree with `chosen` ("mode=train"), and the axis' label.

    Raises UserError for a file of other content, records of several settings, a point without a record.
    """
    records = [r for r in read_times(path) if all(_agrees(r, text, path) for text in chosen)]
    for key in SETTING:
        values = sorted({_text(r[key]) for r in records})
        if len(values) > 1:
            raise UserError(
                f"--times {path}: has records of {key}={' and '.join(values)}; choose one: {key}={values[0]}"
            )
    times = {
        (r["model"].removeprefix("oct_"), r["alpha"], r["image_size_px"]): r["time_ms"] / r["batch"] for r in records
    }
    timed = []
    for point in points:
        network = point.model.removeprefix("oct_")
        where = (network, point.alpha, point.image_size_px)
        if where not in times:
            want = f"--models oct_{network} --alphas {point.alpha:g} --image-size-px {point.image_size_px}"
            raise UserError(
                f"--times {path}: no time of {point.model} at α = {point.alpha:g}: benchmark.py model {want}"
            )
        timed.append(replace(point, time_ms=times[where]))
    return timed, f"time for one image (ms): {_describe(records[0])}" if records else ""


def read_times(path: Path) -> list[dict[str, Any]]:
    """The records in a file that `benchmark.py model --json` wrote. Raises UserError."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as benchmark records ({error})") from None
    needed = KEYS - LATER.keys()
    if not isinstance(records, list) or not all(isinstance(r, dict) and r.keys() >= needed for r in records):
        raise UserError(f"{path}: not the records of benchmark.py model --json")
    return [LATER | r for r in records]


def _agrees(record: dict[str, Any], text: str, path: Path) -> bool:
    key, equals, value = text.partition("=")
    if not equals or key not in KEYS:
        raise UserError(f"--times {path} {text}: write key=value, of {', '.join(SETTING)}")
    return _text(record[key]) == value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def how_run(record: dict[str, Any]) -> str:
    """How a record's network ran, in words."""
    return "CUDA graphs" if record["cuda_graphs"] else "compiled" if record["compiled"] else "eager"


def _describe(record: dict[str, Any]) -> str:
    return f"{record['mode']}, {how_run(record)}, {record['dtype']}, batch {record['batch']}, {record['device']}"
