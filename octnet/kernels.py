"""The Triton kernel of octnet/pointwise.py; imported when a map on a GPU comes to it.

Where it changes, count `inductor.NAMESPACE` up: compiled code is cached under the operation's name.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, library
from triton import cdiv


@triton.jit
def multiply(  # type: ignore[no-untyped-def]
    x,
    weight,
    cross,
    y,
    sums,
    squares,
    pixels,
    width,
    inputs_by_8,
    outputs_by_8,
    stride_by_8,
    scale: tl.constexpr,  # of cross: 0, there is none; 1, y's size; 2, half of it
    tile_m: tl.constexpr,
    tile_n: tl.constexpr,
    tile_k: tl.constexpr,
):
    """A tile (pixels, channels) of y = x · weightᵀ + cross; its channels' sums, and squared differences from their mean."""
    # as multiples of 8, so that Triton reads and writes 16 bytes at once where 16 doesn't divide them
    inputs, outputs, stride = inputs_by_8 * 8, outputs_by_8 * 8, stride_by_8 * 8
    columns = tl.cdiv(outputs, tile_n)
    tile = tl.program_id(0) // columns  # the tiles of a row of them follow each other: x comes from the cache
    m = tile * tile_m + tl.arange(0, tile_m)
    n = tl.program_id(0) % columns * tile_n + tl.arange(0, tile_n)
    k = tl.arange(0, tile_k)
    has_m, has_n = m < pixels, n < outputs
    from_x = x + m[:, None].to(tl.int64) * inputs + k[None, :]
    from_weight = weight + n[None, :] * stride + k[:, None]
    total = tl.zeros((tile_m, tile_n), tl.float32)
    for start in range(0, inputs, tile_k):
        has_k = k < inputs - start
        a = tl.load(from_x, mask=has_m[:, None] & has_k[None, :], other=0.0)
        b = tl.load(from_weight, mask=has_k[:, None] & has_n[None, :], other=0.0)
        total = tl.dot(a, b, total)
        from_x += tile_k
        from_weight += tile_k

    inside = has_m[:, None] & has_n[None, :]
    if scale > 0:
        source = m
        if scale == 2:  # row and column halved; the rows of all images are counted through
            row = m // width
            source = row // 2 * (width // 2) + (m - row * width) // 2
        at = source[:, None].to(tl.int64) * outputs + n[None, :]
        total += tl.load(cross + at, mask=inside, other=0.0).to(tl.float32)
    rounded = total.to(y.dtype.element_ty)
    tl.store(y + m[:, None].to(tl.int64) * outputs + n[None, :], rounded, mask=inside)

    written = rounded.to(tl.float32)
    column_sums = tl.sum(written, 0)
    mean = column_sums / tl.minimum(pixels - tile * tile_m, tile_m)
    difference = tl.where(has_m[:, None], written - mean[None, :], 0.0)
    tl.store(sums + tile * outputs + n, column_sums, mask=has_n)
    tl.store(squares + tile * outputs + n, tl.sum(difference * difference, 0), mask=has_n)


def launch(x: Tensor, weight: Tensor, cross: Tensor | None, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """`pointwise.pointwise` by the kernel, in tiles of as many pixels; the shape alone decides: the same numbers in every run."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, inputs, height, width = x.shape
    scale = 0
    if cross is not None:
        cross = cross.contiguous(memory_format=torch.channels_last)
        scale = 1 if cross.shape[2:] == x.shape[2:] else 2
        assert (cross.shape[2] * scale, cross.shape[3] * scale) == (height, width)
    outputs, pixels = len(weight), batch * height * width
    rows = cdiv(pixels, tile)
    y = torch.empty((batch, height, width, outputs), dtype=x.dtype, device=x.device)
    sums, squares = (torch.empty((rows, outputs), dtype=torch.float32, device=x.device) for _ in range(2))
    n = _columns(outputs)
    library.wrap_triton(multiply)[(rows * cdiv(outputs, n),)](
        x,
        weight,
        x if cross is None else cross,
        y,
        sums,
        squares,
        pixels,
        width,
        inputs // 8,
        outputs // 8,
        weight.stride(0) // 8,
        scale=scale,
        tile_m=tile,
        tile_n=n,
        tile_k=32 if inputs <= 32 else 64,
        num_warps=8 if n == 128 else 4,
        num_stages=3,
    )
    return y.permute(0, 3, 1, 2), sums, squares


def _columns(outputs: int) -> int:
    """Channels of a tile: 128, where that leaves no more of the tiles empty than 64 would, or an eighth of them."""
    if outputs <= 32:
        return 32
    padded = cdiv(outputs, 128) * 128
    return 128 if padded == cdiv(outputs, 64) * 64 or padded * 7 <= outputs * 8 else 64
