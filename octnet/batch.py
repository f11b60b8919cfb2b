"""How a batch reaches the network: device, normalisation, memory format, precision."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from octnet.augment import normalize
from octnet.options import Config, RecipeConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def to_device(batch: tuple[Tensor, Tensor], config: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) as normalised float32, labels (B,), on the device."""
    images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    images = normalize(images, config.data.mean, config.data.std)
    return images.contiguous(memory_format=memory_format(config.recipe)), labels


def autocast(recipe: RecipeConfig, device: torch.device) -> AbstractContextManager[None]:
    """Mixed precision as the recipe says."""
    dtype = DTYPES[recipe.precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def memory_format(recipe: RecipeConfig) -> torch.memory_format:
    """Of images and weights."""
    return torch.channels_last if recipe.channels_last else torch.contiguous_format
