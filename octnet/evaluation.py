"""eval.py's command line: the accuracy of checkpoints, each on the images and at the settings that its run had."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from octnet.checks import check_gpus, check_values
from octnet.complexity import check_model
from octnet.config import compose_values, parse_flags
from octnet.options import Config, LaunchConfig, UserError, WandbConfig
from octnet.runconfig import load_config, make_config, shown

HELP = """\
Evaluates a checkpoint, or each run of a sweep: top-1 and top-5 on its validation images, each seen once.

  python eval.py checkpoint=runs/ablation/oct_resnet_tiny-a0.25-s0
      a run's result, with the configuration in its folder
  python eval.py checkpoint=runs/ablation
      each finished run of a sweep
  python eval.py checkpoint=runs/ablation data.image_size_px=48
      at another image size; any key of `python train.py --help` can be given, the command line wins
  python eval.py checkpoint=<run> model.alpha=0.5
      the same weights in the network of another α: another network, said in a warning
  python eval.py checkpoint=<run> data=imagefolder data.root=<dir>
      on other images of the same classes: <dir>/val/<class>/*.jpg
  python eval.py checkpoint=weights.safetensors model.name=oct_resnet50 model.alpha=0.5 data=imagenet data.root=<dir>
      weights without a run's folder
  python eval.py checkpoint=weights.safetensors model.name=oct_paper_resnet50 … data.root=<dir> eval=authors
      by the authors' protocol: short side 256, interpolated as OpenCV does, crop 224, the network's normalisation

checkpoint=  a run's folder, a sweep's folder, or a file: weights.safetensors, checkpoints/last.pt
eval=        default (as the run was validated) or authors; configs/eval/
Exit code: 0, or 2 for a mistake in the command.
"""


@dataclass(frozen=True)
class Target:
    """Weights to evaluate, and the configuration of the run they are from; None where there is none."""

    name: str
    weights: Path
    trained: Config | None


def main(argv: list[str]) -> int:
    """Runs eval.py's command; returns its exit code."""
    try:
        flags = parse_flags(argv)
        if flags.help or not argv:
            print(HELP, end="")
            return 0
        if flags.multirun or flags.cfg or flags.info or flags.hydra_help or flags.shell_completion:
            raise UserError("eval.py takes key=value and --help only")
        paths = [text.partition("=")[2] for text in flags.overrides if text.startswith("checkpoint=")]
        if not paths or not paths[-1]:
            compose_values({**asdict(Config()), "checkpoint": None}, flags.overrides, "eval")  # a misspelt key, perhaps
            raise UserError("checkpoint: not given; checkpoint=<a run's folder, a sweep's folder or a weights file>")
        jobs = [(target, compose(target, flags.overrides)) for target in find_targets(Path(paths[-1].strip("'\"")))]
        report([(target, config, evaluate_target(target, config)) for target, config in jobs])
    except UserError as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def find_targets(path: Path) -> list[Target]:
    """The weights that a path means. Raises UserError if there are none."""
    if path.is_file():
        homes = [folder for folder in (path.parent, path.parent.parent) if (folder / "config.yaml").is_file()]
        return [Target(path.name, path, load_config(homes[0] / "config.yaml") if homes else None)]
    if not path.is_dir():
        raise UserError(f"checkpoint={path}: there is no such file or folder")
    if (path / "config.yaml").is_file():
        return [Target(path.name, _weights_of(path), load_config(path / "config.yaml"))]
    runs = sorted(file.parent for file in path.glob("*/config.yaml"))
    finished = [run for run in runs if (run / "weights.safetensors").is_file()]
    for run in runs:
        if run not in finished:
            print(f"eval.py: {run} has no weights.safetensors yet: left out", file=sys.stderr)
    if not finished:
        raise UserError(f"checkpoint={path}: neither a run's folder nor one with finished runs in it")
    return [Target(run.name, run / "weights.safetensors", load_config(run / "config.yaml")) for run in finished]


def _weights_of(run: Path) -> Path:
    """A run's result, or where it is at present."""
    for file in (run / "weights.safetensors", run / "checkpoints" / "last.pt"):
        if file.is_file():
            return file
    raise UserError(f"checkpoint={run}: this run has saved no weights yet")


