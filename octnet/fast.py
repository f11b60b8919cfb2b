"""Octave convolution, fast: what `plain.octconv2d` computes, with fewer passes over memory and less of it kept.

The multiply-adds are the same, but for the last of what is saved around them:
- L→H is added into Y_H through a view (B, C, H/2, 2, W/2, 2), which broadcasts: no upsampled map is written. (Compiled, it is
  not written either, and four dimensions keep channels last.)
- For the backward pass X_H, X_L and the kernel are kept, each shared with what follows; pooled maps are made again.
- The four parts of the kernel's gradient are written into one tensor, not padded with zeros and summed.
- A 1×1 convolution on a CPU, eager, is a matrix product, without the library's conversions of its kernel.
- Compiled for a GPU, most 1×1 convolutions write their result once, with what comes after them in it, and L→H at full
  resolution (pointwise.py).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from octnet import plain
from octnet.compiling import exports, has_autocast
from octnet.plain import Geometry, Maps
from octnet.pointwise import Moments, Product, fits
from octnet.ways import WAYS, narrow_side, products


class Outputs(NamedTuple):
    """Y_H and Y_L, and what more is known of both: their moments, or what they are, so that more can become part of it."""

    high: Tensor | None
    low: Tensor | None
    moments: tuple[Moments, Moments] | None = None
    products: tuple[Product, Product] | None = None


def octconv2d(
    x_h: Tensor | None,
    x_l: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    pooled: Tensor | None = None,
) -> Outputs:
    """As `plain.octconv2d`, to rounding; differentiable twice. `pooled` is pool(X_H), where that is there already."""
    given = [x for x in (x_h, x_l, weight, bias) if x is not None]
    transformed = torch._C._are_functorch_transforms_active()  # torch.func differentiates operators, not a Function
    written = torch.jit.is_tracing() or exports()
    if weight.is_meta or transformed or written:  # is_meta: counted
        return Outputs(*plain.octconv2d(x_h, x_l, weight, bias, geometry))
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    compute = _differentiable if wants_grad else _alone
    device = weight.device.type
    if not has_autocast(device) or not torch.is_autocast_enabled(device):
        return compute(x_h, x_l, weight, bias, geometry, pooled)
    # autocast's rule for convolutions, applied here: it isn't active in a backward pass
    dtype = torch.get_autocast_dtype(device)

    def lower(x: Any) -> Any:
        return x if x is None or x.dtype == torch.float64 else x.to(dtype)

    with torch.autocast(device, enabled=False):
        return compute(lower(x_h), lower(x_l), lower(weight), lower(bias), geometry, lower(pooled))


def _alone(x_h: Any, x_l: Any, weight: Tensor, bias: Any, geometry: Geometry, pooled: Any) -> Outputs:
    """`octconv2d` without a gradient."""
    if fits(x_h, x_l, weight, geometry):
        high, low = products(x_h, x_l, weight, bias, geometry, pooled)
        # a clipping activation begins with the products; where nothing else reads these maps, they are never compiled
        return Outputs(high.written(), low.written(), products=(high, low))
    way = narrow_side(x_h, x_l, weight, geometry)
    return Outputs(*WAYS[way][0](x_h, x_l, weight, bias, geometry, pooled))


def _differentiable(x_h: Any, x_l: Any, weight: Tensor, bias: Any, geometry: Geometry, pooled: Any) -> Outputs:
    """`octconv2d` with a gradient, where none of PyTorch's transforms is active."""
    way = None if fits(x_h, x_l, weight, geometry) else narrow_side(x_h, x_l, weight, geometry)
    outputs = _OctConv2d.apply(x_h, x_l, weight, bias, geometry, way, pooled)
    if len(outputs) > 2:
        high, low, *moments = outputs
        return Outputs(high, low, (Moments(*moments[:2]), Moments(*moments[2:])))
    return Outputs(*_split(outputs, geometry, weight))


def _split(outputs: Any, geometry: Geometry, weight: Tensor) -> Maps:
    """The maps that there are, each in its place."""
    if geometry.low_channels == 0:
        return outputs[0], None
    return (None, outputs[0]) if geometry.low_channels == weight.shape[0] else outputs


class _OctConv2d(torch.autograd.Function):
    """An octave convolution that keeps its inputs and its kernel, nothing else; returns only the maps that there are.

    Where `fits`, after the two maps the moments of each.
    """

    @staticmethod
    def forward(
        ctx: Any, x_h: Any, x_l: Any, weight: Tensor, bias: Any, geometry: Geometry, way: str | None, pooled: Any
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x_h, x_l, weight)
        ctx.geometry, ctx.way = geometry, way
        if fits(x_h, x_l, weight, geometry):
            high, low = products(x_h, x_l, weight, bias, geometry, pooled)
            (y_h, *of_high), (y_l, *of_low) = high.measured(), low.measured()
            ctx.mark_non_differentiable(*of_high, *of_low)
            return y_h, y_l, *of_high, *of_low
        return tuple(y for y in WAYS[way][0](x_h, x_l, weight, bias, geometry, pooled) if y is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x_h, x_l, weight = ctx.saved_tensors
        g_h, g_l = _split(grads[:2], ctx.geometry, weight)  # the others are of moments: nothing is learnt through them
        wants_h, wants_l, wants_w, wants_b = ctx.needs_input_grad[:4]
        g_w = torch.empty_like(weight) if wants_w else None
        g_inputs = WAYS[ctx.way][1](g_h, g_l, x_h, x_l, weight, ctx.geometry, (wants_h, wants_l), g_w)
        g_b = torch.cat([g.sum((0, 2, 3)) for g in (g_h, g_l) if g is not None]) if wants_b else None
        return *g_inputs, g_w, g_b, None, None, None  # what comes through `pooled` is in X_H's
