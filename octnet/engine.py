"""Trains and evaluates one network: plain functions over a `State`, exact to the bit across interruptions."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from octnet.augment import normalize
from octnet.checkpoint import load_weights, read_state, save_state, save_weights
from octnet.data import Images, open_images, train_steps, val_batches
from octnet.network import build_network
from octnet.optimizer import learning_rate, make_optimizer
from octnet.options import Config, DataConfig, UserError
from octnet.processes import Processes
from octnet.randomness import step_seed

CHECK_STEPS = 20  # steps between two looks at the loss: each waits for the GPU
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Batches = Iterator[tuple[Tensor, Tensor]]
Metrics = dict[str, Any]


class Diverged(Exception):
    """The loss of a step (from 1, over all epochs) is not finite."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


@dataclass
class State:
    """What is learned, and how far the run is: all that its continuation needs."""

    model: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch begun
    totals: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))  # of it: loss, correct, images
    seconds: float = 0.0  # of it, training

    @property
    def measured(self) -> nn.Module:
        """The network whose accuracy is the result: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module


@dataclass(frozen=True)
class Hooks:
    """What the engine tells and asks the outside while it runs."""

    on_step: Callable[[State, int, float, float], None]  # state, steps an epoch, loss, images a second; sometimes
    on_epoch: Callable[[Metrics], None]
    stop: Callable[[], bool]


def open_data(config: Config, processes: Processes) -> tuple[Images, Images]:
    """The images to train on, and those to validate with. Raises UserError."""
    return processes.first_before_others(
        lambda: (open_images(config.data, train=True), open_images(config.data, train=False))
    )


def train(
    state: State, images: Images, val_images: Images, config: Config, folder: Path, processes: Processes, hooks: Hooks
) -> Metrics:
    """Trains a fresh state to its end, from the folder's checkpoint if there is one; returns the last epoch's metrics.

    Raises UserError, Diverged, Interrupted.
    """
    path = folder / "checkpoints" / "last.pt"
    if path.exists():
        restore(state, path, images.digest, processes)
    if config.recipe.compile:
        state.model.compile()
    model = processes.parallel(state.model)
    steps = _steps(config, images, state, processes)
    metrics: Metrics = {}
    while state.epoch < config.recipe.epochs:
        try:
            train_epoch(state, model, steps, len(images), config, processes, hooks)
        except Interrupted:
            _save(state, path, images.digest, processes)
            raise
        metrics = _end_epoch(state, val_images, config, processes)
        hooks.on_epoch(metrics)
        _save(state, path, images.digest, processes)
    if not metrics:  # continued after its last epoch
        metrics = {"epoch": state.epoch, **evaluate_images(state.measured, val_images, config, processes)}
    if processes.first:
        save_weights(state.measured, folder / "weights.safetensors")
    return metrics


def start(config: Config, num_classes: int, device: torch.device) -> State:
    """The state before the first step. The weights are a function of the seed alone: the same on any device, at any α."""
    recipe = config.recipe
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not recipe.deterministic
        torch.use_deterministic_algorithms(recipe.deterministic, warn_only=True)
    torch.manual_seed(config.seed)
    model = build_network(config.model.name, config.model.alpha, config.model.kwargs, num_classes)
    if config.model.weights is not None:
        load_weights(model, Path(config.model.weights))
    model.to(device).to(memory_format=_memory_format(config))
    return State(
        model,
        make_optimizer(model, recipe),
        torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16"),
        None if recipe.ema_decay is None else ModelEmaV3(model, decay=recipe.ema_decay),
        totals=torch.zeros(3, dtype=torch.float64, device=device),
    )


def restore(state: State, path: Path, data_digest: str, processes: Processes) -> None:
    """Brings a fresh state to where the checkpoint was saved. Raises UserError if the images are others."""
    saved = read_state(path)
    if saved["data_digest"] != data_digest:
        raise UserError(f"{path}: was trained on other images than data.root holds now")
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.scaler.load_state_dict(saved["scaler"])
    if state.ema is not None:
        state.ema.module.load_state_dict(saved["ema"])
    state.epoch, state.step, state.seconds = saved["epoch"], saved["step"], saved["seconds"]
    if processes.first:  # it goes on with the sum of all
        state.totals.copy_(saved["totals"])


def _save(state: State, path: Path, data_digest: str, processes: Processes) -> None:
    """The state as a file. Random numbers need no state: they are functions of seed, epoch, index and step."""
    processes.share_buffers(state.model)
    totals = processes.sum(state.totals.clone())
    if not processes.first:
        return
    path.parent.mkdir(exist_ok=True)
    saved = {
        "data_digest": data_digest,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ema": None if state.ema is None else state.ema.module.state_dict(),
        "epoch": state.epoch,
        "step": state.step,
        "totals": totals,
        "seconds": state.seconds,
    }
    save_state(saved, path)


def _steps(config: Config, images: Images, state: State, processes: Processes) -> Batches:
    """The stream of training batches from where the run is."""
    recipe = config.recipe
    return train_steps(
        images,
        config.data,
        config.seed,
        recipe.batch_size,
        recipe.accumulation_steps,
        processes.rank,
        processes.world,
        (state.epoch, state.step),
    )


def train_epoch(
    state: State,
    model: nn.Module,
    batches: Batches,
    num_images: int,
    config: Config,
    processes: Processes,
    hooks: Hooks,
) -> None:
    """The remaining steps of the epoch begun. `model` is the state's, made parallel. Raises Diverged, Interrupted."""
    steps_per_epoch = num_images // config.recipe.batch_size
    not_finite = torch.zeros((), dtype=torch.int64, device=processes.device)  # the first such step, from 1
    model.train()
    first, begin = state.step, time.perf_counter()
    while state.step < steps_per_epoch:
        step = state.epoch * steps_per_epoch + state.step
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps_per_epoch, config.recipe)
        loss = train_step(state, model, batches, config, processes)
        not_finite = torch.where((not_finite == 0) & ~loss.isfinite(), step + 1, not_finite)
        state.step += 1
        if state.step % CHECK_STEPS == 0 or state.step in (first + 1, steps_per_epoch):
            _check_finite(not_finite, processes)  # waits for the GPU
            seconds = time.perf_counter() - begin
            hooks.on_step(
                state, steps_per_epoch, loss.item(), (state.step - first) * config.recipe.batch_size / seconds
            )
        if state.step < steps_per_epoch and processes.any(hooks.stop()):
            _check_finite(not_finite, processes)
            state.seconds += time.perf_counter() - begin
            raise Interrupted
    state.seconds += time.perf_counter() - begin


