"""Compiled for a GPU: the passes that write both resolutions. Their code is generated for the CPU here; the oracle is eager."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, library, nn
from torch._inductor.utils import run_and_get_code

from octnet import Octave, OctConv2d, inductor
from octnet.resampling import pool, upsample


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "DEVICES", {"cpu"})
    torch._dynamo.reset()
    torch.manual_seed(0)


def last(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


class Block(nn.Module):
    """Convolution, norm and activation; a residual sum; one more convolution, depthwise or not, of stride 2."""

    def __init__(self, activation: nn.Module, groups: int) -> None:
        super().__init__()
        self.first = OctConv2d(16, 16, 3, padding=1, bias=False, low_channels=4)
        self.second = OctConv2d(16, 16, 1, bias=False, low_channels=4)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(16)])
        self.activation = activation
        # depthwise with a bias: elsewhere torch 2.11 can't compile a part of a bias under autocast on a CPU
        self.last = OctConv2d(16, 16, 3, stride=2, padding=1, groups=groups, bias=groups > 1, low_channels=4)

    def forward(self, x: Any) -> Any:
        y = self.activation(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        y += x
        return self.last(self.activation(y) + y)  # twice the activation, where that is in place


def numbers(f: Callable[..., Any], module: nn.Module, x: Any) -> list[Tensor]:
    """Outputs, gradients and buffers of a training step; the module is left as it was."""
    state = {key: value.clone() for key, value in module.state_dict().items()}
    parts = [part.detach().clone().requires_grad_() for part in x.parts] if isinstance(x, Octave) else [x]
    given = Octave(parts[0] * 1, parts[1] * 1) if isinstance(x, Octave) else x
    y = f(given)
    outputs = y.parts if isinstance(y, Octave) else [y]
    leaves = [p for p in [*parts, *module.parameters()] if p.requires_grad]
    grads = torch.autograd.grad(sum((out.square().sum() for out in outputs), torch.zeros(())), leaves)
    buffers = [value.clone() for key, value in module.state_dict().items() if "running" in key]
    module.load_state_dict(state)
    return [*outputs, *grads, *buffers]


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("activation", "groups"),
    [(nn.ReLU(), 1), (nn.ReLU(True), 16), (nn.ReLU6(), 1), (nn.Hardtanh(-0.5, 0.5, True), 1), (nn.SiLU(), 16)],
)
def test_a_block(activation: nn.Module, groups: int, memory_format: torch.memory_format) -> None:
    """Outputs, gradients, running statistics, and outputs without gradients."""
    block = Block(activation, groups).double().to(memory_format=memory_format)
    x = Octave(last(2, 12, 8, 8), last(2, 4, 4, 4)).contiguous(memory_format)
    compiled = torch.compile(block, fullgraph=True)
    for got, want in zip(numbers(compiled, block, x), numbers(block, block, x), strict=True):
        torch.testing.assert_close(got, want)
    block.eval()
    with torch.no_grad():
        got, want = (f(x.map(torch.clone)) for f in (compiled, block))
    torch.testing.assert_close(got.parts, want.parts)


def test_a_network() -> None:
    """A training step; at α = .125 some of its layers change frequency on their narrow side."""
    model = timm.create_model("oct_resnet26", alpha=0.125, layers=(1, 1, 1, 1), num_classes=3).double()
    model.to(memory_format=torch.channels_last)
    x = last(2, 3, 64, 64)
    for got, want in zip(numbers(torch.compile(model), model, x), numbers(model, model, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_autocast() -> None:
    """As far from float32 as eager autocast."""
    block = Block(nn.ReLU(), 1).to(memory_format=torch.channels_last)
    x = Octave(last(2, 12, 8, 8, dtype=torch.float32), last(2, 4, 4, 4, dtype=torch.float32))
    exact = numbers(block, block, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = numbers(torch.compile(block), block, x), numbers(block, block, x)
    for want, got, eager in zip(exact, *found, strict=True):
        assert got.dtype == eager.dtype
        assert (got - want).norm() < 1.5 * (eager - want).norm() + 1e-3 * want.norm()


def test_without_inductor_they_copy_and_pool() -> None:
    """Another compiler of the same graph."""
    block = Block(nn.ReLU(), 1).double()
    x = Octave(last(2, 12, 8, 8), last(2, 4, 4, 4))
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for got, want in zip(numbers(compiled, block, x), numbers(block, block, x), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("operation", "options", "differentiable"),
    [(inductor.with_pool, (), True), (inductor.written, (True,), True), (inductor.apart, (), False)],
)
def test_operations_keep_pytorchs_rules(operation: Any, options: tuple[Any, ...], differentiable: bool) -> None:
    library.opcheck(operation, (last(1, 2, 4, 4).requires_grad_(differentiable), *options))


@pytest.mark.parametrize("change", [lambda y: y.__iadd__(y), nn.SiLU(True)])
def test_a_change_in_place_is_seen_by_all(change: Callable[[Any], Any]) -> None:
    """What a pair knew from its batch norm doesn't outlive the change."""
    norm = nn.BatchNorm2d(16).double()

    def f(x: Any) -> Any:
        y = norm(x)
        change(y)
        return F.relu(y)

    x = Octave(last(2, 12, 8, 8), last(2, 4, 4, 4))
    for got, want in zip(numbers(torch.compile(f, fullgraph=True), norm, x), numbers(f, norm, x), strict=True):
        torch.testing.assert_close(got, want)


def passes(f: Callable[..., Any], *args: Tensor) -> int:
    """How many passes Inductor makes of it."""
    result, (code, *_) = run_and_get_code(torch.compile(f, fullgraph=True), *args)
    for got, want in zip(result, f(*args), strict=True):
        torch.testing.assert_close(got, want)
    return len(re.findall(r"for\(int64_t x0=", code))


def test_one_pass_writes_both_resolutions() -> None:
    """The sum of both frequencies, an activation and its pool; Inductor alone makes two passes of it."""

    def alone(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(high + upsample(low))
        return y, pool(y)

    def together(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        return inductor.with_pool(F.relu(high + upsample(low)))

    maps = last(2, 16, 8, 8), last(2, 16, 4, 4)
    with torch.no_grad():
        assert passes(alone, *maps) == 2
        assert passes(together, *maps) == 1


def test_upsampling_keeps_channels_last() -> None:
    """As PyTorch's own does: else a concatenation with another map is laid out anew."""
    x = last(2, 4, 4, 4)
    with torch.no_grad():
        got, want = torch.compile(upsample, backend="aot_eager", fullgraph=True)(x), F.interpolate(x, scale_factor=2)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert got.stride() == want.stride()


def test_a_batch_of_one_value_is_refused_as_by_pytorch() -> None:
    norm = nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm(Octave(torch.randn(1, 2, 2, 2), torch.randn(1, 2, 1, 1)))
    with pytest.raises(Exception, match="Expected more than 1 value per channel"):
        torch.compile(norm, fullgraph=True)(Octave(torch.randn(1, 2, 2, 2), torch.randn(1, 2, 1, 1)))
