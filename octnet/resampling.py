"""From one frequency's resolution to the other's: `upsample` and `pool` of equation (1).

Source: Chen et al., "Drop an Octave", arXiv 1904.05049, section 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octnet.compiling import compiles
from octnet.errors import OddSizeError


def upsample(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by 2, (B, C, H, W) to (B, C, 2H, 2W): `upsample` of equation (1)."""
    if not compiles():
        return F.interpolate(x, scale_factor=2, mode="nearest")
    if torch.is_grad_enabled():
        return spread(x)
    # as integer indices, which Inductor folds into the load of what comes next; of interpolate it makes a gather
    rows, columns = (torch.arange(2 * n, device=x.device) // 2 for n in x.shape[-2:])
    # of the map with channels last, else a concatenation with another wouldn't be
    return torch.ops.aten._unsafe_index(x.permute(0, 2, 3, 1), [None, rows[:, None], columns]).permute(0, 3, 1, 2)


def spread(x: Tensor) -> Tensor:
    """`upsample` as a view of x: its gradient is a sum, of indices it would be a scatter; Inductor counts fewer operations."""
    cells = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return cells.flatten(4, 5).flatten(2, 3)


def pool(x: Tensor) -> Tensor:
    """2×2 average pooling, (B, C, H, W) to (B, C, H/2, W/2): `pool` of equation (1).

    Raises OddSizeError for an odd H or W.
    """
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        raise OddSizeError(f"a map of {height}×{width} px would have to be halved")
    return F.avg_pool2d(x, 2)
