"""The ways to compute an octave convolution's maps and their gradients; fast.py chooses among them.

Each way is a function of the maps, and one of their gradients that gives those of X_H and X_L and writes the kernel's into `g_w`,
where there is one.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from octnet import plain
from octnet.compiling import compiles
from octnet.inductor import fuses, with_pool
from octnet.plain import Geometry, Maps
from octnet.pointwise import Product, fits
from octnet.resampling import pool, spread

Wants = tuple[bool, bool]  # whether the gradients of X_H and of X_L are wanted
Part = tuple[slice, slice]  # of the kernel: rows and columns
ALL = slice(None)

# The share of low channels up to which a 1×1 convolution changes frequency on its narrow side: faster at .125, not at .5
NARROW_SHARE = 0.2


def narrow_side(x_h: Tensor | None, x_l: Tensor | None, weight: Tensor, geometry: Geometry) -> str | None:
    """Where a 1×1 convolution changes frequency: "in" or "out", the side with fewer channels; None: each path on its own."""
    out, low_out = weight.shape[0], geometry.low_channels
    plain_1x1 = weight.shape[2:] == (1, 1) and geometry.stride == 1 and geometry.groups == 1
    if not plain_1x1 or x_h is None or x_l is None or not 0 < low_out < out:
        return None
    low_in, channels = x_l.shape[1], weight.shape[1]
    if max(low_out / out, low_in / channels) > NARROW_SHARE or min(out, channels) * 2 > max(out, channels):
        return None
    return "out" if out < channels else "in"


def add_(y: Tensor, x: Tensor, factor: float = 1) -> Tensor:
    """y += factor · x, eager in place, x (B, C, H, W) or, upsampled by 2 in the same pass, (B, C, H/2, W/2)."""
    if compiles():  # torch 2.11 loses the gradient of what a Function changes in place and returns
        if x.shape == y.shape:
            return torch.add(y, x, alpha=factor)
        # as a difference, which Inductor leaves to the pass that comes next
        return torch.sub(y, plain.upsample(x), alpha=-factor)
    if x.shape == y.shape:
        return y.add_(x, alpha=factor)
    y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).add_(x[:, :, :, None, :, None], alpha=factor)
    return y


def conv(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """f of equation (1)."""
    if not _is_product(x, weight, geometry):
        return geometry.conv(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _is_product(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether f is one matrix product as the map lies in memory: eager on a CPU that is the faster way, compiled it isn't."""
    if compiles() or x.device.type != "cpu" or weight.shape[2:] != (1, 1) or geometry.groups > 1:
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def four_paths(x_h: Any, x_l: Any, weight: Tensor, bias: Any, geometry: Geometry, pooled: Any = None) -> Maps:
    """Each path a convolution: the fewest multiply-adds."""
    # Inductor gives `plain.add` to the convolution: after a bottleneck's k×k one the narrow side would make another sum twice
    narrow = weight.shape[2:] != (1, 1) and geometry.low_channels <= NARROW_SHARE * weight.shape[0]
    add = plain.add if narrow and compiles() else add_
    return plain.octconv2d(x_h, x_l, weight, bias, geometry, add, conv, _pool_unless(x_h, pooled))


def four_paths_gradients(
    g_h: Any, g_l: Any, x_h: Any, x_l: Any, weight: Tensor, geometry: Geometry, wants: Wants, g_w: Tensor | None
) -> Maps:
    """Of `four_paths`; the pooled maps are made again."""
    out_high = 0 if g_h is None else g_h.shape[1]
    cut = 0 if x_h is None else x_h.shape[1] // geometry.groups
    strided = geometry.stride == 2
    as_products = not strided and fits(x_h, x_l, weight, geometry)
    if as_products:  # compiled, PyTorch hands gradients on with channels first
        g_h, g_l = g_h.contiguous(memory_format=torch.channels_last), g_l.contiguous(memory_format=torch.channels_last)
    g_up = g_h  # the gradient of what upsampling gave, or would have
    if g_h is not None and x_l is not None and not strided:
        g_h, g_up = _with_sum(g_h)
    of_inputs = None
    if as_products:
        of_inputs, wants = _product_gradients(g_h, g_up, g_l, weight, cut, wants), (False, False)

    def path(g: Tensor, x: Tensor, part: Part, wants_x: bool) -> Any:
        return _conv_backward(g, x, weight, part, geometry, wants_x, g_w)

    high, low = slice(None, out_high), slice(out_high, None)
    from_h, from_l = slice(None, cut), slice(cut, None)
    g_xh = g_xl = None
    if x_h is not None:
        x = _pool_again(x_h) if strided else x_h
        g_xh = None if g_h is None else path(g_h, x, (high, from_h), wants[0])
        if g_l is not None:
            g_xh = _unpool(path(g_l, _pool_again(x), (low, from_h), wants[0]), g_xh)
        g_xh = _unpool(g_xh, None) if strided else g_xh
    if x_l is not None:
        if g_l is not None:
            x = pool(x_l) if strided else x_l
            g_xl = path(g_l, x, (low, from_l), wants[1])
            g_xl = _unpool(g_xl, None) if strided else g_xl
        if g_h is not None:
            g_cross = path(g_up, x_l, (high, from_l), wants[1])
            g_xl = g_cross if g_xl is None else g_xl.add_(g_cross)
    return of_inputs or (g_xh, g_xl)


