"""OctConv2d against the paper's equations (2) and (3) written as loops, and against plain convolutions."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octnet.conv import OctConv2d
from octnet.errors import OctaveError, OddSizeError
from octnet.octave import Octave


def equation_2_and_3(
    x: Octave, w: Tensor, low: int, groups: int = 1, dilation: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """Y_H and Y_L of the paper, position by position, without pooling or up-sampling as operations; zeros outside."""
    reach = (w.shape[-1] - 1) // 2
    size = x.shape[-1]
    maps = {"H": x.high, "L": x.low}
    channels = {name: 0 if m is None else m.shape[1] for name, m in maps.items()}
    rows = {"H": range(w.shape[0] - low), "L": range(w.shape[0] - low, w.shape[0])}

    def value(name: str, channel: int, p: float, q: float) -> Tensor:
        """X_H or X_L at (p, q); at half positions (2p + ½) the mean of the four around it."""
        m = maps[name]
        assert m is not None
        if p != int(p):
            corners = itertools.product((p - 0.5, p + 0.5), (q - 0.5, q + 0.5))
            return sum((value(name, channel, a, b) for a, b in corners), torch.zeros(m.shape[0])) / 4
        if not (0 <= p < m.shape[2] and 0 <= q < m.shape[3]):
            return torch.zeros(m.shape[0], dtype=w.dtype)
        return m[:, channel, int(p), int(q)]

    result: list[Tensor | None] = []
    for out in ("H", "L"):
        side = size if out == "H" else size // 2
        y = torch.zeros(x.shape[0], len(rows[out]), side, side, dtype=w.dtype)
        for (n, row), p, q in itertools.product(enumerate(rows[out]), range(side), range(side)):
            group = n * groups // len(rows[out])
            column = 0
            for name in ("H", "L"):
                width = channels[name] // groups
                for c, i, j in itertools.product(range(width), *[range(-reach, reach + 1)] * 2):
                    a, b = i * dilation, j * dilation
                    weight = w[row, column + c, i + reach, j + reach]
                    at: tuple[float, float]
                    if (name, out) == ("L", "H"):
                        at = (p // 2 + a, q // 2 + b)
                    elif (name, out) == ("H", "L"):  # the kernel steps over the pooled map: 2(p + i) + ½
                        at = (2 * (p + a) + 0.5, 2 * (q + b) + 0.5)
                        if not (0 <= p + a < size // 2 and 0 <= q + b < size // 2):
                            continue
                    else:
                        at = (p + a, q + b)
                    y[:, n, p, q] += weight * value(name, group * width + c, *at)
                column += width
        result.append(y if len(rows[out]) > 0 else None)
    return result[0], result[1]


def pair(high: int, low: int, size: int = 4, dtype: torch.dtype = torch.float64) -> Octave:
    return Octave(
        torch.randn(2, high, size, size, dtype=dtype) if high else None,
        torch.randn(2, low, size // 2, size // 2, dtype=dtype) if low else None,
    )


def assert_same(y: Tensor | Octave, expected: tuple[Tensor | None, Tensor | None], **kwargs: Any) -> None:
    y = y if isinstance(y, Octave) else Octave(y, None)
    for part, right in zip((y.high, y.low), expected, strict=True):
        if right is None:
            assert part is None
        else:
            torch.testing.assert_close(part, right, **kwargs)


@pytest.mark.parametrize(
    ("in_low", "out_low"), [(0, 0), (0, 2), (2, 0), (1, 3), (2, 2), (4, 0), (0, 4), (4, 4), (4, 1)]
)
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2)])
def test_equations(in_low: int, out_low: int, kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    x = pair(4 - in_low, in_low)
    padding = dilation * (kernel - 1) // 2
    conv = OctConv2d(4, 4, kernel, padding=padding, dilation=dilation, bias=False, low_channels=out_low).double()
    assert_same(conv(x), equation_2_and_3(x, conv.weight.detach(), out_low, dilation=dilation))


def test_equations_grouped() -> None:
    torch.manual_seed(0)
    x = pair(4, 2)
    conv = OctConv2d(6, 8, 3, padding=1, groups=2, bias=False, low_channels=2).double()
    assert_same(conv(x), equation_2_and_3(x, conv.weight.detach(), 2, groups=2))


def test_four_slices_tile_the_kernel() -> None:
    """The paths' kernels, found by probing the layer with one frequency at a time, are the vanilla weight, each entry once."""
    conv = OctConv2d(5, 7, 1, bias=False, low_channels=3).double()
    found = torch.zeros(7, 5, dtype=torch.float64)
    for c in range(5):
        x = Octave(torch.zeros(1, 3, 2, 2).double(), torch.zeros(1, 2, 1, 1).double())
        assert x.high is not None and x.low is not None
        (x.high if c < 3 else x.low)[:, c if c < 3 else c - 3] = 1.0
        y = conv(x)
        found[:, c] = torch.cat([y.high.mean((2, 3)), y.low.mean((2, 3))], 1)[0]
    torch.testing.assert_close(found, conv.weight.detach()[:, :, 0, 0])


