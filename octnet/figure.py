"""The figure of the paper: top-1 accuracy against multiply-adds, a line a backbone, α at each point."""

import csv
import textwrap
from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from octnet.axes import set_axes
from octnet.labels import Label, place_labels
from octnet.table import Point, backbone, count_epochs, describe_data

# Okabe and Ito's palette without its yellow, which white paper swallows: colour-blind safe.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "oD^vsPX"
GREY = "#888888"
SOURCES = {"authors": "o", "d-li14": "s"}  # of published points, with their marker
HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markersize": 5}
RING: dict[str, Any] = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": "black"}
SEED: dict[str, Any] = {"marker": "o", "markersize": 3.4, "markeredgecolor": "white", "markeredgewidth": 0.5}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a $ in a name is a $
    "svg.fonttype": "none",
    "svg.hashsalt": "octnet",  # the same figure is the same file
}


@dataclass
class Marks:
    """What a panel holds: the labels still to be placed, and the lines and markers that they must keep clear of."""

    labels: list[Label] = field(default_factory=list)
    lines: list[np.ndarray] = field(default_factory=list)
    dots: list[tuple[float, float, float]] = field(default_factory=list)  # x, y, radius in points


def family(model: str) -> str:
    """The name shared by the authors' and timm's definitions of one network."""
    return backbone(model).removeprefix("paper_")


def published_rows(points: list[Point], which: str) -> list[dict[str, str]]:
    """The published results to draw beside one panel's points: all, matching (families that are drawn) or none."""
    if which == "none" or (points[0].data, points[0].image_size_px) != ("imagenet", 224):
        return []
    text = files("octnet").joinpath("paper_points.csv").read_text(encoding="utf-8")
    drawn = {family(point.model) for point in points}
    return [row for row in csv.DictReader(text.splitlines()) if which == "all" or family(row["model"]) in drawn]


def darker(color: str) -> tuple[float, float, float]:
    """A colour for small text on white."""
    red, green, blue = to_rgb(color)
    return 0.7 * red, 0.7 * green, 0.7 * blue


def draw_line(ax: Axes, points: list[Point], color: str, marker: str, x: str, marks: Marks) -> None:
    """One backbone: the line through the means, their spread, each seed, and a ring at α = 0."""
    xs, means = [getattr(point, x) for point in points], [point.mean for point in points]
    ax.plot(xs, means, color=color, marker=marker, markersize=6, linewidth=1.5, zorder=3)
    marks.lines.append(np.column_stack([xs, means]))
    for at, mean, point in zip(xs, means, points, strict=True):
        if point.spread is not None:
            ax.errorbar(at, mean, point.spread, color=color, capsize=3, linewidth=1, zorder=3)
            marks.lines.append(np.array([[at, mean - point.spread], [at, mean + point.spread]]))
            marks.dots += [(at, mean - point.spread, 3.5), (at, mean + point.spread, 3.5)]
        if point.alpha == 0:
            ax.plot(at, mean, linestyle="", zorder=4, **RING)
        ax.plot([at] * len(point.top1), point.top1, linestyle="", color=color, zorder=5, **SEED)
        marks.dots += [(at, mean, 6.5 if point.alpha == 0 else 4), *((at, top1, 2.5) for top1 in point.top1)]
        marks.labels.append(Label(at, mean, f"{point.alpha:g}", darker(color)))


def draw_published(ax: Axes, rows: list[dict[str, str]], colors: dict[str, str], marks: Marks) -> None:
    """Published points, hollow: in their family's colour, or grey and named where the family is not drawn."""

    def key(row: dict[str, str]) -> tuple[str, str]:
        return row["model"], next(source for source in SOURCES if row["source"].startswith(source))

    for (model, source), group in groupby(sorted(rows, key=key), key):
        line = sorted((float(row["alpha"]), int(row["macs"]), float(row["top1"])) for row in group)
        path = np.array([(macs, top1) for _, macs, top1 in line])
        color = colors.get(family(model), GREY)
        ax.plot(*path.T, color=color, marker=SOURCES[source], linestyle=":", linewidth=1, zorder=2, **HOLLOW)
        marks.lines.append(path)
        marks.dots += [(macs, top1, 3.5) for _, macs, top1 in line]
        texts = [f"{alpha:g}" for alpha, _, _ in line]
        if family(model) not in colors:
            # Only a name: the α of forty published points would leave no room for our own.
            texts = [model if len(line) > 1 else f"{model}, α = {texts[0]}"]
        labels = zip(line, texts, strict=False)
        marks.labels += [Label(macs, top1, text, darker(color), "italic") for (_, macs, top1), text in labels]


