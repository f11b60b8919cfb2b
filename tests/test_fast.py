"""The fast operator against the plain one: outputs, gradients, second gradients, and what is kept for the backward pass."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from octnet import Octave, OctConv2d, fast, plain, ways
from octnet.complexity import check_model, measure
from octnet.plain import Geometry, Maps

SPLITS = [(0, 0), (0, 2), (2, 0), (2, 4), (4, 2), (6, 2), (2, 6), (6, 6)]  # low channels in and out, of 6


def geometry(kernel: int, stride: int, groups: int, low_channels: int) -> Geometry:
    return Geometry(stride, (kernel // 2, kernel // 2), (1, 1), groups, low_channels)


def inputs(
    in_low: int,
    kernel: int,
    groups: int = 1,
    out: int = 6,
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[Any]:
    """X_H, X_L of 6 channels together, weight and bias, that require gradients."""
    torch.manual_seed(0)
    x_h = torch.randn(2, 6 - in_low, 8, 8, dtype=dtype) if in_low < 6 else None
    x_l = torch.randn(2, in_low, 4, 4, dtype=dtype) if in_low > 0 else None
    weight = torch.randn(out, 6 // groups, kernel, kernel, dtype=dtype)
    maps = [None if x is None else x.contiguous(memory_format=memory_format) for x in (x_h, x_l, weight)]
    return [None if x is None else x.requires_grad_() for x in (*maps, torch.randn(out, dtype=dtype))]


OPERATORS: tuple[Any, ...] = (plain.octconv2d, fast.octconv2d)


def there(maps: Maps | fast.Outputs) -> list[Tensor]:
    return [y for y in maps[:2] if y is not None]


def assert_the_plain_operators(given: list[Any], shape: Geometry) -> None:
    """Outputs with and without gradients, and gradients."""
    leaves = [x for x in given if x is not None]
    right, mine = (there(operator(*given, shape)) for operator in OPERATORS)
    with torch.no_grad():
        without = there(OPERATORS[1](*given, shape))
    weights = [torch.randn_like(y) for y in right]
    gradients = [
        torch.autograd.grad(sum(((y * w).sum() for y, w in zip(ys, weights, strict=True)), torch.zeros(())), leaves)
        for ys in (right, mine)
    ]
    for a, b in ((mine, right), (without, right), gradients):
        for got, want in zip(a, b, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("in_low", "out_low"), SPLITS)
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (1, 2, 1), (3, 1, 2)])
def test_four_paths(in_low: int, out_low: int, kernel: int, stride: int, groups: int) -> None:
    assert_the_plain_operators(inputs(in_low, kernel, groups), geometry(kernel, stride, groups, out_low))


@pytest.mark.parametrize(("in_low", "out_low"), SPLITS)
@pytest.mark.parametrize("stride", [1, 2])
def test_1x1_with_channels_last_is_a_matrix_product(in_low: int, out_low: int, stride: int) -> None:
    """Forward and backward, without one convolution."""
    given, shape = inputs(in_low, 1, memory_format=torch.channels_last), geometry(1, stride, 1, out_low)
    assert_the_plain_operators(given, shape)
    with torch.profiler.profile() as profile:
        sum((y.square().sum() for y in there(OPERATORS[1](*given, shape))), torch.zeros(())).backward()
    called = {event.name for event in profile.events() or []}
    assert "aten::addmm" in called
    assert not any("convolution" in name for name in called)


@pytest.mark.parametrize(("out", "side"), [(3, "out"), (12, "in")])
def test_narrow_side(out: int, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 1×1 convolution that changes frequency where it has fewer channels; only at a small share of low ones."""
    x_h, x_l, weight, bias = given = inputs(2, 1, out=out)
    shape = geometry(1, 1, 1, out // 3)
    assert ways.narrow_side(x_h, x_l, weight, shape) is None  # a third is above the share up to which it was faster
    monkeypatch.setattr(ways, "NARROW_SHARE", 1)
    assert ways.narrow_side(x_h, x_l, weight, shape) == side
    assert_the_plain_operators(given, shape)
    x_h = x_h.detach()[..., :4, :4].requires_grad_()

    def operator(x_h: Tensor, x_l: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return tuple(there(fast.octconv2d(x_h, x_l, weight, bias, shape)))

    x_l = x_l.detach()[..., :2, :2].requires_grad_()
    assert torch.autograd.gradcheck(operator, (x_h, x_l, weight, bias))
    assert torch.autograd.gradgradcheck(operator, (x_h, x_l, weight, bias))


def test_a_whole_network_on_the_narrow_side() -> None:
    """α = .125 of ResNet has layers of every kind; the counts stay those of the plain operator."""
    torch.manual_seed(0)
    model: Any = timm.create_model("oct_resnet50", alpha=0.125, layers=(2, 1, 1, 1), num_classes=3).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    found: list[tuple[Tensor, ...]] = []
    for share in (0.0, 0.2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ways, "NARROW_SHARE", share)
            logits = model(x)
            found.append((logits, *torch.autograd.grad(logits.square().sum(), model.parameters())))
            macs = measure(model, 64).macs
            assert macs == check_model("oct_resnet50", 0.125, {"layers": (2, 1, 1, 1)}, 3, 64).macs
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "memory_format"), [(3, torch.contiguous_format), (1, torch.channels_last)])
def test_gradients_are_those_of_finite_differences(
    kernel: int, memory_format: torch.memory_format, stride: int
) -> None:
    shape = geometry(kernel, stride, 1, 2)
    x_h, x_l, weight, _ = inputs(2, kernel)
    given = tuple(
        x.detach().contiguous(memory_format=memory_format).requires_grad_()
        for x in (x_h[:, :, :4, :4], x_l[:, :, :2, :2], weight)
    )

    def operator(x_h: Tensor, x_l: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return tuple(there(fast.octconv2d(x_h, x_l, weight, None, shape)))

    assert torch.autograd.gradcheck(operator, given)
    assert torch.autograd.gradgradcheck(operator, given)


def test_autocast_casts_as_for_a_plain_convolution() -> None:
    x_h, x_l, weight, bias = inputs(2, 3, dtype=torch.float32)
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


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_leaves_float64_as_for_a_plain_convolution(grad: bool) -> None:
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    layer, plain_layer = OctConv2d(4, 4, 1, low_channels=2).double(), nn.Conv2d(4, 4, 1).double()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == plain_layer(x).dtype == torch.float64


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


def test_compiled_no_pooled_map_is_kept_either() -> None:
    """Of a network's 3×3 convolutions: at α = .125 their pooled high maps have shapes of their own."""
    model = timm.create_model("oct_resnet26", alpha=0.125, layers=(1, 1, 1, 1), num_classes=3)
    model.compile(backend="aot_eager_decomp_partition")  # which chooses what to keep as Inductor does
    kept: set[tuple[int, ...]] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(2, 3, 64, 64))
    for channels, size in ((56, 16), (112, 8), (224, 4)):
        assert (2, channels, size, size) in kept
        assert (2, channels, size // 2, size // 2) not in kept


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


def test_torch_func_takes_the_layer() -> None:
    """Gradients of each image, against a loop."""
    layer = OctConv2d(4, 4, 3, padding=1, low_channels=2)
    images = torch.randn(3, 4, 4, 4)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        y: Any = torch.func.functional_call(layer, parameters, (image[None],))
        return y.high.square().sum() + y.low.square().sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images)
    for i, image in enumerate(images):
        layer.zero_grad()
        y: Any = layer(image[None])
        (y.high.square().sum() + y.low.square().sum()).backward()
        assert layer.weight.grad is not None
        torch.testing.assert_close(each["weight"][i], layer.weight.grad, rtol=1e-4, atol=1e-5)
