"""Builds the network that a configuration names: importing the package has registered the octave ones with timm."""

import difflib
from typing import Any

import timm
import torch
from torch import nn

from octnet.options import UserError


def build_network(name: str, alpha: float, kwargs: dict[str, Any], num_classes: int) -> nn.Module:
    """timm's model `name`; one with `oct_` at α = `alpha`, one without takes α = 0 only.

    Raises UserError for an unknown name, an α or keywords that the network doesn't take.
    """
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), 3)
        raise UserError(f"model.name={name}: timm knows no such model; the nearest are {', '.join(nearest) or 'oct_*'}")
    octave = name.startswith("oct_")
    if not octave and alpha != 0:
        raise UserError(f"model.alpha={alpha:g}: {name} has no α; write model.name=oct_{name}, or model.alpha=0")
    arguments: dict[str, Any] = {"num_classes": num_classes, **({"alpha": alpha} if octave else {})}
    for key in sorted(kwargs.keys() & {"alpha", "num_classes"}):
        raise UserError(f"model.kwargs.{key}: write {'model.alpha' if key == 'alpha' else 'data.num_classes'} instead")
    try:
        return timm.create_model(name, **arguments, **kwargs)
    except Exception as error:  # whatever a definition raises for arguments it can't take
        reason = " ".join((str(error) or type(error).__name__).split())
        raise UserError(f"model.name={name}, model.alpha={alpha:g}, model.kwargs={kwargs}: {reason}") from error


def own_preprocessing(name: str) -> dict[str, Any]:
    """`mean` and `std` (RGB in 0 to 1) and `interpolation` of the network's published evaluation: timm's `pretrained_cfg`.

    Raises UserError for a network that has none.
    """
    cfg = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None:
        raise UserError(
            f"model.name={name}: has no preprocessing of its own; give data.mean, data.std, data.val_interpolation"
        )
    return {"mean": list(cfg.mean), "std": list(cfg.std), "interpolation": cfg.interpolation}


def build_on_meta(name: str, alpha: float, kwargs: dict[str, Any], num_classes: int) -> nn.Module:
    """As `build_network`, without memory for the weights."""
    with torch.device("meta"):
        return build_network(name, alpha, kwargs, num_classes)
