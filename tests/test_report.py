import csv
import json
import re
import runpy
import sys
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from rich.console import Console

from octnet.figure import draw_figure
from octnet.options import UserError
from octnet.report import print_table, read_summaries, write_report
from octnet.table import group_runs

ALPHAS = (0, 0.125, 0.25, 0.5, 0.75)
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def add_run(sweep: Path, model: str = "oct_resnet_tiny", alpha: float = 0, seed: int = 0, **values: Any) -> None:
    """Writes the summary of a run as training does."""
    summary = {
        "model": model,
        "alpha": alpha,
        "seed": seed,
        "status": "done",
        "epochs": 8,
        "top1": 70.0,
        "top5": 90.0,
        "params": 25_557_032,
        "macs": round(29e6 * (1 - 0.75 * alpha * (2 - alpha))),
        "image_size_px": 32,
        "images_per_second": 812.3,
        "data": "shapes",
        "device": "a GPU",
        "versions": {"torch": "2.11.0"},
    } | values
    folder = sweep / f"{model}-a{alpha:g}-s{seed}"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))


def add_sweep(sweep: Path, model: str = "oct_resnet_tiny", seeds: int = 3, **values: Any) -> Path:
    """Five values of α, with accuracies that differ a little from seed to seed."""
    for i, alpha in enumerate(ALPHAS):
        for seed in range(seeds):
            add_run(sweep, model, alpha, seed, **{"top1": 70 + i / 2 + 0.3 * seed * (-1) ** i} | values)
    return sweep


def draw(*sweeps: Path, published: str = "matching") -> Figure:
    return draw_figure(group_runs(read_summaries(list(sweeps))), [], published)


def annotations(ax: Axes) -> list[Annotation]:
    return [text for text in ax.texts if isinstance(text, Annotation)]


def legend_texts(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text().replace("\n", " ") for text in legend.get_texts()]


def svg_texts(path: Path) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def shown(sweep: Path, columns: int = 200) -> str:
    out = StringIO()
    print_table([sweep], Console(width=columns, file=out))
    return out.getvalue()


def test_mean_spread_and_cost_of_each_alpha_are_in_the_tables(tmp_path: Path) -> None:
    for seed, (vanilla, octave) in enumerate([(70.0, 61.0), (71.0, 62.0), (75.0, 63.0)]):
        add_run(tmp_path, alpha=0, seed=seed, top1=vanilla, macs=4_089_184_256)
        add_run(tmp_path, alpha=0.25, seed=seed, top1=octave, top5=80.0 + seed, macs=3_103_526_912)
    add_run(tmp_path, alpha=0.5, top1=55.0, macs=2_367_143_936)
    # by hand: 70, 71, 75 deviate by -2, -1, 3 from 72: √((4 + 1 + 9) / 2) = 2.646; 3.104 G / 4.089 G = 75.9 %
    expected = (
        ("0", "3", "72.00 ± 2.65", "90.00", "4.09 G", "100.0", "25.6 M", "812"),
        ("0.25", "3", "62.00 ± 1.00", "81.00", "3.10 G", "75.9", "25.6 M", "812"),
        ("0.5", "1", "55.00", "90.00", "2.37 G", "57.9", "25.6 M", "812"),
    )
    write_report([tmp_path])
    lines = (tmp_path / "results.md").read_text().splitlines()
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if "oct_resnet_tiny" in line]
    assert cells == [("shapes (synthetic), 32 px", "8", "oct_resnet_tiny", *row) for row in expected]
    for row in expected:
        assert re.search(r"\s+".join(map(re.escape, row)), shown(tmp_path))


def test_spreadsheet_has_every_fact_of_every_run(tmp_path: Path) -> None:
    add_sweep(tmp_path)
    add_run(tmp_path, alpha=0.875, status="failed", top1=None, error='no "memory", none\nat all')
    write_report([tmp_path], tmp_path / "out")
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = {(row["model"], float(row["alpha"]), int(row["seed"])): row for row in csv.DictReader(file)}
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    assert len(rows) == len(summaries) == 16
    for run in summaries:
        row = rows[run["model"], run["alpha"], run["seed"]]
        assert row["top1_percent"] == ("" if run["top1"] is None else str(run["top1"]))
        assert row["macs_multiply_adds"] == str(run["macs"])
        assert row["versions_torch"] == "2.11.0"
        assert row["error"] == run.get("error", "")


def test_runs_without_a_result_are_named_everywhere_and_counted_nowhere(tmp_path: Path) -> None:
    add_run(tmp_path, seed=0, top1=70.0)
    add_run(tmp_path, seed=1, status="diverged", top1=None, diverged_step=310)
    add_run(tmp_path, seed=2, status="failed", top1=None, error="Traceback:\n  File x\nRuntimeError: [out] of | memory")
    add_run(tmp_path, seed=3, status="running", top1=None)
    write_report([tmp_path])
    for text in (shown(tmp_path), (tmp_path / "results.md").read_text().replace(r"\|", "|")):
        assert "70.00 " in text
        assert "diverged, step 310: oct_resnet_tiny, α = 0, seed 1" in text
        assert "RuntimeError: [out] of | memory" in text
        assert "running: oct_resnet_tiny, α = 0, seed 3" in text
    note = "Runs without a result, not drawn: 1 diverged, 1 failed, 1 running."
    assert note in svg_texts(tmp_path / "accuracy_vs_macs.svg")


