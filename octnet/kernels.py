"""The Triton kernel of octnet/pointwise.py; imported when a map on a GPU comes to it.

Where it changes, count `inductor.NAMESPACE` up: compiled code is cached under the operation's name.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, library
from triton import cdiv


@triton.jit
def accumulate(total, x, at, has_at, weight, stride, inputs, n, has_n, tile_k: tl.constexpr):  # type: ignore[no-untyped-def]
    """total (pixels, channels) + x[at] · weight[n]ᵀ."""
    k = tl.arange(0, tile_k)
    from_x = x + at[:, None].to(tl.int64) * inputs + k[None, :]
    from_weight = weight + n[None, :] * stride + k[:, None]
    for start in range(0, inputs, tile_k):
        has_k = k < inputs - start
        a = tl.load(from_x, mask=has_at[:, None] & has_k[None, :], other=0.0)
        b = tl.load(from_weight, mask=has_k[:, None] & has_n[None, :], other=0.0)
        total = tl.dot(a, b, total)
        from_x += tile_k
        from_weight += tile_k
    return total


@triton.jit
def multiply(  # type: ignore[no-untyped-def]
    x,
    weight,
    other,
    other_weight,
    residual,
    bias,
    y,
    pooled,
    sums,
    squares,
    pixels,
    width,
    outputs_by_8,
    inputs_by_8,
    stride_by_8,
    other_inputs_by_8,
    other_stride_by_8,
    other_scale: tl.constexpr,  # 0, there is none; 1, of y's size; 2, of half of it
    has_residual: tl.constexpr,
    has_bias: tl.constexpr,
    low: tl.constexpr,  # None: unbounded
    high: tl.constexpr,
    pools: tl.constexpr,
    measures: tl.constexpr,
    tile_m: tl.constexpr,
    tile_n: tl.constexpr,
    tile_k: tl.constexpr,
):
    """A tile (pixels, channels) of y, as pointwise.py defines it; its pool, or its channels' moments."""
    # as multiples of 8, so that Triton reads and writes 16 bytes at once where 16 doesn't divide them
    outputs = outputs_by_8 * 8
    columns = tl.cdiv(outputs, tile_n)
    tile = tl.program_id(0) // columns  # the tiles of a row of them follow each other: x comes from the cache
    m = tile * tile_m + tl.arange(0, tile_m)
    n = tl.program_id(0) % columns * tile_n + tl.arange(0, tile_n)
    has_m, has_n = m < pixels, n < outputs
    pixel = m
    if pools or other_scale == 2:
        # counted by cells of 2×2, the rows of all images through: of half the size m // 4 is the pixel
        row = m // 4 // (width // 2)
        pixel = (2 * row + m % 4 // 2) * width + 2 * (m // 4 - row * (width // 2)) + m % 2

    total = tl.zeros((tile_m, tile_n), tl.float32)
    total = accumulate(total, x, pixel, has_m, weight, stride_by_8 * 8, inputs_by_8 * 8, n, has_n, tile_k)
    if other_scale > 0:
        at = m // 4 if other_scale == 2 else pixel
        inputs, stride = other_inputs_by_8 * 8, other_stride_by_8 * 8
        total = accumulate(total, other, at, has_m, other_weight, stride, inputs, n, has_n, tile_k)

    inside = has_m[:, None] & has_n[None, :]
    place = pixel[:, None].to(tl.int64) * outputs + n[None, :]
    if has_bias:
        total += tl.load(bias + n, mask=has_n, other=0.0).to(tl.float32)[None, :]
    if has_residual:
        total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    if low is not None:
        total = tl.where(total < low, low, total)  # NaN stays
    if high is not None:
        total = tl.where(total > high, high, total)
    rounded = total.to(y.dtype.element_ty)
    tl.store(y + place, rounded, mask=inside)

    written = rounded.to(tl.float32)
    if pools:
        cell = tile * (tile_m // 4) + tl.arange(0, tile_m // 4)
        mean = tl.sum(tl.reshape(written, (tile_m // 4, 4, tile_n)), 1) / 4
        at = cell[:, None].to(tl.int64) * outputs + n[None, :]
        tl.store(pooled + at, mean.to(y.dtype.element_ty), mask=(cell < pixels // 4)[:, None] & has_n[None, :])
    if measures:
        column_sums = tl.sum(tl.where(has_m[:, None], written, 0.0), 0)
        mean = column_sums / tl.minimum(pixels - tile * tile_m, tile_m)
        difference = tl.where(has_m[:, None], written - mean[None, :], 0.0)
        tl.store(sums + tile * outputs + n, column_sums, mask=has_n)
        tl.store(squares + tile * outputs + n, tl.sum(difference * difference, 0), mask=has_n)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    other_weight: Tensor | None,
    residual: Tensor | None,
    low: float | None,
    high: float | None,
    pools: bool,
    tile: int | None,
) -> list[Tensor]:
    """`pointwise.pointwise` by the kernel; the shape alone decides how: the same numbers in every run."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, inputs, height, width = x.shape
    outputs, pixels = len(weight), batch * height * width
    other_scale = 0
    if other is not None:
        other = other.contiguous(memory_format=torch.channels_last)
        other_scale = height // other.shape[2]
        assert (other.shape[2] * other_scale, other.shape[3] * other_scale) == (height, width) and other_scale in (1, 2)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    tile_n = _columns(outputs)
    if (
        tile is None and cdiv(pixels, 128) * cdiv(outputs, tile_n) < 128
    ):  # of small maps more tiles than a GPU has processors
        tile_m, tile_n = 32, 32
    else:
        tile_m = tile or 128
    rows = cdiv(pixels, tile_m)

    def new(*shape: int, dtype: torch.dtype = x.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    y = new(batch, height, width, outputs)
    pooled = new(batch, height // 2, width // 2, outputs) if pools else None
    moments = [] if tile is None else [new(rows, outputs, dtype=torch.float32) for _ in range(2)]
    given = (x, weight, other, other_weight, residual, bias, y, pooled, *(moments or (y, y)))
    library.wrap_triton(multiply)[(rows * cdiv(outputs, tile_n),)](
        *(y if part is None else part for part in given),  # y, which is written anyway, for what is missing
        pixels,
        width,
        outputs // 8,
        inputs // 8,
        weight.stride(0) // 8,
        0 if other is None else other.shape[1] // 8,
        0 if other_weight is None else other_weight.stride(0) // 8,
        other_scale=other_scale,
        has_residual=residual is not None,
        has_bias=bias is not None,
        low=low,
        high=high,
        pools=pools,
        measures=tile is not None,
        tile_m=tile_m,
        tile_n=tile_n,
        tile_k=32 if inputs <= 32 else 64,
        num_warps=8 if tile_n == 128 else 4,
        num_stages=3,
    )
    maps = [y] if pooled is None else [y, pooled]
    return [*(part.permute(0, 3, 1, 2) for part in maps), *moments]


def _columns(outputs: int) -> int:
    """Channels of a tile: 128, where that leaves no more of the tiles empty than 64 would, or an eighth of them."""
    if outputs <= 32:
        return 32
    padded = cdiv(outputs, 128) * 128
    return 128 if padded == cdiv(outputs, 64) * 64 or padded * 7 <= outputs * 8 else 64
