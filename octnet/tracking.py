"""Weights & Biases, when asked for: one wandb run a run, its group the sweep, the same one when the run is continued."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octnet.options import Config
from octnet.run import read_summary


@contextmanager
def tracking(config: Config, folder: Path, on: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that logs an epoch's metrics; it does nothing where wandb is disabled or `on` is false."""
    if config.wandb.mode == "disabled" or not on:
        yield lambda metrics: None
        return
    import wandb  # slow to import, and off by default

    summary = read_summary(folder)
    run = wandb.init(
        project=config.wandb.project,
        entity=config.wandb.entity,
        mode="online" if config.wandb.mode == "online" else "offline",
        group=folder.parent.name,
        name=folder.name,
        id=summary["wandb_id"],
        resume="allow",
        dir=folder,
        config=asdict(config) | {key: summary[key] for key in ("macs", "params")},
        settings=wandb.Settings(silent=True, disable_git=True),
    )
    try:
        yield lambda metrics: run.log(metrics, step=metrics["epoch"])
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