def test_a_sweep_without_any_result_still_gets_its_report(tmp_path: Path) -> None:
    add_run(tmp_path, status="failed", top1=None, macs=None)
    assert all(path.stat().st_size > 0 for path in write_report([tmp_path]))
    assert "no finished run" in svg_texts(tmp_path / "accuracy_vs_macs.svg")


def test_figure_says_what_it_shows_and_is_reproducible(tmp_path: Path) -> None:
    add_sweep(tmp_path / "runs", data="cost $5 or $6")
    add_sweep(tmp_path / "more")
    first = write_report([tmp_path / "runs", tmp_path / "more"], tmp_path / "a")
    second = write_report([tmp_path / "runs", tmp_path / "more"], tmp_path / "b")
    assert [path.name for path in first] == [
        "accuracy_vs_macs.png",
        "accuracy_vs_macs.svg",
        "results.csv",
        "results.md",
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    texts = svg_texts(first[1])
    assert "cost $5 or $6, 32 px, 8 epochs, 3 seeds a point" in texts
    assert "shapes (synthetic), 32 px, 8 epochs, 3 seeds a point" in texts
    assert [texts.count(f"{alpha:g}") for alpha in ALPHAS] == [2] * 5
    assert texts.count("20 M") == 2  # the axis of each panel


def test_points_are_means_with_their_spread_and_every_seed(tmp_path: Path) -> None:
    for seed, top1 in enumerate((70.0, 71.0, 75.0)):
        add_run(tmp_path, seed=seed, top1=top1)
    add_run(tmp_path, alpha=0.5, top1=60.0)  # one seed: no spread
    (ax,) = draw(tmp_path).axes
    (bar,) = [container for container in ax.containers if isinstance(container, ErrorbarContainer)]
    (segments,) = bar.lines[2]
    (segment,) = segments.get_segments()
    assert segment[:, 1] == pytest.approx([72 - 7**0.5, 72 + 7**0.5])
    drawn = [tuple(np.asarray(line.get_ydata())) for line in ax.lines]
    assert (72.0, 60.0) in drawn
    assert (70.0, 71.0, 75.0) in drawn


def pixel_boxes(ax: Axes) -> tuple[list[Bbox], FigureCanvasAgg]:
    canvas = ax.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()  # puts annotations at their places
    return [Text.get_window_extent(text, canvas.get_renderer()) for text in annotations(ax)], canvas


def sweep_of(kind: str, folder: Path) -> Path:
    """Sweeps whose labels have little room."""
    noise = np.random.default_rng(0)
    for model in ("oct_resnet_tiny", "oct_resnet26"):
        for i, alpha in enumerate(ALPHAS):
            for seed in range(2):
                values = {
                    "close": {"top1": 90 + noise.normal(0, 0.15), "macs": round(29e6 * (1 - 0.01 * alpha))},
                    "equal": {"top1": 100.0},
                    "one place": {"top1": 50.0, "macs": 29_000_000 + i},
                    "apart": {"top1": 70 + noise.normal(0, 1), "macs": 10 ** (7 + i)},
                    "published": {"top1": 76 - i, "data": "imagenet", "image_size_px": 224, "macs": 10**9 * (5 - i)},
                }[kind]
                add_run(folder, model, alpha, seed, **values)
    return folder


@pytest.mark.parametrize("kind", ["close", "equal", "one place", "apart", "published"])
def test_labels_lie_apart_inside_the_axes_and_off_the_points(kind: str, tmp_path: Path) -> None:
    (ax,) = draw(sweep_of(kind, tmp_path), published="all").axes
    boxes, canvas = pixel_boxes(ax)
    assert len(boxes) >= 10
    frame = ax.get_window_extent()
    assert all(frame.containsx(box.x0) and frame.containsx(box.x1) for box in boxes)
    assert all(frame.containsy(box.y0) and frame.containsy(box.y1) for box in boxes)
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    points = [ax.transData.transform(point) for line in ax.lines for point in np.asarray(line.get_xydata())]
    assert not [box for box in boxes for point in points if box.contains(*point)]
    paper = Bbox.from_bounds(0, 0, *canvas.get_width_height())
    whole = ax.get_tightbbox(canvas.get_renderer())
    assert whole is not None
    assert paper.x0 <= whole.x0 and whole.x1 <= paper.x1 and paper.y0 <= whole.y0 and whole.y1 <= paper.y1
    names = [label.get_window_extent(canvas.get_renderer()) for label in ax.get_xticklabels() if label.get_text()]
    assert not [pair for pair in combinations(names, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize(
    "macs",
    [
        [28_900_000, 29_000_000],
        [8_610_000, 29_000_000],
        [1_880_035_328, 4_089_184_256],
        [200_000_000, 15_000_000_000],
        [20_000_000],
        [9],
        [10**6, 10**11],
    ],
)
def test_log_axis_has_readable_true_ticks(macs: list[int], tmp_path: Path) -> None:
    for i, count in enumerate(macs):
        add_run(tmp_path, alpha=i / 8, macs=count)
    (ax,) = draw(tmp_path).axes
    assert ax.get_xscale() == "log"
    low, high = ax.get_xlim()
    ticks = {
        label.get_text(): at
        for at, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
        if low <= at <= high
    }
    assert 3 <= len(ticks) <= 15
    for text, at in ticks.items():
        number, _, unit = text.partition(" ")
        assert float(number) * UNITS.get(unit, 1) == pytest.approx(at, rel=1e-9)


def test_what_differs_is_not_mixed(tmp_path: Path) -> None:
    short, long = add_sweep(tmp_path / "short", epochs=8), add_sweep(tmp_path / "long", epochs=30)
    large = add_sweep(tmp_path / "large", image_size_px=64)
    again = add_sweep(tmp_path / "again", epochs=8)  # the same seeds: something that no summary tells differs
    small, big = draw(short, long, large).axes
    assert legend_texts(small)[:2] == ["resnet_tiny, 8 epochs", "resnet_tiny, 30 epochs"]
    assert legend_texts(big)[0] == "resnet_tiny"
    (both,) = draw(short, again).axes
    assert legend_texts(both)[:2] == ["oct_resnet_tiny (again)", "oct_resnet_tiny (short)"]
    assert {len(point.top1) for point in group_runs(read_summaries([short, long, large, again, short]))} == {3}


def test_the_vanilla_network_is_the_octave_networks_alpha_0(tmp_path: Path) -> None:
    add_run(tmp_path, "resnet26", 0, macs=100)
    add_run(tmp_path, "oct_resnet26", 0.5, macs=50)
    (ax,) = draw(tmp_path).axes
    assert legend_texts(ax)[:1] == ["resnet26"]
    assert re.search(r"oct_resnet26 +0\.5 .* 50\.0 ", shown(tmp_path))


@pytest.mark.parametrize("model", ["oct_resnet50", "oct_paper_resnet50"])
def test_published_points_of_the_same_network(model: str, tmp_path: Path) -> None:
    sweep = add_sweep(tmp_path / "imagenet", model, data="imagenet", image_size_px=224)
    (ax,) = draw(sweep).axes
    hollow = {tuple(np.asarray(line.get_ydata())) for line in ax.lines if line.get_linestyle() == ":"}
    # the authors' README table and that of d-li14's port, α upwards
    assert hollow == {(77.0, 78.2, 78.0, 77.4, 76.7), (77.15, 77.64)}
    assert legend_texts(ax)[-2:] == ["published: authors", "published: d-li14"]
    (ax,) = draw(sweep, published="all").axes
    assert any("mobilenetv2_1125" in text.get_text() for text in annotations(ax))
    (ax,) = draw(sweep, published="none").axes
    assert not any(line.get_linestyle() == ":" for line in ax.lines)
    other = add_sweep(tmp_path / "smaller", model, data="imagenet", image_size_px=128)
    assert not any(line.get_linestyle() == ":" for line in draw(other, published="all").axes[0].lines)


def test_table_keeps_every_number_at_80_columns(tmp_path: Path) -> None:
    for model in ("oct_resnet_tiny", "oct_paper_mobilenetv2_1125"):
        add_sweep(tmp_path, model, top1=12.34, macs=11_514_000_000)
    text = shown(tmp_path, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert len(re.findall(r" 3 12\.34 ± 0\.00 +90\.00 11\.5 G +100\.0 25\.6 M +812", text)) == 10


def plot(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs scripts/plot.py; returns its exit code."""
    script = Path(__file__).parents[1] / "scripts" / "plot.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_plot_prints_table_and_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_sweep(tmp_path / "runs")
    assert plot(monkeypatch, str(tmp_path / "runs"), "--output", str(tmp_path / "new" / "folder")) == 0
    *_, png, svg, table, markdown = capsys.readouterr().out.splitlines()
    assert all(Path(line).is_file() for line in (png, svg, table, markdown))
    assert Path(png).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("mistake", ["missing", "empty", "run", "broken", "list", "no top1", "text", "output"])
def test_mistakes_are_one_line_that_names_the_place(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(tmp_path / "runs", top1=None if mistake == "no top1" else 70.0, macs="9" if mistake == "text" else 9)
    (tmp_path / "empty").mkdir()
    summary = tmp_path / "runs" / "oct_resnet_tiny-a0-s0" / "summary.json"
    if mistake in ("broken", "list"):
        summary.write_text({"broken": '{"model": "oct_', "list": "[]"}[mistake])
    folder = {"missing": tmp_path / "missing", "empty": tmp_path / "empty", "run": summary.parent}
    named = {**folder, "output": summary}.get(mistake, summary)
    output = summary if mistake == "output" else tmp_path / "out"
    assert plot(monkeypatch, str(folder.get(mistake, tmp_path / "runs")), "--output", str(output)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(named) in line


def test_no_folder_is_made_for_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        write_report([tmp_path / "missing"], tmp_path / "out")
    assert not list(tmp_path.iterdir())