def _product_gradients(g_h: Tensor, g_up: Tensor, g_l: Tensor, weight: Tensor, cut: int, wants: Wants) -> Maps:
    """Of the inputs of a 1×1 convolution of stride 1, as products of the gradients and the transposed kernel."""
    out_high = g_h.shape[1]

    def product(g: Tensor, part: slice, share: float) -> Tensor:
        rows = weight.flatten(1)[:, part].t()  # (C of X_H or X_L, C')
        kernel = torch.cat([rows[:, :out_high], rows[:, out_high:] * share], 1)[:, :, None, None]
        return Product(g, kernel[:, :out_high], other=g_l, other_weight=kernel[:, out_high:]).written()

    return (
        product(g_h, slice(None, cut), 1 / 4) if wants[0] else None,  # a pixel's share in its cell's mean
        product(g_up, slice(cut, None), 1) if wants[1] else None,
    )


def narrow_out(x_h: Any, x_l: Any, weight: Tensor, bias: Any, geometry: Geometry, pooled: Any = None) -> Maps:
    """A 1×1 convolution to few channels: both inputs to all outputs, which then change frequency; W_HL on X_H, not pooled.

    (1) with pool(W X) = W pool(X):  G = f(X_H; [W_HH W_HL]), L = f(X_L; [W_LH W_LL]);
    Y_H = G_H + upsample(L_H), Y_L = pool(G_L) + L_L.
    """
    cut, out_high = x_h.shape[1], weight.shape[0] - geometry.low_channels
    g, low = conv(geometry, x_h, weight[:, :cut], bias), conv(geometry, x_l, weight[:, cut:])
    return plain.add(g[:, :out_high], low[:, :out_high]), low[:, out_high:] + pool(g[:, out_high:])


def narrow_out_gradients(
    g_h: Any, g_l: Any, x_h: Any, x_l: Any, weight: Tensor, geometry: Geometry, wants: Wants, g_w: Tensor | None
) -> Maps:
    """Of `narrow_out`: all outputs' gradients at full and at half resolution, then a convolution each."""
    cut = x_h.shape[1]
    g_h, g_up = _with_sum(g_h)
    full = torch.cat([g_h, plain.upsample(g_l / 4)], 1)
    half = torch.cat([g_up, g_l], 1)
    g_xh = _conv_backward(full, x_h, weight, (ALL, slice(None, cut)), geometry, wants[0], g_w)
    g_xl = _conv_backward(half, x_l, weight, (ALL, slice(cut, None)), geometry, wants[1], g_w)
    return g_xh, g_xl


def narrow_in(x_h: Any, x_l: Any, weight: Tensor, bias: Any, geometry: Geometry, pooled: Any = None) -> Maps:
    """A 1×1 convolution from few channels: they change frequency first; W_LH on the upsampled X_L.

    (1) with upsample(W X) = W upsample(X):  Y_H = f([X_H, upsample(X_L)]; [W_HH W_LH]), Y_L = f([pool(X_H), X_L]; [W_HL W_LL]).
    """
    out_high = weight.shape[0] - geometry.low_channels
    b_h, b_l = (None, None) if bias is None else (bias[:out_high], bias[out_high:])
    full = torch.cat([x_h, plain.upsample(x_l)], 1)
    half = torch.cat([pool(x_h) if pooled is None else pooled, x_l], 1)
    return conv(geometry, full, weight[:out_high], b_h), conv(geometry, half, weight[out_high:], b_l)