def compose(target: Target, overrides: list[str]) -> Config:
    """The run's configuration with the command line's on top, checked. Raises UserError."""
    for text in overrides:
        key, _, value = text.partition("=")
        if key.lstrip("+") in ("experiment", "hydra/launcher") or ("," in value and value[0] not in "[{'\""):
            raise UserError(f"{text}: eval.py takes one value a key, and no {key}; call it once for each")
    base = target.trained or Config()
    base.launch, base.wandb = LaunchConfig(), WandbConfig()  # where it was trained says nothing of where it's evaluated
    values = compose_values({**asdict(base), "checkpoint": None}, overrides, "eval")
    values.pop("checkpoint")
    config = make_config(values)
    if target.trained is None and not any(text.startswith(("model=", "model.name=")) for text in overrides):
        raise UserError(f"checkpoint={target.weights}: no config.yaml beside it; give model.name=, model.alpha=, data=")
    check_values(config)
    check_gpus(config, local=True)
    if (config.launch.gpus or 0) > 1 or (config.launch.processes or 1) > 1:
        raise UserError("launch: eval.py uses one process, on a GPU if there is one; launch.gpus=0 or 1")
    return config


def evaluate_target(target: Target, config: Config) -> dict[str, Any]:
    """Metrics of the weights on the validation images: top1 and top5 in percent. Raises UserError."""
    from octnet.accuracy import evaluate_images
    from octnet.checkpoint import load_weights
    from octnet.data import check_data, open_images
    from octnet.network import build_network
    from octnet.processes import join

    classes = check_data(config.data, train=False)
    model = config.model
    counts = check_model(model.name, model.alpha, model.kwargs, classes, config.data.image_size_px)
    if target.trained is not None and target.trained.model.alpha != model.alpha:
        was = target.trained.model.alpha
        print(
            f"eval.py: warning: {target.name} was trained at α = {was:g}; at α = {model.alpha:g} the same weights are "
            "another network: a starting point for training, not a result",
            file=sys.stderr,
        )
    gpu = torch.cuda.is_available() if config.launch.gpus is None else config.launch.gpus > 0
    with join(gpu, many=False) as processes:
        network = build_network(model.name, model.alpha, model.kwargs, classes)
        load_weights(network, target.weights)
        network.to(processes.device)
        images = open_images(config.data, train=False)
        _check_classes(target, images.classes)
        metrics = evaluate_images(network, images, config, processes)
    return metrics | {"images": len(images), "macs": counts.macs}


def _check_classes(target: Target, classes: list[str]) -> None:
    """Raises UserError if the run was trained on other classes than these."""
    homes = [folder / "classes.txt" for folder in (target.weights.parent, target.weights.parent.parent)]
    known = next((file.read_text().splitlines() for file in homes if file.is_file()), classes)
    if known != classes:
        i = next(i for i, pair in enumerate(zip(known, classes, strict=False)) if pair[0] != pair[1])
        raise UserError(f"data: class {i} is '{classes[i]}', but '{known[i]}' where {target.name} was trained")


def report(results: list[tuple[Target, Config, dict[str, Any]]]) -> None:
    """Prints a row for each evaluation."""
    table = Table(box=None, pad_edge=False)
    for column in ("checkpoint", "α", "data", "px", "images", "MACs (M)", "top-1 %", "top-5 %"):
        table.add_column(column, justify="left" if column in ("checkpoint", "data") else "right", overflow="fold")
    for row in _rows(results):
        table.add_row(*row)
    Console().print(table)


def _rows(results: list[tuple[Target, Config, dict[str, Any]]]) -> Iterator[list[str]]:
    for target, config, metrics in results:
        yield [
            target.name,
            shown(config.model.alpha),
            config.data.name,
            str(config.data.image_size_px),
            f"{metrics['images']:,}",
            f"{metrics['macs'] / 1e6:,.1f}",
            f"{metrics['top1']:.2f}",
            f"{metrics['top5']:.2f}",
        ]
