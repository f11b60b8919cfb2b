"""The fast operator against the plain one: outputs, gradients, second gradients, and what is kept for the backward pass."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octnet import Octave, OctConv2d, fast, plain
from octnet.plain import Geometry, Maps

SPLITS = [(0, 0), (0, 2), (2, 0), (2, 4), (4, 2), (6, 2), (2, 6), (6, 6)]  # low channels in and out, of 6


def geometry(kernel: int, stride: int, groups: int, low_channels: int) -> Geometry:
    return Geometry(stride, (kernel // 2, kernel // 2), (1, 1), groups, low_channels)


def inputs(in_low: int, kernel: int, groups: int, dtype: torch.dtype = torch.float64) -> list[Any]:
    """X_H, X_L, weight and bias that require gradients."""
    torch.manual_seed(0)
    x_h = torch.randn(2, 6 - in_low, 8, 8, dtype=dtype) if in_low < 6 else None
    x_l = torch.randn(2, in_low, 4, 4, dtype=dtype) if in_low > 0 else None
    weight = torch.randn(6, 6 // groups, kernel, kernel, dtype=dtype)
    return [None if x is None else x.requires_grad_() for x in (x_h, x_l, weight, torch.randn(6, dtype=dtype))]


def there(maps: Maps) -> list[Tensor]:
    return [y for y in maps if y is not None]


@pytest.mark.parametrize(("in_low", "out_low"), SPLITS)
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (1, 2, 1), (3, 1, 2)])
def test_outputs_and_gradients_are_the_plain_operators(
    in_low: int, out_low: int, kernel: int, stride: int, groups: int
) -> None:
    shape = geometry(kernel, stride, groups, out_low)
    x_h, x_l, weight, bias = given = inputs(in_low, kernel, groups)
    leaves = [x for x in given if x is not None]
    right, mine = (
        there(plain.octconv2d(x_h, x_l, weight, bias, shape)),
        there(fast.octconv2d(x_h, x_l, weight, bias, shape)),
    )
    with torch.no_grad():
        without = there(fast.octconv2d(x_h, x_l, weight, bias, shape))
    weights = [torch.randn_like(y) for y in right]
    gradients = [
        torch.autograd.grad(sum(((y * w).sum() for y, w in zip(ys, weights, strict=True)), torch.zeros(())), leaves)
        for ys in (right, mine)
    ]
    for a, b in itertools.chain(
        zip(mine, right, strict=True), zip(without, right, strict=True), zip(*gradients, strict=True)
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_finite_differences(stride: int) -> None:
    shape = geometry(3, stride, 1, 2)
    given: Any = [x[:, :, :4, :4].detach().requires_grad_() for x in inputs(2, 3, 1)[:3] if x is not None]
    given[1] = given[1].detach()[:, :, :2, :2].requires_grad_()

    def operator(x_h: Tensor, x_l: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return tuple(there(fast.octconv2d(x_h, x_l, weight, None, shape)))

    assert torch.autograd.gradcheck(operator, given)
    assert torch.autograd.gradgradcheck(operator, given)


def test_autocast_casts_as_for_a_plain_convolution() -> None:
    x_h, x_l, weight, bias = inputs(2, 3, 1, torch.float32)
    results = []
    for operator in (plain.octconv2d, fast.octconv2d):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = there(operator(x_h, x_l, weight, bias, geometry(3, 1, 1, 2)))
        assert {y.dtype for y in outputs} == {torch.bfloat16}
        loss = sum((y.float().square().sum() for y in outputs), torch.zeros(()))
        results.append([*outputs, *torch.autograd.grad(loss, [x_h, x_l, weight, bias])])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() < 0.02 * b.norm()  # bfloat16: 8 bits


def test_only_the_inputs_are_kept() -> None:
    """No pooled and no upsampled map: X_H, X_L and the kernel, which belong to others too."""
    layer = OctConv2d(8, 8, 3, padding=1, low_channels=4)
    x = Octave(torch.randn(2, 4, 8, 8).requires_grad_(), torch.randn(2, 4, 4, 4).requires_grad_())
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert x.high is not None and x.low is not None
    assert kept == {t.untyped_storage().data_ptr() for t in (x.high, x.low, layer.weight)}


def test_frozen_parts_get_no_gradient() -> None:
    layer = OctConv2d(8, 8, 3, padding=1, low_channels=4)
    layer.weight.requires_grad_(False)
    x = Octave(torch.randn(2, 4, 8, 8).requires_grad_(), torch.randn(2, 4, 4, 4))
    y: Any = layer(x)
    (y.high.sum() + y.low.sum()).backward()
    assert x.high is not None and x.high.grad is not None
    assert layer.weight.grad is None


def test_sum_in_place() -> None:
    """timm's `x += shortcut` makes no copy."""
    x = Octave(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2))
    y = x
    assert x.high is not None and x.low is not None
    before = x.high.data_ptr(), x.low.data_ptr()
    x += Octave(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2))
    assert x.high is not None and x.low is not None
    assert (x.high.data_ptr(), x.low.data_ptr()) == before
    assert y.high is not None
    assert y.high.eq(2).all() and x.low.eq(2).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_stays(memory_format: torch.memory_format) -> None:
    layer = OctConv2d(8, 8, 3, padding=1, low_channels=4).to(memory_format=memory_format)
    x = Octave(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)).contiguous(memory_format)
    y: Any = nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU())(x)
    assert all(part.is_contiguous(memory_format=memory_format) for part in y.parts)
