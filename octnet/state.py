"""The state of a training run, from its first step to its last, in memory and as a checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from octnet.batch import memory_format
from octnet.checkpoint import load_weights, read_state, save_state
from octnet.network import build_network
from octnet.optimizer import make_optimizer
from octnet.options import Config, UserError
from octnet.processes import Processes


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
    model.to(device).to(memory_format=memory_format(config.recipe))
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


def save(state: State, path: Path, data_digest: str, processes: Processes) -> None:
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
