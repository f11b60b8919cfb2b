"""A run is a folder named by what it is; its `summary.json` is the one record that reports read."""

import fcntl
import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from octnet.augment import RESIZE
from octnet.data import open_images
from octnet.options import Config, DataConfig, UserError
from octnet.runconfig import differing_keys, load_config, save_config

FINISHED = ("done", "diverged")  # results: they stay
TRAINING = ".training"  # held by the first training process, which may outlive its parent for a step
LIBRARIES = ("octnet", "torch", "torchvision", "timm", "numpy", "simplejpeg", "pillow")


def run_folder(config: Config) -> Path:
    """`<output_dir>/<model>-a<alpha>-s<seed>`, α without trailing zeros."""
    return Path(config.output_dir) / f"{config.model.name}-a{config.model.alpha:g}-s{config.seed}"


def check_folder(config: Config) -> None:
    """Raises UserError, naming the keys, if the run's folder holds another configuration, or if it is in use."""
    folder = run_folder(config)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={config.output_dir}: {folder} is a file; a run needs a folder there")
    if (folder / "config.yaml").exists():
        there = load_config(folder / "config.yaml")
        differing = differing_keys(there, config)
        images = read_summary(folder).get("data_digest")
        if there.data.root != config.data.root and images is not None and digest(config.data) != images:
            differing.append(f"data.root ({there.data.root}, now other images in {config.data.root})")
        if differing:
            raise UserError(
                f"{folder} holds a run with other values: {', '.join(differing)}; "
                "give them as they were to continue it, or another output_dir"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            pass
    except OSError as error:
        raise UserError(f"output_dir={config.output_dir}: can't be written: {error.strerror}") from error


def digest(data: DataConfig) -> str:
    """What identifies the images of both splits."""
    return f"{open_images(data, train=True).digest}-{open_images(data, train=False).digest}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run's folder for this process; raises UserError if another has it, or trains in it without a parent."""
    with held(folder, ".lock"):
        with held(folder, TRAINING):
            pass
        yield


@contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Holds one lock file; raises UserError if another process does. Freed when the process ends, however it ends."""
    with open(folder / name, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(f"{folder} is in use by {file.read().strip() or 'another process'}") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def open_run(config: Config) -> Path:
    """Makes the run's folder, with config.yaml and a summary, or finds it again. Call it inside `locked`."""
    folder = run_folder(config)
    summary = read_summary(folder)
    if summary.get("status") not in FINISHED:
        save_config(config, folder / "config.yaml")
        write_summary(
            folder,
            model=config.model.name,
            alpha=config.model.alpha,
            seed=config.seed,
            status="running",
            epochs=config.recipe.epochs,
            image_size_px=config.data.image_size_px,
            data=config.data.name,
            error=None,
            wandb_id=summary.get("wandb_id") or secrets.token_hex(8),
        )
    return folder


def read_summary(folder: Path) -> dict[str, Any]:
    """The run's record; {} if there is none yet. Raises UserError naming a file that is not one."""
    path = folder / "summary.json"
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a summary: {error}") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path}: is not a summary")
    return summary


def write_summary(folder: Path, **values: Any) -> None:
    """Sets values of the run's record; the file is replaced as a whole."""
    _replace(folder / "summary.json", json.dumps(read_summary(folder) | values, indent=2, ensure_ascii=False) + "\n")


def record_epoch(folder: Path, metrics: dict[str, Any]) -> None:
    """Puts an epoch's line into metrics.jsonl; lines of this epoch or later, from before a break, go."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    lines = [line for line in lines if json.loads(line)["epoch"] < metrics["epoch"]]
    _replace(path, "\n".join([*lines, json.dumps(metrics)]) + "\n")


def provenance(device: torch.device, processes: int) -> dict[str, Any]:
    """Where a result was made: versions, git commit, device, image decoder and resize."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {
        "device": name,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "decoder": f"simplejpeg {versions['simplejpeg']}; Pillow {versions['pillow']} for other formats than JPEG",
        "resize": RESIZE,
        "python": platform.python_version(),
        "versions": versions,
        "git_commit": _git_commit(),
    }


def _cpu_name() -> str:
    """The processor as /proc/cpuinfo names it, with the cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def _git_commit() -> str | None:
    """The commit of octnet's checkout, with `+` if files differ from it; None outside of one."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty=+",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)
