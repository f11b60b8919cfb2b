"""Measured times as an x axis: each point at its own record's time, and mistakes named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octnet.figure import draw_figure
from octnet.options import UserError
from octnet.report import read_summaries, write_report
from octnet.table import group_runs
from octnet.times import add_times
from tests.test_report import ALPHAS, add_sweep


def records(**values: Any) -> list[dict[str, Any]]:
    """As benchmark.py writes them: 80, 70, … ms for a batch of 8."""
    common = {
        "mode": "inference",
        "device": "a GPU",
        "dtype": "float32",
        "compiled": True,
        "cuda_graphs": False,
        "batch": 8,
        "image_size_px": 32,
    }
    return [
        {"model": "oct_resnet_tiny", "alpha": alpha, "time_ms": 80.0 - 10 * i} | common | values
        for i, alpha in enumerate(ALPHAS)
    ]


def write(folder: Path, *groups: list[dict[str, Any]]) -> Path:
    path = folder / "times.json"
    path.write_text(json.dumps([record for group in groups for record in group]))
    return path


def test_points_stand_at_their_times(tmp_path: Path) -> None:
    points = group_runs(read_summaries([add_sweep(tmp_path / "runs")]))
    path = write(tmp_path, records(), records(mode="train", time_ms=999.0))
    timed, label = add_times(points, path, ["mode=inference"])
    assert [point.time_ms for point in timed] == [10, 8.75, 7.5, 6.25, 5]
    assert label == "time for one image (ms): inference, compiled, float32, batch 8, a GPU"
    (ax,) = draw_figure(timed, [], "matching", "time_ms", label).axes
    means = next(line for line in ax.lines if np.size(line.get_xdata()) == len(ALPHAS))
    assert np.allclose(means.get_xdata(), [10, 8.75, 7.5, 6.25, 5])
    assert ax.get_xlabel() == f"{label} (log scale)"


def test_older_records_ran_without_cuda_graphs(tmp_path: Path) -> None:
    points = group_runs(read_summaries([add_sweep(tmp_path / "runs")]))
    older = [{k: v for k, v in r.items() if k != "cuda_graphs"} for r in records()]
    timed, label = add_times(points, write(tmp_path, older, records(cuda_graphs=True)), ["cuda_graphs=false"])
    assert [point.time_ms for point in timed] == [10, 8.75, 7.5, 6.25, 5]
    assert "compiled" in label
    assert (
        "CUDA graphs" in add_times(points, write(tmp_path, older, records(cuda_graphs=True)), ["cuda_graphs=true"])[1]
    )


def test_report_has_both_figures(tmp_path: Path) -> None:
    sweep = add_sweep(tmp_path / "runs")
    paths = write_report([sweep], tmp_path / "out", times=(write(tmp_path, records(compiled=False)), []))
    assert {p.name for p in paths} >= {"accuracy_vs_macs.png", "accuracy_vs_time.png", "accuracy_vs_time.svg"}
    assert all(path.is_file() for path in paths)
    assert "inference, eager, float32" in (tmp_path / "out" / "accuracy_vs_time.svg").read_text()


@pytest.mark.parametrize(
    ("groups", "chosen", "message"),
    [
        ([records(), records(dtype="bfloat16")], [], "dtype=bfloat16 and float32; choose one: dtype=bfloat16"),
        ([records()[:-1]], [], "no time of oct_resnet_tiny at α = 0.75: benchmark.py model --models oct_resnet_tiny"),
        ([records()], ["mode"], "write key=value"),
        ([records()], ["model=train"], "no time of oct_resnet_tiny"),
        ([[{"model": "x"}]], [], "not the records of benchmark.py"),
    ],
)
def test_mistakes(groups: list[Any], chosen: list[str], message: str, tmp_path: Path) -> None:
    points = group_runs(read_summaries([add_sweep(tmp_path / "runs")]))
    with pytest.raises(UserError, match=message):
        add_times(points, write(tmp_path, *groups), chosen)
    with pytest.raises(UserError, match="cannot be read"):
        add_times(points, tmp_path / "nowhere.json", [])
