"""Labels beside the points of a plot, placed so that none lies on a point, a line or another label."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

ANGLES = np.deg2rad(list(dict.fromkeys([90, 270, 45, 135, 315, 225, 0, 180, *range(15, 360, 15)])))  # first free wins
DIRECTIONS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
DISTANCES = np.concatenate([np.arange(5.0, 20.0, 2.5), np.arange(22.0, 160.0, 6.0)])  # points, marker to label
NEAR = 13.0  # a label further from its marker (points) gets a leader


@dataclass(frozen=True)
class Label:
    """A text for the point (x, y) in data coordinates."""

    x: float
    y: float
    text: str
    color: tuple[float, float, float]
    style: str = "normal"


def boxes_along(path: np.ndarray, radius: float) -> np.ndarray:
    """Small boxes (n, 4: left, bottom, right, top) that cover a polyline (m, 2) of pixels."""
    pieces = [
        np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / (1.5 * radius))) for start, end in pairwise(path)
    ]
    dots = np.concatenate([path, *pieces])
    return np.hstack([dots - radius, dots + radius])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of the others (m, 4) each box (n, 4) touches."""
    left, bottom, right, top = boxes.T[:, :, None]
    touch = (left < others[:, 2]) & (others[:, 0] < right) & (bottom < others[:, 3]) & (others[:, 1] < top)
    return touch.sum(1)


def find_place(
    point: np.ndarray, half: np.ndarray, taken: np.ndarray, solid: np.ndarray, frame: np.ndarray, pixels: float
) -> tuple[np.ndarray, np.ndarray]:
    """The offset (2) from a point to its label's centre, and its leader's boxes (n, 4), none if it is near; in pixels.

    `half` is half the label's size, `taken` what it may not touch, `solid` what its leader should not cross either.
    """
    distances = np.repeat(DISTANCES, len(DIRECTIONS))  # nearest first
    directions = np.tile(DIRECTIONS, (len(DISTANCES), 1))
    offsets = directions * (distances[:, None] * pixels + half)
    boxes = np.hstack([point + offsets - half - pixels, point + offsets + half + pixels])
    outside = (boxes[:, :2] < frame[:2]).any(1) | (boxes[:, 2:] > frame[2:]).any(1)
    reach = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None]
    cost = overlaps(boxes, taken[overlaps(taken, reach) > 0]) + 1000 * outside
    others = solid[(np.abs(solid[:, :2] + solid[:, 2:] - 2 * point) > 2).any(1)]  # without the point's own markers
    lowest, place = np.inf, (offsets[0], np.empty((0, 4)))
    for i in np.flatnonzero(cost == cost.min()):
        if distances[i] >= lowest:
            break
        path = np.stack([point, point + offsets[i]])
        leader = boxes_along(path, pixels / 2) if distances[i] > NEAR else np.empty((0, 4))
        price = distances[i] + 60 * np.count_nonzero(overlaps(others, leader))  # a crossing is worth 60 points of way
        if price < lowest:
            lowest, place = price, (offsets[i], leader)
    return place


def place_labels(ax: Axes, labels: list[Label], lines: list[np.ndarray], dots: np.ndarray, size: float = 8) -> None:
    """Writes each label at the nearest free place around its point; limits and layout of the axes must be final.

    `lines`: polylines (m, 2) and `dots`: markers (n, 3: x, y, radius in points) to keep clear of, in data coordinates.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    assert isinstance(figure.canvas, FigureCanvasAgg)
    renderer, pixels = figure.canvas.get_renderer(), figure.dpi / 72  # pixels in a point
    centres, radii = ax.transData.transform(dots[:, :2]), dots[:, 2:] * pixels
    solid = np.hstack([centres - radii, centres + radii])
    taken = np.concatenate([solid, *(boxes_along(ax.transData.transform(line), pixels) for line in lines)])
    for label in labels:
        probe = ax.text(0, 0, label.text, fontsize=size, fontstyle=label.style)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        half = np.array([extent.width, extent.height]) / 2
        point = ax.transData.transform((label.x, label.y))
        offset, leader = find_place(point, half, taken, solid, np.array(ax.get_window_extent().extents), pixels)
        ax.annotate(
            label.text,
            (label.x, label.y),
            xytext=tuple(offset / pixels),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            fontstyle=label.style,
            color=label.color,
            zorder=6 if len(leader) else 7,  # a leader that has to cross a label passes behind it
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": label.color, "shrinkA": 0} if len(leader) else None,
        )
        box = np.concatenate([point + offset - half - pixels, point + offset + half + pixels])[None]
        solid = np.concatenate([solid, box])
        taken = np.concatenate([taken, box, leader])
