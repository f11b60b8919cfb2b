"""SGD as the recipe says: which parameters decay, and the learning rate of each step."""

import math

import torch
from torch import nn

from octnet.options import RecipeConfig


def make_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; parameters of one dimension decay only with `recipe.decay_vectors`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {
            "params": [p for p in parameters if p.ndim <= 1],
            "weight_decay": recipe.weight_decay if recipe.decay_vectors else 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def learning_rate(step: int, steps_per_epoch: int, recipe: RecipeConfig) -> float:
    """The rate of a step (from 0): linear from 0 over the warm-up, then half a cosine to 0 at the end of training."""
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recipe.learning_rate * step / warmup
    done = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
