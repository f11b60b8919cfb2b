"""Batch norm of a pair's maps for compiled training, with the clipping activation after it: with fewer bytes moved.

What is saved over PyTorch's own, which stay the reference (and all that runs elsewhere):
- the backward pass finds out where an activation clipped from the norm's input, which it reads anyway, not from its output;
- the sum Y_H that a norm takes is written in the pass that normalises it, not in one before.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octnet.clipping import Bounds
from octnet.inductor import apart, with_pool, written
from octnet.pointwise import Moments


class Batch(NamedTuple):
    """A map (B, C, H, W) and all that normalises it: mean and 1/σ (1, C, 1, 1), weight and bias (C)."""

    x: Tensor
    mean: Tensor
    rstd: Tensor
    weight: Tensor
    bias: Tensor
    high: bool  # of the two frequencies

    @classmethod
    def of(
        cls, x: Tensor, vectors: Sequence[Any], momentum: float, eps: float, high: bool, moments: Moments | None = None
    ) -> "Batch":
        """With the statistics of x, from its moments where they are known.

        `vectors` are running mean and variance (updated as by F.batch_norm), weight, bias.
        """
        running_mean, running_var, weight, bias = vectors
        with torch.no_grad():
            n = x.numel() // x.shape[1]
            if moments is None:
                var, mean = torch.var_mean(_wide(x), (0, 2, 3), correction=0, keepdim=True)
            else:
                var, mean = moments.var_mean(n)
            if running_mean is not None:
                running_mean.mul_(1 - momentum).add_(mean.flatten(), alpha=momentum)
                running_var.mul_(1 - momentum).add_(var.flatten(), alpha=momentum * n / (n - 1))
            return cls(x, mean, torch.rsqrt(var + eps), weight, bias, high)

    def normalize(self, bounds: Bounds | None = None) -> Tensor:
        """(x - mean) / σ · weight + bias, clipped where there are bounds."""
        y: Tensor = _Normalize.apply(*self, bounds)
        return y

    def plus(self, residual: Tensor) -> None:
        """A sum comes after the norm."""

    def clipped(self, bounds: Bounds, pools: bool) -> Sequence[Tensor]:
        """What is normalised, between the bounds, and its pool if that is wanted."""
        y = self.normalize(bounds)
        return with_pool(y) if pools else [y]


class _Normalize(torch.autograd.Function):
    """Keeps its input, as `written` lays it out."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, high: bool, bounds: Bounds | None
    ) -> Tensor:
        # two vectors in place of four: of more than eight maps and vectors, Inductor would write part of the sum first
        scale = written(rstd * _channels(weight), False)
        shift = written(_channels(bias) - mean * scale, False)
        ctx.save_for_backward(written(x, high), mean, rstd, scale, shift)
        ctx.bounds, ctx.dtype = bounds, weight.dtype
        z = _wide(x) * scale + shift
        y = z if bounds is None else bounds.clip(z)
        return y if y.dtype == x.dtype else y.to(x.dtype)  # torch 2.11 would return y twice, and lose its gradient

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, mean, rstd, scale, shift = ctx.saved_tensors
        g = _wide(grads[0])
        if ctx.bounds is not None:
            g = ctx.bounds.pass_on(g, _wide(x) * scale + shift)
        for_bias, for_weight, for_x = apart(g)  # else Inductor would write g, in float32
        g_bias = for_bias.sum((0, 2, 3), keepdim=True)
        g_weight = (for_weight * ((_wide(x) - mean) * rstd)).sum((0, 2, 3), keepdim=True)
        n = x.numel() / x.shape[1]
        constant, slope = written(scale * g_bias / n, False), written(scale * rstd * g_weight / n, False)
        g_x = for_x * scale - constant - (_wide(x) - mean) * slope
        return g_x.to(x.dtype), None, None, g_weight.flatten().to(ctx.dtype), g_bias.flatten().to(ctx.dtype), None, None


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _channels(vector: Tensor) -> Tensor:
    """(C) as (C, 1, 1)."""
    return vector[:, None, None]
