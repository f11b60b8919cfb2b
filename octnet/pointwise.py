"""1×1 convolutions for compiled networks on a GPU that write their result once.

    Y = clip(f(X; W) + f(X'; W') + b + R)

X', the other frequency, is of Y's size or of half of it and then upsampled; R, a shortcut, is of Y's size; both may be missing,
and so may the bias b and the bounds. Where libraries read and write Y for each of these, here a tile of it is finished before it
leaves the processor (octnet/kernels.py), with its pool, or its moments for a norm. L→H costs four times its multiply-adds, and no
map between: by the count of results/speed/README.md never slower, for a 1×1 convolution waits for memory.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, library

from octnet.clipping import Bounds
from octnet.inductor import NAMESPACE, fuses
from octnet.plain import Geometry, add
from octnet.resampling import pool

DTYPES = {torch.float16, torch.bfloat16}  # of what is multiplied; of float32 a kernel would round to TF32
TILE = 128  # pixels whose moments are taken together


class Moments(NamedTuple):
    """Of each tile of a map's pixels, counted through all images, and each channel (T, C), float32."""

    sums: Tensor
    squares: Tensor  # summed, of the differences from the tile's mean

    def var_mean(self, pixels: int) -> tuple[Tensor, Tensor]:
        """Biased variance and mean of each channel (1, C, 1, 1).

        Source: Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
        """
        counts = (pixels - TILE * torch.arange(len(self.sums), device=self.sums.device)).clamp(max=TILE)[:, None]
        mean = self.sums.sum(0) / pixels
        between = (counts * (self.sums / counts - mean).square()).sum(0)
        var = (self.squares.sum(0) + between) / pixels
        return var[None, :, None, None], mean[None, :, None, None]


class Product(NamedTuple):
    """A frequency's map of a 1×1 convolution that isn't carried out yet: what comes next may still become part of it.

    Measured, it is part of a gradient's own Function; else it is a constant to autograd.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    other: Tensor | None = None
    other_weight: Tensor | None = None
    residual: Tensor | None = None

    @classmethod
    def of(cls, geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> "Product":
        """As `Geometry.conv`."""
        return cls(x, weight, bias)

    def joined(self, path: "Product") -> "Product":
        """With the path from the other frequency."""
        return self._replace(other=path.x, other_weight=path.weight)

    def plus(self, residual: Tensor) -> "Product | None":
        """With a shortcut; None: it has one, or the sum may have a gradient."""
        if self.residual is not None or torch.is_grad_enabled():
            return None
        return self._replace(residual=residual)

    def written(self) -> Tensor:
        """Y."""
        return pointwise(*self, low=None, high=None, pools=False, measures=False)[0]

    def clipped(self, bounds: Bounds, pools: bool) -> list[Tensor]:
        """Y between the bounds, and its pool if that is wanted."""
        with torch.no_grad():
            return pointwise(*self, low=bounds.low, high=bounds.high, pools=pools, measures=False)

    def measured(self) -> tuple[Tensor, Tensor, Tensor]:
        """Y and its moments."""
        y, sums, squares = pointwise(*self, low=None, high=None, pools=False, measures=True)
        return y, sums, squares


def fits(x_h: Tensor | None, x_l: Tensor | None, weight: Tensor, geometry: Geometry) -> bool:
    """Whether `pointwise` can compute this octave convolution's paths, compiled where that moves less."""
    if not fuses(weight) or weight.dtype not in DTYPES or x_h is None:
        return False
    out_low = geometry.low_channels
    in_high, out_high = x_h.shape[1], weight.shape[0] - out_low
    if weight.shape[2:] != (1, 1) or geometry.groups != 1 or out_low == 0 or out_high == 0:
        return False
    for x in (x_h, x_l):  # a generator in a backward pass is beyond torch.compile
        if x is not None and not x.is_contiguous(memory_format=torch.channels_last):
            return False
    sizes = in_high, weight.shape[1] - in_high, out_high, out_low, weight.stride(0)
    return weight.stride(1) == 1 and math.gcd(*sizes) % 8 == 0


@library.triton_op(f"{NAMESPACE}::pointwise", mutates_args=())
def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    other_weight: Tensor | None,
    residual: Tensor | None,
    low: float | None,
    high: float | None,
    pools: bool,
    measures: bool,
) -> list[Tensor]:
    """Y (B, C', H, W) of x (B, C, H, W) and weight (C', C, 1, 1), and with it pool(Y) or its `Moments`."""
    if x.is_cuda:
        from octnet.kernels import launch

        return launch(x, weight, bias, other, other_weight, residual, low, high, pools, TILE if measures else None)
    y = F.conv2d(x, weight, bias)
    if other is not None and other_weight is not None:
        y = add(y, F.conv2d(other, other_weight))
    y = y if residual is None else y + residual
    y = y if low is None else y.clamp(low, high)
    if pools:
        return [y, pool(y)]
    return [y, *_moments(y)] if measures else [y]


def _moments(y: Tensor) -> Moments:
    pixels = y.permute(0, 2, 3, 1).flatten(0, 2).to(torch.promote_types(y.dtype, torch.float32))  # (B·H·W, C')
    count = pixels.shape[0]
    tiles = F.pad(pixels, (0, 0, 0, -count % TILE)).unflatten(0, (-1, TILE))  # (T, TILE, C')
    inside = (torch.arange(tiles.shape[0] * TILE, device=y.device) < count).view(-1, TILE, 1)
    sums = tiles.sum(1)
    differences = torch.where(inside, tiles - (sums / inside.sum(1))[:, None], 0)
    return Moments(sums, differences.square().sum(1))
