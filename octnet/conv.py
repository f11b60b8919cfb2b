"""The octave convolution layer: an `nn.Conv2d` whose one kernel is cut into four paths between two frequencies.

What it computes is in plain.py; what runs, in fast.py.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from octnet.errors import OctaveError
from octnet.fast import octconv2d
from octnet.octave import Octave
from octnet.plain import Geometry
from octnet.resampling import pool


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
        x_h, x_l, pooled = (x.high, x.low, x.pooled) if isinstance(x, Octave) else (x, None, None)
        in_low = 0 if x_l is None else x_l.shape[1]
        in_high = 0 if x_h is None else x_h.shape[1]
        if in_high + in_low != self.in_channels:
            raise OctaveError(f"expected {self.in_channels} channels, got {in_high} high and {in_low} low")
        out_low = in_low if self.depthwise else self.low_channels
        out_high = self.out_channels - out_low
        self._check_groups(in_high, in_low, out_high, out_low)

        geometry = Geometry(self.stride[0], self._padding, self.dilation, self.groups, out_low)
        if not self.depthwise:
            outputs = octconv2d(x_h, x_l, self.weight, self.bias, geometry, pooled)
            # a plain map may be changed in place before a step reads it; the maps of a pair are not
            steps = outputs.products if isinstance(x, Octave) else None
            return _joined(outputs.high, outputs.low, moments=outputs.moments, steps=steps)
        y_h = self._depthwise(x_h, pooled, slice(None, in_high), geometry)
        return _joined(y_h, self._depthwise(x_l, None, slice(in_high, None), geometry))

    def _depthwise(self, x: Tensor | None, pooled: Tensor | None, part: slice, geometry: Geometry) -> Tensor | None:
        """One frequency of a depthwise layer, convolved on its own."""
        if x is None:
            return None
        if geometry.stride == 2:
            x = pool(x) if pooled is None else pooled
        bias = None if self.bias is None else self.bias[part]
        return replace(geometry, groups=x.shape[1]).conv(x, self.weight[part], bias)

    @property
    def _padding(self) -> tuple[int, ...]:
        """What keeps the size."""
        return tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))

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


def _joined(high: Tensor | None, low: Tensor | None, **known: Any) -> Tensor | Octave:
    """One map where there is no low part, a pair elsewhere, with what else is known of it."""
    if low is None:
        assert high is not None
        return high
    return Octave(high, low, **known)
