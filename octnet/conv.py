"""Octave convolution: a convolution whose one kernel is cut into four paths between two frequencies.

    (1)  Y_H = f(X_H; W_HH) + upsample(f(X_L; W_LH), 2)
         Y_L = f(X_L; W_LL) + f(pool(X_H, 2); W_HL)

Source: Chen et al., "Drop an Octave", arXiv 1904.05049, section 3.2; stride 2, groups and depthwise as the authors' code has
them: every path has stride 1, and a stride of 2 average-pools its input first, except L→H, whose input has the output's size.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from octnet.octave import Octave, OctaveError, pool, upsample


class OctConv2d(nn.Conv2d):
    """An `nn.Conv2d` with the number of its low-frequency output channels; the same parameters, the same names.

    Takes a map (B, C, H, W) or an `Octave`, whatever arrives; gives an `Octave`, or one map (B, C', H/s, W/s) where
    `low_channels` is 0. The kernel (C', C/groups, k, k) is cut at row `C' - low_channels` and where the input is cut. A
    depthwise layer takes over its input's split, and has no paths across.

    Raises OctaveError where the operator has no meaning: a stride above 2, padding that doesn't keep the size, a padding mode
    other than zeros, channels of a path that don't divide by the groups; OddSizeError for an odd map that would have to
    be halved.
    """

    def __init__(self, *args: Any, low_channels: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.low_channels = low_channels
        self._check()

    @classmethod
    def convert(cls, conv: nn.Conv2d, low_channels: int) -> "OctConv2d":
        """The convolution itself, turned into an octave one in place: parameters, hooks and flags stay."""
        if type(conv) is not nn.Conv2d:
            raise OctaveError(f"{type(conv).__name__} is not a plain nn.Conv2d, so its kernel can't be cut")
        conv.__class__ = cls
        assert isinstance(conv, cls)
        conv.low_channels = low_channels
        try:
            conv._check()
        except OctaveError:
            cls.revert(conv)
            raise
        return conv

    @staticmethod
    def revert(conv: nn.Module) -> None:
        """Undoes `convert`; does nothing to another layer."""
        if isinstance(conv, OctConv2d):
            del conv.low_channels
            plain: nn.Module = conv
            plain.__class__ = nn.Conv2d

    @property
    def depthwise(self) -> bool:
        """Each channel on its own."""
        return 1 < self.groups == self.in_channels == self.out_channels

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:  # type: ignore[override]  # wider than nn.Conv2d's Tensor
        """Equation (1)."""
        x_h, x_l = (x.high, x.low) if isinstance(x, Octave) else (x, None)
        in_low = 0 if x_l is None else x_l.shape[1]
        in_high = 0 if x_h is None else x_h.shape[1]
        if in_high + in_low != self.in_channels:
            raise OctaveError(f"expected {self.in_channels} channels, got {in_high} high and {in_low} low")
        out_low = in_low if self.depthwise else self.low_channels
        out_high = self.out_channels - out_low
        self._check_groups(in_high, in_low, out_high, out_low)

        l2h = x_l
        if self.stride[0] == 2:
            x_h, x_l = _map(pool, x_h), _map(pool, x_l) if out_low > 0 else None
        h2l = None if self.depthwise or out_low == 0 else _map(pool, x_h)

        w, bias, cut = self.weight, self.bias, in_high if self.depthwise else in_high // self.groups
        w_h, w_l = w[:out_high], w[out_high:]
        b_h, b_l = (None, None) if bias is None else (bias[:out_high], bias[out_high:])
        if self.depthwise:
            return _joined(self._path(x_h, w_h, b_h), self._path(x_l, w_l, b_l))

        y_h = y_l = None
        if out_high > 0:
            y_h = self._path(x_h, w_h[:, :cut], b_h)  # W_HH
            cross = self._path(l2h, w_h[:, cut:], b_h if y_h is None else None)  # W_LH
            if cross is not None and self.stride[0] == 1:
                cross = upsample(cross)
            y_h = _sum(y_h, cross)
        if out_low > 0:
            y_l = self._path(x_l, w_l[:, cut:], b_l)  # W_LL
            y_l = _sum(y_l, self._path(h2l, w_l[:, :cut], b_l if y_l is None else None))  # W_HL
        return _joined(y_h, y_l)

    def _path(self, x: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """f of equation (1): the convolution of stride 1 that keeps the size."""
        if x is None:
            return None
        groups = x.shape[1] if self.depthwise else self.groups
        padding = [d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return F.conv2d(x, weight, bias, 1, padding, self.dilation, groups)

    def _check(self) -> None:
        """What no input could make right."""
        if not 0 <= self.low_channels <= self.out_channels:
            raise OctaveError(f"low_channels={self.low_channels} is not between 0 and {self.out_channels}")
        if self.stride not in ((1, 1), (2, 2)):
            raise OctaveError(f"stride {self.stride}: a map can be kept or halved, so the stride is 1 or 2")
        if self.padding_mode != "zeros":
            raise OctaveError(f"padding_mode='{self.padding_mode}': at half resolution only zeros keep their meaning")
        sizes = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if any(size % 2 for size in sizes):
            raise OctaveError(f"kernel {self.kernel_size}: an even kernel has no padding that keeps the size")
        if self.padding != "same" and self.padding != tuple(size // 2 for size in sizes):
            raise OctaveError(
                f"padding {self.padding}: kernel {self.kernel_size} with dilation {self.dilation} keeps the size "
                f"with padding {tuple(size // 2 for size in sizes)}"
            )

    def _check_groups(self, in_high: int, in_low: int, out_high: int, out_low: int) -> None:
        """Every path keeps all the groups, each on its own channels."""
        if not self.depthwise and any(n % self.groups for n in (in_high, in_low, out_high, out_low)):
            raise OctaveError(
                f"{in_high} high and {in_low} low channels in, {out_high} and {out_low} out: "
                f"not all divide by the {self.groups} groups, which every path keeps"
            )

    def extra_repr(self) -> str:
        """As nn.Conv2d's, with the low channels."""
        return f"{super().extra_repr()}, low_channels={self.low_channels}"


def _map(f: Any, x: Tensor | None) -> Tensor | None:
    return None if x is None else f(x)


def _sum(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    if x is None or y is None:
        return y if x is None else x
    return x + y


def _joined(high: Tensor | None, low: Tensor | None) -> Tensor | Octave:
    """One map where there is no low part, a pair elsewhere."""
    if low is None:
        assert high is not None
        return high
    return Octave(high, low)
