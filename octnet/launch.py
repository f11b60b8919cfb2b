"""Starts the processes of a run with TorchElastic, from the one process that composed its configuration."""

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from octnet.complexity import measure
from octnet.engine import Diverged, Hooks, Interrupted, Metrics, open_data, train
from octnet.options import Config, UserError
from octnet.processes import Processes, join
from octnet.progress import Position, Progress
from octnet.run import (
    FINISHED,
    TRAINING,
    held,
    locked,
    open_run,
    provenance,
    read_summary,
    record_epoch,
    run_folder,
    write_summary,
)
from octnet.state import start
from octnet.tracking import tracking

log = logging.getLogger("octnet")

ELASTIC_LOGGERS = (
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.rendezvous.dynamic_rendezvous",
)
EXIT_INTERRUPTED = 130
SECONDS_TO_STOP = "120"  # for the step in progress and the checkpoint, after Ctrl-C or Slurm's signal

_durations: list[float] = []  # seconds of this process's runs, for the time that the sweep will take


def execute(config: Config, index: int = 0, total: int = 1) -> str:
    """Runs one run to its end, or skips a finished one; returns its status (as in summary.json), never raises for a failure.

    `index` (from 0) of `total` is its place in the sweep. Raises UserError for a folder that another process has.
    """
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    mean = sum(_durations) / len(_durations) if _durations else None
    position = Position(index, total, mean)
    with locked(folder):
        open_run(config)
        summary = read_summary(folder)
        if summary["status"] in FINISHED:
            _show(config, position, f"{_result(summary)} (finished before: skipped)")
            return str(summary["status"])
        begin = time.monotonic()
        interrupted = _start_processes(config, folder, position)
        summary = read_summary(folder)
        if summary["status"] == "running":  # the processes are gone without a word, killed perhaps
            write_summary(folder, status="failed", error="the training process ended without a result; killed?")
            summary = read_summary(folder)
        _show(
            config,
            position,
            _result(summary) + (f": see {folder / 'train.log'}" if summary["status"] == "failed" else ""),
        )
        if summary["status"] in FINISHED:
            _durations.append(time.monotonic() - begin)
        if interrupted and summary["status"] != "interrupted":  # the run had just ended; the sweep is to stop
            raise KeyboardInterrupt
        return str(summary["status"])


def _start_processes(config: Config, folder: Path, position: Position) -> bool:
    """One process a GPU, or `launch.processes` on the CPU; returns when all have ended: whether they were asked to."""
    gpus = config.launch.gpus if config.launch.gpus is not None else min(1, torch.cuda.device_count())
    processes = config.launch.processes if config.launch.processes is not None else max(1, gpus)
    if gpus > 0 and config.recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    for name in ELASTIC_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they warn of, our own lines say
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_STOP)  # torch 2.11 doesn't know it: 30 there
    multiprocessing.set_forkserver_preload([__name__])  # a fork of it has torch imported
    launch = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            start_method="forkserver",
            run_id=folder.name,
        ),
        run_process,
    )
    try:
        launch(config, folder, gpus > 0, position, os.getpid())
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if read_summary(folder)["status"] == "running":
            write_summary(folder, status="failed", error=f"process {rank} ended with exit code {failure.exitcode}")
    except SignalException:
        if read_summary(folder)["status"] == "running":
            write_summary(folder, status="interrupted")
        return True
    return False


def run_process(config: Config, folder: Path, gpu: bool, position: Position, parent: int) -> None:
    """A training process of a run: trains, and writes how it ended into the run's folder. Raises what made it fail."""
    _log_to(folder / "train.log")
    try:
        with stop_signals(parent) as stop, join(gpu, many=True) as processes:
            try:
                with held(folder, TRAINING) if processes.first else nullcontext():
                    values = _train(config, folder, processes, position, stop)
            except Diverged as end:
                values = {"status": "diverged", "diverged_step": end.step}
            except Interrupted:
                values = {"status": "interrupted"}
            if processes.first:
                write_summary(folder, **values)
                log.info("%s", values)
            if stop():
                sys.exit(EXIT_INTERRUPTED)  # a return would wait for TorchElastic, which waits for this process
    except Exception as error:
        log.error("%s", traceback.format_exc())
        if read_summary(folder)["status"] == "running":  # of several processes, the others fail because the first did
            write_summary(folder, status="failed", error=_last_line(error))
        raise


def _train(
    config: Config, folder: Path, processes: Processes, position: Position, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Trains with everything that looks on; returns the values of a finished run's summary."""
    images, val_images = open_data(config, processes)
    state = start(config, len(images.classes), processes.device)
    if processes.first:
        counts = measure(state.model, config.data.image_size_px, config.model.name)
        (folder / "classes.txt").write_text("\n".join(images.classes) + "\n")
        write_summary(
            folder,
            macs=counts.macs,
            params=counts.params,
            data_digest=f"{images.digest}-{val_images.digest}",
            reader=images.source,
            **provenance(processes.device, processes.world),
        )
    with (
        Progress(folder.name, config.recipe.epochs, position, shown=processes.first) as progress,
        tracking(config, folder, on=processes.first) as track,
    ):

        def on_epoch(metrics: Metrics) -> None:
            if processes.first:
                record_epoch(folder, metrics)
                log.info("%s", metrics)
            progress.epoch(metrics)
            track(metrics)

        hooks = Hooks(progress.step, on_epoch, stop)
        metrics = train(state, images, val_images, config, folder, processes, hooks)
    return {"status": "done"} | {key: metrics.get(key) for key in ("top1", "top5", "images_per_second")}


@contextmanager
def stop_signals(parent: int) -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM only set a flag, which the training loop asks for, as for the parent's death."""
    received: list[int] = []

    def stop() -> bool:
        return bool(received) or not Path(f"/proc/{parent}").exists()

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _log_to(path: Path) -> None:
    """Sends this process's log to the run's train.log."""
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def _last_line(error: BaseException) -> str:
    """The gist of an error; a loader process's has its traceback before it."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}" if not isinstance(error, UserError) else lines[-1]


def _show(config: Config, position: Position, text: str) -> None:
    Progress(run_folder(config).name, config.recipe.epochs, position, shown=True).message(text)


def _result(summary: dict[str, Any]) -> str:
    """How a run ended, in words."""
    if summary["status"] == "done":
        return f"done: top-1 {summary['top1']:.2f} %"
    if summary["status"] == "diverged":
        return f"diverged: the loss of step {summary['diverged_step']} is not finite"
    if summary["status"] == "failed":
        return f"failed: {summary['error']}"
    return f"{summary['status']}; the same command continues it"
