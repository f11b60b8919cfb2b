"""What a run prints: place in the sweep, figures, time left."""

import io
from typing import Any

import pytest
from rich.console import Console

from octnet import progress
from octnet.progress import Position, Progress


class Place:
    """As much of a State as is shown."""

    def __init__(self, epoch: int, step: int) -> None:
        self.epoch, self.step = epoch, step


def shown(position: Position, monkeypatch: pytest.MonkeyPatch, width: int = 120) -> tuple[Progress, io.StringIO]:
    text = io.StringIO()
    made = Progress("net-a0.5-s0", 4, position, shown=True)
    made.console = Console(file=text, width=width, soft_wrap=True, highlight=False, markup=False)
    clock = iter(range(0, 1000, 30))  # every look at the clock is 30 s after the last
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    return made, text


METRICS: dict[str, Any] = {"epoch": 1, "train_loss": 1.25, "top1": 43.21, "images_per_second": 1234.5}


def test_a_line_an_epoch_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the run took 30 s: 3 minutes more, and two more runs of 4 minutes each."""
    made, text = shown(Position(1, 4), monkeypatch)
    state: Any = Place(0, 5)
    made.step(state, 10, 2.0, 1000.0)
    made.epoch(METRICS)
    line = text.getvalue()
    assert line.startswith("[2/4] net-a0.5-s0  epoch 1/4  loss 1.250  top-1 43.21 %  1,234 images/s")
    assert line.rstrip().endswith("3:00 left, sweep 11:00 left")


def test_runs_before_tell_how_long_the_next_ones_take(monkeypatch: pytest.MonkeyPatch) -> None:
    made, text = shown(Position(2, 4, mean_seconds=3600), monkeypatch)
    state: Any = Place(0, 0)
    made.step(state, 10, 2.0, 1000.0)
    made.epoch(METRICS | {"epoch": 4})
    assert text.getvalue().rstrip().endswith("sweep 1:00:00 left")


def test_nothing_of_the_other_processes(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("net", 1, Position(0, 1), shown=False) as made:
        made.message("hello")
    assert capsys.readouterr().out == ""
