"""Clipping activations (ReLU, ReLU6) of a pair's maps, compiled: with fewer bytes moved.

A residual sum's gradient is written once; a high map is written together with its pool (`inductor.with_pool`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from octnet.inductor import with_pool, written
from octnet.resampling import spread


class Bounds(NamedTuple):
    """What an activation clips to."""

    low: float
    high: float | None  # None: unbounded
    in_place: bool

    @classmethod
    def of(cls, func: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> "Bounds | None":
        """Of a call func(x, ...), whose arguments are F.hardtanh's by name; None where func does something else."""
        if func in (F.relu, torch.relu, torch.relu_):
            return cls(0.0, None, inplace or func is torch.relu_)
        if func is F.relu6:
            return cls(0.0, 6.0, inplace)
        return cls(min_val, max_val, inplace) if func is F.hardtanh else None

    def clip(self, x: Tensor) -> Tensor:
        """x between the bounds."""
        return torch.clamp(x, self.low, self.high)

    def pass_on(self, g: Tensor, x: Tensor) -> Tensor:
        """The gradient g of `clip(x)`, where x, or clip(x), is within the bounds."""
        clipped = x <= self.low if self.high is None else (x <= self.low) | (x >= self.high)
        return torch.where(clipped, 0, g)


class Step(Protocol):
    """What writes a map, of which what comes next can still become part."""

    def plus(self, residual: Tensor) -> "Step | None":
        """With a map of its size added; None where it can't be."""

    def clipped(self, bounds: Bounds, pools: bool) -> Sequence[Tensor]:
        """The map between the bounds, and its pool if that is wanted."""


def clip(x: Tensor, bounds: Bounds) -> Tensor:
    """x between the bounds."""
    y: Tensor = _Clip.apply(x, bounds, False)
    return y


def clip_with_pool(x: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """x (B, C, H, W) between the bounds, and its pool (B, C, H/2, W/2)."""
    y: tuple[Tensor, Tensor] = _Clip.apply(x, bounds, True)
    return y


class _Clip(torch.autograd.Function):
    """Keeps its output; the gradient, which a residual sum hands on to both of its sides, is written once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bounds: Bounds, pools: bool) -> Any:
        y = bounds.clip(x)
        y, pooled = with_pool(y) if pools else (y, None)
        ctx.save_for_backward(y)
        ctx.bounds = bounds
        return (y, pooled) if pools else y

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_pool: Tensor | None = None) -> Any:
        (y,) = ctx.saved_tensors
        g = g if g_pool is None else g + spread(g_pool / 4)
        return written(ctx.bounds.pass_on(g, y), False), None, None
