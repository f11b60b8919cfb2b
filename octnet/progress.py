"""What a run shows while it trains: a live line on a terminal, and a line an epoch everywhere."""

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from octnet.state import State

BAR = 20  # characters


@dataclass(frozen=True)
class Position:
    """A run's place in its sweep: the index-th (from 0) of `total`, and the mean seconds of those run before it."""

    index: int
    total: int
    mean_seconds: float | None = None


class Progress:
    """Shows one run on the terminal, if `shown`; a context manager, at whose end the live line is gone."""

    def __init__(self, name: str, epochs: int, position: Position, shown: bool) -> None:
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True, markup=False)
        self.live = Live(console=self.console, transient=True, auto_refresh=False)
        self.epochs = epochs
        self.position = position
        self.head = f"[{position.index + 1:{len(str(position.total))}}/{position.total}] {name}"
        self.begin: tuple[float, float] | None = None  # time and share done when the first step was seen

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.live.stop()

    def step(self, state: State, steps_per_epoch: int, loss: float, images_per_second: float) -> None:
        """Renews the live line."""
        share = (state.epoch + state.step / steps_per_epoch) / self.epochs
        self.begin = self.begin or (time.monotonic(), share)
        bar = "━" * round(BAR * share) + "╌" * (BAR - round(BAR * share))
        text = (
            f"{self.head} {bar} epoch {state.epoch + 1}/{self.epochs} {100 * state.step // steps_per_epoch:3}%  "
            f"loss {loss:.3f}  {images_per_second:,.0f} images/s{self._left(share)}"
        )
        self.live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Prints an epoch's line."""
        self.message(
            f"epoch {metrics['epoch']:{len(str(self.epochs))}}/{self.epochs}  loss {metrics['train_loss']:.3f}  "
            f"top-1 {metrics['top1']:5.2f} %  {metrics['images_per_second']:,.0f} images/s"
            f"{self._left(metrics['epoch'] / self.epochs)}"
        )

    def message(self, text: str) -> None:
        """Prints a line about the run."""
        self.console.print(f"{self.head}  {text}")

    def _left(self, share: float) -> str:
        """Time left of the run, and of the sweep if the runs to come take as long as those so far."""
        if self.begin is None or share <= self.begin[1]:
            return ""
        whole = (time.monotonic() - self.begin[0]) / (share - self.begin[1])
        left = whole * (1 - share)
        text = f"  {_clock(left)} left" if share < 1 else ""
        to_come = self.position.total - self.position.index - 1
        if to_come > 0:
            text += (
                f"{',' if text else ' '} sweep {_clock(left + to_come * (self.position.mean_seconds or whole))} left"
            )
        return text


def _clock(seconds: float) -> str:
    """“0:07”, “12:30”, “1:02:03”."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