def train_step(state: State, model: nn.Module, batches: Batches, config: Config, processes: Processes) -> Tensor:
    """One step of the optimiser; returns the mean loss of this process's images, on the device."""
    recipe, passes = config.recipe, config.recipe.accumulation_steps
    seed = step_seed(config.seed, state.epoch, state.step)
    torch.manual_seed(seed + processes.rank)  # dropout, stochastic depth
    total = torch.zeros((), device=processes.device)
    for i in range(passes):
        images, labels = to_device(next(batches), config.data, processes.device)
        targets: Tensor = labels
        if recipe.mixup_alpha > 0:
            np.random.seed(seed)  # one λ a step: timm's Mixup draws from numpy's global generator
            images, targets = _mixup(config, state.model)(images, labels)
        with processes.accumulate(model, last=i == passes - 1):
            with autocast(config, processes.device):
                logits = model(_layout(images, config))
                smoothing = recipe.label_smoothing if recipe.mixup_alpha == 0 else 0.0  # timm's targets are smoothed
                loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            state.scaler.scale(loss / passes).backward()
        total += loss.detach().float() / passes
        correct = (logits.detach().argmax(1) == labels).sum()
        state.totals += torch.stack([loss.detach() * len(labels), correct, correct.new_tensor(len(labels))])
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update(state.model)
    return total


def _mixup(config: Config, model: nn.Module) -> Mixup:
    recipe = config.recipe
    return Mixup(recipe.mixup_alpha, label_smoothing=recipe.label_smoothing, num_classes=_num_classes(model))


def _num_classes(model: nn.Module) -> int:
    classes = model.num_classes
    assert isinstance(classes, int)
    return classes


def _check_finite(first_step: Tensor, processes: Processes) -> None:
    """Raises Diverged in every process, for the earliest step at which one of them lost finiteness."""
    steps = torch.zeros(processes.world, dtype=torch.int64, device=first_step.device)
    steps[processes.rank] = first_step
    found = [step for step in processes.sum(steps).tolist() if step > 0]
    if found:
        raise Diverged(min(found))


def _end_epoch(state: State, val_images: Images, config: Config, processes: Processes) -> Metrics:
    """Closes the epoch: validation, and the line of metrics.jsonl."""
    totals, seconds = processes.sum(state.totals.clone()), state.seconds
    loss, correct, count = totals.tolist()
    state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
    state.totals.zero_()
    metrics = {
        "epoch": state.epoch,
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "train_loss": loss / count,
        "train_top1": 100 * correct / count,
        **evaluate_images(state.measured, val_images, config, processes),
        "images_per_second": count / seconds,
    }
    if not math.isfinite(metrics["val_loss"]):
        raise Diverged(state.epoch * int(count // config.recipe.batch_size))
    return metrics


def evaluate_images(model: nn.Module, images: Images, config: Config, processes: Processes) -> Metrics:
    """Top-1 and top-5 in percent, and the loss, over each image once, whatever the number of processes."""
    processes.share_buffers(model)
    batch_size = max(1, config.recipe.batch_size // (processes.world * config.recipe.accumulation_steps))
    batches = val_batches(images, config.data, batch_size, processes.rank, processes.world)
    totals = processes.sum(evaluate(model, batches, config, processes.device))
    loss, top1, top5, count = totals.tolist()
    return {"val_loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], config: Config, device: torch.device
) -> Tensor:
    """Sums over the images, float64 (4,): loss, correct at 1, correct among 5 (or all, of fewer classes), images."""
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in batches:
        images, labels = to_device(batch, config.data, device)
        with autocast(config, device):
            logits = model(_layout(images, config))
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (B, 5)
        totals += torch.stack([loss, best[:, 0].sum(), best.sum(), best.new_tensor(len(labels), dtype=torch.int64)])
    return totals


def to_device(batch: tuple[Tensor, Tensor], data: DataConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) as normalised float32, labels (B,), on the device."""
    images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    return normalize(images, data.mean, data.std), labels


def autocast(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """Mixed precision as the recipe says."""
    dtype = DTYPES[config.recipe.precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _layout(images: Tensor, config: Config) -> Tensor:
    return images.contiguous(memory_format=_memory_format(config))


def _memory_format(config: Config) -> torch.memory_format:
    return torch.channels_last if config.recipe.channels_last else torch.contiguous_format
