"""A 1×1 convolution for training on a GPU that writes its result once: the other frequency added, its statistics taken.

    Y = f(X; W) + Z      Z: nothing, a map of Y's size, or upsample(a map of half of it)

The library's convolution, the sum and a batch norm's statistics read and write Y three times. Here a tile of Y is summed and
measured before it leaves the processor (octnet/kernels.py); the tiles' moments are joined afterwards.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, library

from octnet.inductor import NAMESPACE, fuses
from octnet.plain import Geometry, add

DTYPES = {torch.float16, torch.bfloat16}  # of what is multiplied; of float32 a kernel would round to TF32
TILE = 128  # pixels


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


def fits(x_h: Tensor | None, x_l: Tensor | None, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> bool:
    """Whether `pointwise` can compute this octave convolution's paths, compiled where that moves less."""
    if not fuses(weight) or weight.dtype not in DTYPES or bias is not None or x_h is None:
        return False
    out_low = geometry.low_channels
    in_high, out_high = x_h.shape[1], weight.shape[0] - out_low
    if weight.shape[2:] != (1, 1) or geometry.groups != 1 or out_low == 0 or out_high == 0:
        return False
    maps = [x for x in (x_h, x_l) if x is not None]
    return all(x.is_contiguous(memory_format=torch.channels_last) for x in maps) and all(
        channels % 8 == 0 for channels in (in_high, weight.shape[1] - in_high, out_high, out_low)
    )


@library.triton_op(f"{NAMESPACE}::pointwise", mutates_args=())
def pointwise(x: Tensor, weight: Tensor, cross: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Y (B, C', H, W) of x (B, C, H, W), weight (C', C, 1, 1), cross (B, C', H, W) or (B, C', H/2, W/2); and its `Moments`."""
    if x.is_cuda:
        from octnet.kernels import launch

        return launch(x, weight, cross, TILE)
    y = F.conv2d(x, weight)
    y = y if cross is None else add(y, cross)
    pixels = y.permute(0, 2, 3, 1).flatten(0, 2).to(torch.promote_types(y.dtype, torch.float32))  # (B·H·W, C')
    count = pixels.shape[0]
    tiles = F.pad(pixels, (0, 0, 0, -count % TILE)).unflatten(0, (-1, TILE))  # (T, TILE, C')
    inside = (torch.arange(tiles.shape[0] * TILE, device=x.device) < count).view(-1, TILE, 1)
    sums = tiles.sum(1)
    differences = torch.where(inside, tiles - (sums / inside.sum(1))[:, None], 0)
    return y, sums, differences.square().sum(1)
