"""The axes of the figure: multiply-adds on a logarithmic scale, accuracy in percent."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from octnet.table import split_unit


def log_ticks(low: float, high: float) -> list[float]:
    """Four or more round numbers from low to high: matplotlib labels only powers of ten, and a sweep may hold none."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [tick for tick in np.outer(powers, digits).ravel() if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    locator = MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], min_n_ticks=4)
    return [tick for tick in locator.tick_values(low, high) if low <= tick <= high]


def format_tick(value: float, _: object = None) -> str:
    """A round number with its unit: 2.5 G."""
    scaled, unit = split_unit(value)
    return f"{scaled:.6g}{unit}"


def set_axes(ax: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Limits with room for labels, a log x axis with readable ticks, and y ticks within 0 to 100 %."""
    room = max((max(xs) / min(xs)) ** 0.09, 1.01)
    low, high = min(xs) / room, max(xs) * room
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    ax.xaxis.set_major_formatter(FuncFormatter(format_tick))
    ax.xaxis.set_minor_locator(NullLocator())
    room = max(0.12 * (max(ys) - min(ys)), 0.2)
    low, high = min(ys) - room, max(ys) + room
    ax.set_ylim(low, high)
    ticks = MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    ax.set_yticks([tick for tick in ticks if max(low, 0) <= tick <= min(high, 100)])
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