def narrow_in_gradients(
    g_h: Any, g_l: Any, x_h: Any, x_l: Any, weight: Tensor, geometry: Geometry, wants: Wants, g_w: Tensor | None
) -> Maps:
    """Of `narrow_in`; what its inputs were joined to is made again."""
    wants_x, cut, out_high = any(wants), x_h.shape[1], g_h.shape[1]
    full = torch.cat([x_h, plain.upsample(x_l)], 1)
    half = torch.cat([_pool_again(full[:, :cut]), x_l], 1)
    g_full = _conv_backward(g_h, full, weight, (slice(None, out_high), ALL), geometry, wants_x, g_w)
    g_half = _conv_backward(g_l, half, weight, (slice(out_high, None), ALL), geometry, wants_x, g_w)
    g_xh = g_xl = None
    if g_full is not None and g_half is not None:
        g_xh = g_full[:, :cut] + _pool_gradient(g_half[:, :cut])
        g_xl = g_half[:, cut:] + F.avg_pool2d(g_full[:, cut:], 2, divisor_override=1)
    return g_xh, g_xl


def products(
    x_h: Any, x_l: Any, weight: Tensor, bias: Any, geometry: Geometry, pooled: Any = None
) -> tuple[Product, Product]:
    """`four_paths` of a 1×1 convolution to both frequencies, not carried out yet; where `pointwise.fits`."""
    later: Any = Product
    high, low = plain.octconv2d(x_h, x_l, weight, bias, geometry, later.joined, later.of, _pool_unless(x_h, pooled))
    return cast(Product, high), cast(Product, low)


WAYS: dict[str | None, tuple[Callable[..., Any], Callable[..., Maps]]] = {
    None: (four_paths, four_paths_gradients),
    "out": (narrow_out, narrow_out_gradients),
    "in": (narrow_in, narrow_in_gradients),
}


def _pool_unless(x_h: Any, pooled: Any) -> Callable[[Tensor], Tensor]:
    """`pool`, which gives `pooled` for x_h, where that is there."""
    return lambda x: pool(x) if pooled is None or x is not x_h else pooled


def _conv_backward(
    g: Tensor, x: Tensor, weight: Tensor, part: Part, geometry: Geometry, wants_x: bool, g_w: Tensor | None
) -> Tensor | None:
    """The gradient of the input of a path, whose kernel is `weight[part]`; the gradient of that is written into `g_w[part]`."""
    if g_w is None and not wants_x:
        return None
    weight, g_w = weight[part], None if g_w is None else g_w[part]
    if _is_product(x, weight, geometry) and g.is_contiguous(memory_format=torch.channels_last):
        rows = g.permute(0, 2, 3, 1)  # (B, H, W, C')
        if g_w is not None:
            g_w[:, :, 0, 0].addmm_(rows.flatten(0, 2).t(), x.permute(0, 2, 3, 1).flatten(0, 2), beta=0)
        return torch.matmul(rows, weight.flatten(1)).permute(0, 3, 1, 2) if wants_x else None
    ones, padding, dilation = [1, 1], list(geometry.padding), list(geometry.dilation)
    mask = [wants_x, g_w is not None, False]
    grads: Sequence[Tensor | None] = torch.ops.aten.convolution_backward(
        g, x, weight, None, ones, padding, dilation, False, [0, 0], geometry.groups, mask
    )
    if g_w is not None and grads[1] is not None:
        g_w.copy_(grads[1])
    return grads[0]


def _pool_again(x: Tensor) -> Tensor:
    """`pool`, in the backward pass. Compiled, a call of avg_pool2d would keep what the same call gave in the forward pass."""
    if not compiles():
        return pool(x)
    # channels stay last: (B, H/2, 2, W/2, 2, C)
    cells = x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return cells.mean((2, 4)).permute(0, 3, 1, 2)


def _with_sum(g: Tensor) -> tuple[Tensor, Tensor]:
    """g (B, C, H, W) and its sums over cells of 2×2 (B, C, H/2, W/2): the gradient of `upsample`'s input."""
    if not fuses(g):
        return g, F.avg_pool2d(g, 2, divisor_override=1)
    g, pooled = with_pool(g)
    return g, pooled * 4


def _unpool(g: Tensor | None, into: Tensor | None) -> Tensor | None:
    """`_pool_gradient`, added to `into` where there is one."""
    if g is None:
        return into
    if into is None:
        return _pool_gradient(g)
    return into + _pool_gradient(g) if compiles() else add_(into, g, 0.25)


def _pool_gradient(g: Tensor) -> Tensor:
    """The gradient of `pool`'s input (B, C, H, W) from that of its output."""
    # past Inductor's limit of operations, which `upsample` reaches, a GPU would write what it is added to in float32
    return spread(g / 4) if compiles() else plain.upsample(g / 4)
