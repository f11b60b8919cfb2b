"""Octave convolution, fast: what `plain.octconv2d` computes, with fewer passes over memory and less of it kept.

The multiply-adds are the same. What is saved around them:
- L→H is added into Y_H through a view (B, C, H/2, 2, W/2, 2), which broadcasts: no upsampled map is written. A compiler sees an
  index i // 2 instead of a gather.
- For the backward pass X_H, X_L and the kernel are kept, each shared with what follows; pooled maps are made again.
- The four parts of the kernel's gradient are written into one tensor, not padded with zeros and summed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octnet import plain
from octnet.octave import pool
from octnet.plain import Geometry, Maps


def octconv2d(x_h: Tensor | None, x_l: Tensor | None, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Maps:
    """As `plain.octconv2d`, to rounding; differentiable twice."""
    given = [x for x in (x_h, x_l, weight, bias) if x is not None]
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # a graph of plain operators
        return plain.octconv2d(x_h, x_l, weight, bias, geometry)
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in given):
        return plain.octconv2d(x_h, x_l, weight, bias, geometry, add_)
    device = weight.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return _split(_OctConv2d.apply(x_h, x_l, weight, bias, geometry), geometry, weight)
    # autocast's rule for convolutions, applied here: it isn't active in a backward pass
    dtype = torch.get_autocast_dtype(device)
    cast = [None if x is None else x.to(dtype) for x in (x_h, x_l, weight, bias)]
    with torch.autocast(device, enabled=False):
        return _split(_OctConv2d.apply(*cast, geometry), geometry, weight)


def _split(outputs: Any, geometry: Geometry, weight: Tensor) -> Maps:
    """The maps that there are, each in its place."""
    if geometry.low_channels == 0:
        return outputs[0], None
    return (None, outputs[0]) if geometry.low_channels == weight.shape[0] else outputs


def add_(y: Tensor, x: Tensor, factor: float = 1) -> Tensor:
    """y += factor · x in place, x (B, C, H, W) or, upsampled by 2 in the same pass, (B, C, H/2, W/2)."""
    if x.shape == y.shape:
        return y.add_(x, alpha=factor)
    y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).add_(x[:, :, :, None, :, None], alpha=factor)
    return y


class _OctConv2d(torch.autograd.Function):
    """`plain.octconv2d` with a backward pass that keeps no pooled map; returns only the maps that there are."""

    @staticmethod
    def forward(ctx: Any, x_h: Any, x_l: Any, weight: Tensor, bias: Any, geometry: Geometry) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x_h, x_l, weight)
        ctx.geometry = geometry
        return tuple(y for y in plain.octconv2d(x_h, x_l, weight, bias, geometry, add_) if y is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x_h, x_l, weight = ctx.saved_tensors
        geometry, (wants_h, wants_l, wants_w, wants_b, _) = ctx.geometry, ctx.needs_input_grad
        g_h, g_l = _split(grads, geometry, weight)
        out_high = 0 if g_h is None else g_h.shape[1]
        cut = 0 if x_h is None else x_h.shape[1] // geometry.groups
        w_h, w_l = weight[:out_high], weight[out_high:]
        g_w = torch.empty_like(weight) if wants_w else None
        strided = geometry.stride == 2

        def path(g: Tensor, x: Tensor, w: Tensor, rows: slice, columns: slice, wants_x: bool) -> Any:
            """The gradient of one path's input; that of its kernel goes into its place in `g_w`."""
            g_x, g_path = _conv_backward(g, x, w[:, columns], geometry, wants_x, wants_w)
            if g_w is not None and g_path is not None:
                g_w[rows, columns] = g_path
            return g_x

        high, low = slice(None, out_high), slice(out_high, None)
        from_h, from_l = slice(None, cut), slice(cut, None)
        g_xh = g_xl = None
        if x_h is not None:
            x = pool(x_h) if strided else x_h
            g_xh = None if g_h is None else path(g_h, x, w_h, high, from_h, wants_h)
            if g_l is not None:
                g_pooled = path(g_l, pool(x), w_l, low, from_h, wants_h)
                g_xh = _unpool(g_pooled, g_xh)
            g_xh = _unpool(g_xh, None) if strided else g_xh
        if x_l is not None:
            if g_l is not None:
                x = pool(x_l) if strided else x_l
                g_xl = path(g_l, x, w_l, low, from_l, wants_l)
                g_xl = _unpool(g_xl, None) if strided else g_xl
            if g_h is not None:
                g = g_h if strided else F.avg_pool2d(g_h, 2, divisor_override=1)  # the gradient of upsampling
                g_cross = path(g, x_l, w_h, high, from_l, wants_l)
                g_xl = g_cross if g_xl is None else g_xl.add_(g_cross)
        g_b = torch.cat([g.sum((0, 2, 3)) for g in (g_h, g_l) if g is not None]) if wants_b else None
        return g_xh, g_xl, g_w, g_b, None


def _conv_backward(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wants_x: bool, wants_w: bool
) -> Sequence[Tensor | None]:
    """The gradients of a stride 1 convolution's input and kernel."""
    ones, padding, dilation = [1, 1], list(geometry.padding), list(geometry.dilation)
    mask = [wants_x, wants_w, False]
    grads: Sequence[Tensor | None] = torch.ops.aten.convolution_backward(
        g, x, weight, None, ones, padding, dilation, False, [0, 0], geometry.groups, mask
    )
    return grads[:2]


def _unpool(g: Tensor | None, into: Tensor | None) -> Tensor | None:
    """The gradient of `pool`'s input (B, C, H, W) from that of its output, added to `into` where there is one."""
    if g is None:
        return into
    return plain.upsample(g).mul_(0.25) if into is None else add_(into, g, 0.25)
