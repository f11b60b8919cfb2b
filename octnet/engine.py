"""Trains and evaluates one network: plain functions over a `State`, exact to the bit across interruptions."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn

from octnet.accuracy import evaluate_images
from octnet.batch import autocast, to_device
from octnet.checkpoint import save_weights
from octnet.data import open_images, train_steps
from octnet.optimizer import learning_rate
from octnet.options import Config
from octnet.processes import Processes
from octnet.randomness import step_seed
from octnet.readers import Images
from octnet.state import State, restore, save

CHECK_STEPS = 20  # steps between two looks at the loss: each waits for the GPU

Batches = Iterator[tuple[Tensor, Tensor]]
Metrics = dict[str, Any]


class Diverged(Exception):
    """The loss of a step (from 1, over all epochs) is not finite."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


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
            save(state, path, images.digest, processes)
            raise
        save(state, path, images.digest, processes)  # a break in the validation loses the validation only
        metrics = _end_epoch(state, val_images, config, processes)
        hooks.on_epoch(metrics)
    if processes.first:
        save_weights(state.measured, folder / "weights.safetensors")
    return metrics


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
        images, labels = to_device(next(batches), config, processes.device)
        targets: Tensor = labels
        if recipe.mixup_alpha > 0:
            np.random.seed(seed)  # one λ a step: timm's Mixup draws from numpy's global generator
            images, targets = _mixup(config, state.model)(images, labels)
        with processes.accumulate(model, last=i == passes - 1):
            with autocast(config.recipe, processes.device):
                logits = model(images)
                smoothing = recipe.label_smoothing if recipe.mixup_alpha == 0 else 0.0  # timm's targets are smoothed
                loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            state.scaler.scale(loss / passes).backward()
        total += loss.detach().float() / passes
        correct = (logits.detach().argmax(1) == labels).sum()
        state.totals += torch.stack([loss.detach() * len(labels), correct, torch.full_like(correct, len(labels))])
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