def add_legend(ax: Axes, points: list[Point], rows: list[dict[str, str]], lines: list[Line2D]) -> None:
    """The lines, and what each kind of mark means, to the right of the axes."""
    blank: dict[str, Any] = {"color": "0.3", "linestyle": ""}
    keys = [Line2D([], [], label="each seed", **SEED, **blank)] if points else []
    if any(point.spread is not None for point in points):
        keys.append(Line2D([], [], label="± standard deviation", marker="|", markersize=12, **blank))
    if any(point.alpha == 0 for point in points):
        keys.append(Line2D([], [], label="α = 0, the vanilla network", linestyle="", **RING))
    for source, marker in SOURCES.items():
        if any(row["source"].startswith(source) for row in rows):
            label = f"published: {source}"
            keys.append(Line2D([], [], label=label, color="0.3", marker=marker, linestyle=":", **HOLLOW))
    ax.legend(
        handles=[*lines, *keys],
        title="numbers at the points: α",
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        alignment="left",
        labelspacing=0.8,
    )


def draw_panel(ax: Axes, points: list[Point], published: str, x: str, x_label: str) -> Marks:
    """One data set at one image size with title, axes and legend; returns the marks that its labels need.

    `x` names the column of the points that the x axis shows.
    """
    marks, lines = Marks(), []
    colors: dict[str, str] = {}  # of a family
    epochs = sorted({point.epochs for point in points})
    counts = sorted({len(point.top1) for point in points})
    for i, ((name, n), group) in enumerate(groupby(points, lambda point: (point.line, point.epochs))):
        turn = i + i // len(COLORS)  # the eighth line has the first one's colour, and another marker
        members, style = list(group), (COLORS[i % len(COLORS)], MARKERS[turn % len(MARKERS)])
        draw_line(ax, members, *style, x, marks)
        colors.setdefault(family(members[0].model), style[0])
        label = textwrap.fill(f"{name}, {count_epochs(n)}" if len(epochs) > 1 else name, 26)
        lines.append(Line2D([], [], color=style[0], marker=style[1], label=label))
    rows = published_rows(points, published) if x == "macs" else []
    draw_published(ax, rows, colors, marks)
    set_axes(ax, *zip(*np.concatenate([*marks.lines, np.array(marks.dots)[:, :2]]), strict=True))
    add_legend(ax, points, rows, lines)
    facts = (
        describe_data(points[0].data, points[0].image_size_px),
        " and ".join(map(count_epochs, epochs)),
        f"{'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seed{'s' if counts[-1] > 1 else ''} a point",
    )
    ax.set_title(textwrap.fill(", ".join(facts), 80), loc="left")
    ax.set_xlabel(f"{x_label} (log scale)")
    ax.set_ylabel("top-1 accuracy, last epoch (%)")
    return marks


def draw_figure(
    points: list[Point],
    missing: list[str],
    published: str = "matching",
    x: str = "macs",
    x_label: str = "MACs: multiply-adds for one image",
) -> Figure:
    """A panel for each data set and image size; `missing` is the status of each run that has no result.

    `x` names the column of the points that the x axis shows; published points have only MACs.
    """
    panels = [list(group) for _, group in groupby(points, lambda point: (point.data, point.image_size_px))]
    with rc_context(STYLE):
        height = max(1, len(panels)) * (4.8 if published != "all" else 6.5)
        figure = Figure(figsize=(9.5, height), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(max(1, len(panels)), squeeze=False)[:, 0]
        marks = [draw_panel(ax, group, published, x, x_label) for ax, group in zip(axes, panels, strict=False)]
        if not panels:
            axes[0].set_axis_off()
            axes[0].text(0.5, 0.5, "no finished run", ha="center", transform=axes[0].transAxes)
        if missing:
            text = ", ".join(f"{count} {status}" for status, count in sorted(Counter(missing).items()))
            figure.supxlabel(f"Runs without a result, not drawn: {text}.", fontsize=9)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # from here on no axes move: labels are placed in pixels
        for ax, mark in zip(axes, marks, strict=False):
            place_labels(ax, mark.labels, mark.lines, np.array(mark.dots))
    return figure


def save_figure(figure: Figure, paths: list[Path]) -> None:
    """Writes the figure once for each path, by its suffix; an SVG holds its text as text and no date."""
    with rc_context(STYLE):
        for path in paths:
            figure.savefig(path, **({"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 200}))