@pytest.mark.parametrize("out_low", [0, 2, 4])
def test_stride_2_is_the_pooled_layer(out_low: int) -> None:
    """Stride 2: all inputs pooled first, except L→H, which is convolved as it is."""
    torch.manual_seed(0)
    x = pair(3, 2, size=8)
    conv = OctConv2d(5, 4, 3, stride=2, padding=1, bias=False, low_channels=out_low).double()
    assert x.high is not None and x.low is not None
    w, n = conv.weight.detach(), 4 - out_low

    def mean2(m: Tensor) -> Tensor:
        return (m[..., ::2, ::2] + m[..., 1::2, ::2] + m[..., ::2, 1::2] + m[..., 1::2, 1::2]) / 4

    def f(m: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.conv2d(m, weight, padding=1)

    high = f(mean2(x.high), w[:n, :3]) + f(x.low, w[:n, 3:]) if n else None
    low = f(mean2(x.low), w[n:, 3:]) + f(mean2(mean2(x.high)), w[n:, :3]) if out_low else None
    assert_same(conv(x), (high, low))


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_keeps_frequencies_apart(stride: int) -> None:
    torch.manual_seed(0)
    x = pair(3, 2, size=8)
    conv = OctConv2d(5, 5, 3, stride=stride, padding=1, groups=5, low_channels=0).double()
    assert x.high is not None and x.low is not None and conv.bias is not None
    parts = []
    for m, channels in ((x.high, slice(0, 3)), (x.low, slice(3, 5))):
        m = nn.functional.avg_pool2d(m, stride)
        each = [
            nn.functional.conv2d(
                m[:, i : i + 1], conv.weight[channels][i : i + 1], conv.bias[channels][i : i + 1], padding=1
            )
            for i in range(m.shape[1])
        ]
        parts.append(torch.cat(each, 1))
    assert_same(conv(x), (parts[0], parts[1]))


@pytest.mark.parametrize(("in_low", "out_low"), [(0, 2), (2, 0), (1, 3), (4, 2), (0, 4)])
def test_bias_once_an_output_frequency(in_low: int, out_low: int) -> None:
    conv = OctConv2d(4, 4, 3, padding=1, low_channels=out_low).double()
    assert conv.bias is not None
    x = pair(4 - in_low, in_low).map(torch.zeros_like)
    y = conv(x)
    y = y if isinstance(y, Octave) else Octave(y, None)
    values = torch.cat([part.mean((0, 2, 3)) for part in y.parts])
    torch.testing.assert_close(values, conv.bias)
    assert all(part.var((2, 3)).max() == 0 for part in y.parts)


@pytest.mark.parametrize(
    ("in_low", "out_low", "stride", "groups"), [(2, 2, 1, 1), (0, 2, 2, 1), (2, 0, 1, 1), (2, 2, 2, 2)]
)
def test_gradients(in_low: int, out_low: int, stride: int, groups: int) -> None:
    torch.manual_seed(0)
    conv = OctConv2d(4, 4, 3, stride=stride, padding=1, groups=groups, low_channels=out_low).double()
    leaves = [part[:1].requires_grad_() for part in pair(4 - in_low, in_low).parts]

    def f(*args: Tensor) -> tuple[Tensor, ...]:
        parts, parameters = args[: len(leaves)], args[len(leaves) :]
        x = Octave(parts[0], parts[1] if in_low else None)
        y = torch.func.functional_call(conv, dict(zip(("weight", "bias"), parameters, strict=True)), (x,))
        return tuple(y.parts) if isinstance(y, Octave) else (y,)

    assert torch.autograd.gradcheck(f, (*leaves, *conv.parameters()))


ALPHAS = (0, 0.125, 0.25, 0.5, 0.75, 0.875, 1)
PAPER_COST = (100, 82, 67, 44, 30, 26, 25)  # percent, table 1 of the paper
PAPER_MEMORY = (100, 91, 81, 63, 44, 35, 25)  # its 35 is 34.4


@pytest.mark.parametrize(("alpha", "cost", "memory"), list(zip(ALPHAS, PAPER_COST, PAPER_MEMORY, strict=True)))
def test_paper_table_1(alpha: float, cost: int, memory: int) -> None:
    """Theoretical gains of one OctConv with α_in = α_out: cost 1 − ¾α(2 − α), memory 1 − ¾α, counted on the operator."""
    from torch.utils.flop_counter import FlopCounterMode

    low = int(alpha * 64)
    with torch.device("meta"):
        x = pair(64 - low, low, size=32)
        conv = OctConv2d(64, 64, 3, padding=1, low_channels=low).double()
    with FlopCounterMode(display=False) as counter:
        y = conv(x)
    flops = counter.get_total_flops() / (2 * 2 * 64 * 64 * 9 * 32 * 32)
    numel = sum(part.numel() for part in y.parts) if isinstance(y, Octave) else y.numel()
    share = numel / (2 * 64 * 32 * 32)
    assert flops == pytest.approx(1 - 0.75 * alpha * (2 - alpha))
    assert share == pytest.approx(1 - 0.75 * alpha)
    assert round(100 * flops) == cost
    assert abs(100 * share - memory) <= 0.63  # 34.4 printed as 35


def test_mixed_precision_and_channels_last() -> None:
    conv = OctConv2d(8, 8, 3, padding=1, bias=False, low_channels=4).to(memory_format=torch.channels_last)
    x = pair(4, 4, size=8, dtype=torch.float32).contiguous(torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    assert all(part.dtype == torch.bfloat16 for part in y.parts)
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in y.parts)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"kernel_size": 3, "stride": 4, "padding": 1}, "stride"),
        ({"kernel_size": 3, "stride": (2, 1), "padding": 1}, "stride"),
        ({"kernel_size": 3}, "padding"),
        ({"kernel_size": 3, "padding": "valid"}, "padding"),
        ({"kernel_size": 2, "padding": 1}, "even kernel"),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, "padding_mode"),
        ({"kernel_size": 3, "padding": 1, "low_channels": 9}, "low_channels=9"),
    ],
)
def test_refused(kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(OctaveError, match=reason):
        OctConv2d(8, 8, **({"low_channels": 4} | kwargs))


def test_refused_at_forward() -> None:
    with pytest.raises(OddSizeError, match="7×8"):
        OctConv2d(4, 4, 1, low_channels=2)(torch.zeros(1, 4, 7, 8))
    with pytest.raises(OctaveError, match="32 groups"):
        OctConv2d(128, 128, 3, padding=1, groups=32, low_channels=16)(torch.zeros(1, 128, 8, 8))
    with pytest.raises(OctaveError, match="expected 4 channels, got 2 high and 3 low"):
        OctConv2d(4, 4, 1, low_channels=2)(pair(2, 3, dtype=torch.float32))
