"""Operations that tell Inductor where maps are written: a high one together with its pool, in one pass over memory.

Such a pass runs over the low resolution; each step reads and writes a cell of 2×2 pixels of the high map. Inductor doesn't
find it: it fuses no pool with the pass that its input comes from. Elsewhere (eager, another compiler, a map that isn't
channels last) the operations are what they say: copies and a pool.
"""

from typing import Any

import torch
from torch import Tensor, library

from octnet.compiling import compiles
from octnet.resampling import pool, spread

# Where such passes are made. On a GPU they move less (counted, not measured: results/speed/README.md); on a CPU, where
# Inductor writes into the maps that it reads, those of ResNet-50's inference took 14 instead of 11 ms
DEVICES = {"cuda"}


def fuses(x: Tensor) -> bool:
    """Whether x is compiled for a device where such passes pay."""
    return compiles() and x.device.type in DEVICES


# Inductor's cache on disk knows these operations by their names alone: count up when what becomes of them changes
NAMESPACE = "octnet_2"


@library.custom_op(f"{NAMESPACE}::with_pool", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def with_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, C, H, W) and pool(x) (B, C, H/2, W/2), written in the pass that makes x."""
    return x.clone(), pool(x)


@library.custom_op(f"{NAMESPACE}::written", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def written(x: Tensor, cells: bool) -> Tensor:
    """x (B, C, H, W), written out and read from there; by `cells` in a pass of `with_pool`, where that reads the same."""
    return x.clone()


@library.custom_op(f"{NAMESPACE}::apart", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def apart(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x for three readers, each of which makes it for itself: it isn't written."""
    return x.clone(), x.clone(), x.clone()


def _register_lowerings() -> None:
    """When the first of these operations is traced: importing Inductor takes a second."""
    import octnet.lowering  # noqa: F401


@with_pool.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    _register_lowerings()
    return torch.empty_like(x), pool(x)


@written.register_fake
def _(x: Tensor, cells: bool) -> Tensor:
    _register_lowerings()
    return torch.empty_like(x)


@apart.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _register_lowerings()
    return torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)


def _with_pool_backward(ctx: Any, g: Tensor | None, g_pool: Tensor | None) -> Tensor | None:
    if g is None or g_pool is None:
        return g if g_pool is None else spread(g_pool / 4)
    return g + spread(g_pool / 4)


with_pool.register_autograd(_with_pool_backward)
written.register_autograd(lambda ctx, g: (g, None))
