"""Octave convolution as it is defined: the readable operator that the fast one is tested against.

    (1)  Y_H = f(X_H; W_HH) + upsample(f(X_L; W_LH), 2)
         Y_L = f(X_L; W_LL) + f(pool(X_H, 2); W_HL)

Source: Chen et al., "Drop an Octave", arXiv 1904.05049, section 3.2; stride 2, groups and depthwise as the authors' code has
them: every path has stride 1, and a stride of 2 average-pools its input first, except L→H, whose input has the output's size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from octnet.resampling import pool, upsample

Maps = tuple[Tensor | None, Tensor | None]
"""A high-frequency map (B, C_h, H, W) and a low-frequency one (B, C_l, H/2, W/2); either may be None, not both."""


@dataclass(frozen=True)
class Geometry:
    """What an octave convolution is besides its kernel; padding keeps the size."""

    stride: int
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    low_channels: int  # of the output

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """f of equation (1): the convolution of stride 1."""
        return F.conv2d(x, weight, bias, 1, self.padding, self.dilation, self.groups)


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, where y is upsampled if it has half the size."""
    return x + (y if x.shape == y.shape else upsample(y))


def octconv2d(
    x_h: Tensor | None,
    x_l: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    add: Callable[[Tensor, Tensor], Tensor] = add,
    conv: Callable[..., Tensor] = Geometry.conv,
    pool: Callable[[Tensor], Tensor] = pool,
) -> Maps:
    """Equation (1): Y_H and Y_L of the kernel (C', C/groups, k, k), cut at row C' - low_channels and where the input is."""
    f = partial(conv, geometry)
    out_low = geometry.low_channels
    out_high = weight.shape[0] - out_low
    cut = 0 if x_h is None else x_h.shape[1] // geometry.groups
    w_h, w_l = weight[:out_high], weight[out_high:]
    b_h, b_l = (None, None) if bias is None else (bias[:out_high], bias[out_high:])

    l2h = x_l
    if geometry.stride == 2:
        x_h, x_l = (None if x is None else pool(x) for x in (x_h, x_l if out_low > 0 else None))
    y_h = y_l = None
    if out_high > 0:
        y_h = None if x_h is None else f(x_h, w_h[:, :cut], b_h)  # W_HH
        if l2h is not None:
            cross = f(l2h, w_h[:, cut:], b_h if y_h is None else None)  # W_LH
            y_h = add(y_h, cross) if y_h is not None else upsample(cross) if geometry.stride == 1 else cross
    if out_low > 0:
        y_l = None if x_l is None else f(x_l, w_l[:, cut:], b_l)  # W_LL
        if x_h is not None:
            cross = f(pool(x_h), w_l[:, :cut], b_l if y_l is None else None)  # W_HL
            y_l = cross if y_l is None else add(y_l, cross)
    return y_h, y_l
