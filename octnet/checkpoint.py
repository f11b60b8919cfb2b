"""Weights and training states as files: written whole or not at all, read without executing pickled code."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from octnet.options import UserError


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a state dict with the vanilla network's names."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    part = path.with_name(f"{path.name}.part")
    save_file(tensors, part)
    _rename(part, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict (.safetensors, or torch's format) strictly. Raises UserError naming file and difference."""
    model.load_state_dict(matching_weights(model, path))


def matching_weights(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The state dict in a file, names and shapes compared with the network's. Raises UserError naming the difference."""
    given, wanted = read_weights(path), model.state_dict()
    problems = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    problems += [f"{name} is not of this network" for name in given.keys() - wanted.keys()]
    problems += [
        f"{name} has the shape {tuple(given[name].shape)} where the network has {tuple(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if given[name].shape != wanted[name].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path}: of another network: {'; '.join(sorted(problems)[:3])}{more}")
    return given


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file or of a run's checkpoint (its EMA's where there is one). Raises UserError."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read as weights: {error}") from error
    state = read_state(path)
    state = state.get("ema") or state.get("model") or state.get("state_dict") or state
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: is not a state dict: it holds {', '.join(map(str, list(state)[:5]))}")
    return state


def save_state(state: dict[str, Any], path: Path) -> None:
    """Writes a training state: tensors, numbers, text, lists and dicts."""
    part = path.with_name(f"{path.name}.part")
    torch.save(state, part)
    _rename(part, path)


def read_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises UserError for a file that is not that."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: cannot be read as a checkpoint: damaged, or with code in it, which isn't run"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever it runs into: KeyError, AssertionError, …
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot be read as a checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: is not a checkpoint: it holds a {type(state).__name__}")
    return state


def _rename(part: Path, path: Path) -> None:
    """Puts the finished file in its place, on the disk before its name changes."""
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
