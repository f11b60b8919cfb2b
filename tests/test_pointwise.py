"""The 1×1 convolution that measures its result. The kernel runs in Triton's interpreter; the oracle is PyTorch."""

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, fx, library, nn
from torch._dynamo.backends.registry import lookup_backend

from octnet import inductor, pointwise
from octnet.conv import OctConv2d
from octnet.fold import fold_batch_norms
from octnet.octave import Octave
from octnet.plain import Geometry
from octnet.pointwise import Moments, Product

# (batch, channels, of the output, height, width) and what there is beside: the other frequency's channels and how much
# smaller it is; tiles of 32 and 128 pixels and of 32, 64 and 128 channels: full ones, others, more than one
Case = tuple[tuple[int, int, int, int, int], dict[str, Any]]
CASES: list[Case] = [
    ((2, 24, 24, 6, 10), {"other": (8, 2), "measures": True}),
    ((1, 72, 136, 12, 12), {"other": (8, 1), "measures": True, "bias": True}),
    ((3, 16, 64, 4, 6), {"measures": True}),
    ((1, 136, 192, 16, 16), {"other": (136, 2), "measures": True}),
    ((2, 8, 256, 8, 8), {"other": (72, 1), "measures": True}),
    ((2, 24, 40, 6, 10), {"other": (16, 2), "bias": True, "residual": True, "low": 0.0, "pools": True}),
    ((1, 72, 136, 12, 12), {"other": (72, 2), "low": -0.5, "high": 0.5, "pools": True}),
    ((3, 16, 64, 5, 7), {"other": (8, 1), "residual": True, "low": 0.0, "nan": True}),
    ((33, 8, 128, 32, 32), {"residual": True, "bias": True, "low": 0.0, "high": 6.0, "pools": True}),
]


def given(case: Case) -> dict[str, Any]:
    """The operation's arguments; kernels are the left parts of wider ones."""
    (batch, inputs, outputs, height, width), beside = case
    torch.manual_seed(0)

    def last(*shape: int) -> Tensor:
        return torch.randn(shape).contiguous(memory_format=torch.channels_last)

    def kernel(channels: int) -> Tensor:
        return torch.randn(outputs, channels + 8, 1, 1)[:, :channels]

    channels, scale = beside.get("other", (0, 1))
    return (
        {
            "x": last(batch, inputs, height, width),
            "weight": kernel(inputs),
            "bias": torch.randn(outputs) if "bias" in beside else None,
            "other": last(batch, channels, height // scale, width // scale) if channels else None,
            "other_weight": kernel(channels) if channels else None,
            "residual": last(batch, outputs, height, width) if "residual" in beside else None,
        }
        | {"low": None, "high": None, "pools": False, "measures": False}
        | {key: beside[key] for key in ("low", "high", "pools", "measures") if key in beside}
    )


def expected(given: dict[str, Any]) -> list[Tensor]:
    """Y, then its pool, or variance and mean of its channels."""
    maps = {key: value.double() for key, value in given.items() if isinstance(value, Tensor)}
    y = F.conv2d(maps["x"], maps["weight"], maps.get("bias"))
    if "other" in maps:
        y = y + F.interpolate(F.conv2d(maps["other"], maps["other_weight"]), size=y.shape[2:], mode="nearest")
    if "residual" in maps:
        y = y + maps["residual"]
    y = y if given["low"] is None else F.hardtanh(y, given["low"], math.inf if given["high"] is None else given["high"])
    if given["pools"]:
        return [y, F.avg_pool2d(y, 2)]
    return [y, *torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)] if given["measures"] else [y]


def assert_expected(found: list[Tensor], given: dict[str, Any], tolerance: float = 1e-4) -> None:
    y, *more = found
    assert y.is_contiguous(memory_format=torch.channels_last)
    if given["measures"]:
        more = list(Moments(*more).var_mean(y.numel() // y.shape[1]))
    for got, want in zip((y, *more), expected(given), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_y_and_what_comes_with_it(case: Case) -> None:
    inputs = given(case)
    assert_expected(pointwise.pointwise(**inputs), inputs)


def test_the_kernel(tmp_path: Path) -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    pytest.importorskip("triton", "3.9", reason="the interpreter of torch 2.11's Triton can't read numpy's numbers")
    wide = [given(case) for case in CASES]
    # bfloat16 is beyond the interpreter
    narrow = [{key: x.half() if isinstance(x, Tensor) else x for key, x in inputs.items()} for inputs in wide]
    torch.save(wide + narrow, tmp_path / "inputs.pt")
    program = """
import sys, torch
from octnet.kernels import launch
from octnet.pointwise import TILE
inputs = torch.load(sys.argv[1])
torch.save([launch(tile=TILE if given.pop("measures") else None, **given) for given in inputs], sys.argv[2])
"""
    files = str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")
    subprocess.run([sys.executable, "-c", program, *files], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
    for inputs, outputs in zip(wide + narrow, torch.load(files[1]), strict=True):
        assert_expected(outputs, inputs, tolerance=1e-4 if inputs["x"].dtype == torch.float32 else 2e-2)


REFUSED: list[dict[str, Any]] = [
    {"dtype": torch.float32},
    {"high": 12},
    {"kernel": 3},
    {"low_channels": 0},
    {"memory_format": torch.contiguous_format},
    {"transposed": True},
]


@pytest.mark.parametrize("change", [{}, *REFUSED])
def test_what_it_takes(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits, channels last, channels by 8; else the library's convolutions run."""
    monkeypatch.setattr(pointwise, "fuses", lambda x: True)
    a: dict[str, Any] = {"high": 16, "kernel": 1, "low_channels": 16, "dtype": torch.float16} | change
    layout = change.get("memory_format", torch.channels_last)
    high, low = (
        torch.zeros(1, n, size, size, dtype=a["dtype"]).contiguous(memory_format=layout)
        for n, size in ((a["high"], 4), (32 - a["high"], 2))
    )
    weight = torch.zeros(32, 32, a["kernel"], a["kernel"], dtype=a["dtype"])
    if "transposed" in a:
        weight = weight.transpose(0, 1)
    geometry = Geometry(1, (0, 0), (1, 1), 1, a["low_channels"])
    assert pointwise.fits(high, low, weight, geometry) == (not change)


@pytest.mark.parametrize("case", [CASES[0], CASES[5]])
def test_it_keeps_pytorchs_rules(case: Case) -> None:
    library.opcheck(pointwise.pointwise, tuple(given(case).values()))


def test_moments_of_a_mean_far_from_zero() -> None:
    """Where sums of squares would have lost the variance."""
    x = torch.randn(2, 8, 12, 12) + 1e4
    _, *moments = Product(x, torch.eye(8)[:, :, None, None]).measured()
    var, _ = Moments(*moments).var_mean(2 * 12 * 12)
    torch.testing.assert_close(var, x.double().var((0, 2, 3), correction=0, keepdim=True).float(), rtol=1e-2, atol=0)


class Call(NamedTuple):
    """What a call of the operation was asked for beside Y."""

    clips: bool
    adds_residual: bool
    pools: bool
    measures: bool


class Compiler:
    """Compiles as for a GPU, and notes the operation's calls that what is computed needs."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, graph: fx.GraphModule, inputs: Any) -> Any:
        needed = copy.deepcopy(graph)
        needed.graph.eliminate_dead_code()
        for part in needed.modules():
            for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
                if node.target is getattr(torch.ops, inductor.NAMESPACE).pointwise.default:
                    low, pools, measures = (node.kwargs[key] for key in ("low", "pools", "measures"))
                    self.calls.append(Call(low is not None, node.args[-1] is not None, pools, measures))
        return lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    monkeypatch.setattr(inductor, "DEVICES", {"cpu"})
    monkeypatch.setattr(pointwise, "DTYPES", {torch.float64})
    torch._dynamo.reset()
    yield Compiler()
    torch._dynamo.reset()


def network(alpha: float, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("oct_resnet26", alpha=alpha, layers=(2, 1, 1, 1), num_classes=3, **changes)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):  # so that none of them is the identity
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            assert norm.running_var is not None
            norm.running_var.uniform_(0.5, 1.5)
    return model.double().to(memory_format=torch.channels_last)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("alpha", [0.125, 0.5])
def test_a_training_step(alpha: float, compiler: Compiler) -> None:
    """Outputs, gradients, running statistics are the eager ones."""
    model = network(alpha)
    x = images()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    results: list[list[Tensor]] = []
    for f in (torch.compile(model, backend=compiler, fullgraph=True), model):
        model.load_state_dict(before)
        logits = f(x)
        gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        results.append([logits, *gradients, *(v.clone() for k, v in model.state_dict().items() if "running" in k)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    # both maps of stages 1 to 3: four blocks' first and last convolutions, three shortcuts; the gradients of their inputs,
    # of two of them a plain map, but not of the two shortcuts of stride 2
    forward = 22 * [Call(clips=False, adds_residual=False, pools=False, measures=True)]
    backward = (2 * 7 + 2) * [Call(clips=False, adds_residual=False, pools=False, measures=False)]
    assert sorted(compiler.calls) == sorted(forward + backward)


@pytest.mark.parametrize("alpha", [0.125, 0.5])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inference(alpha: float, context: Callable[[], AbstractContextManager[None]], compiler: Compiler) -> None:
    """With batch norms folded, the eager outputs; activations, shortcuts and pools are parts of the convolutions."""
    model = network(alpha).eval()
    x = images()
    compiled = torch.compile(fold_batch_norms(copy.deepcopy(model)), backend=compiler, fullgraph=True)
    with context():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-6, atol=1e-8)
    first = [Call(True, False, pools, False) for pools in (True, False)]
    last = [Call(True, True, pools, False) for pools in (True, False)]
    alone = 2 * [Call(False, False, False, False)]  # three shortcuts, and the first of all, whose input is a plain map
    assert sorted(compiler.calls) == sorted(3 * first + 4 * last + 4 * alone)


def test_inference_with_batch_norms(compiler: Compiler) -> None:
    """Of a network as it was trained."""
    model = network(0.25).eval()
    x = images()
    with torch.no_grad():
        compiled = torch.compile(model, backend=compiler, fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-6, atol=1e-8)
    assert len(compiler.calls) == 22


class Layers(NamedTuple):
    """Two 1×1 octave convolutions; functions are typed by PyTorch as of tensors."""

    a: Any
    b: Any


def sums_and_activations(f: Layers, x: Any) -> list[Any]:
    """What a step can't take with it: a second sum, another activation, one that isn't its own."""
    y = f.a(x) + x + x
    z = f.b(x)
    z += y
    return [F.relu(y), F.silu(z), F.relu(z), F.hardtanh(z + 1), z]


def a_changed_input(f: Layers, x: Any) -> list[Any]:
    y, z, w = f.a(x), f.b(x), f.a(x)
    F.silu(x, inplace=True)
    outputs = [F.relu(y)]
    x += 1
    outputs.append(F.relu(z))
    F.relu6(x, inplace=True)
    return [*outputs, F.relu(w), x]


def a_changed_shortcut(f: Layers, x: Any) -> list[Any]:
    z = f.b(x)
    y = f.a(x) + z
    F.leaky_relu(z, inplace=True)
    w = F.relu(y)
    z += y
    return [w, F.relu(y), z]


def two_names(f: Layers, x: Any) -> list[Any]:
    y = f.a(x)
    z = y
    y += x
    y += z
    w = F.relu(y, inplace=True)
    w += x
    return [w, y, z]


def a_plain_input(f: Layers, x: Any) -> list[Any]:
    high = torch.cat([x.high, x.high], 1)
    y = f.a(high)
    high += 1
    return [F.relu(y)]


@pytest.mark.parametrize(
    "sequence", [sums_and_activations, a_changed_input, a_changed_shortcut, two_names, a_plain_input]
)
def test_steps_are_what_they_were(sequence: Callable[[Layers, Octave], list[Octave]], compiler: Compiler) -> None:
    """Whatever happens between a convolution and an activation, the eager maps."""
    torch.manual_seed(0)
    layers = Layers(*(OctConv2d(16, 16, 1, low_channels=8).double() for _ in range(2)))

    def run(f: Any) -> list[Octave]:
        generator = torch.Generator().manual_seed(1)
        high, low = (torch.randn(2, 8, n, n, dtype=torch.float64, generator=generator) for n in (8, 4))
        outputs: list[Octave] = f(layers, Octave(high, low).contiguous(torch.channels_last))
        return outputs

    with torch.no_grad():
        for got, want in zip(
            run(torch.compile(sequence, backend=compiler, fullgraph=True)), run(sequence), strict=True
        ):
            torch.testing.assert_close(got.parts, want.parts)
    assert compiler.calls


def test_a_frozen_layer_beside_a_trained_one(compiler: Compiler) -> None:
    """Its maps are constants; their sum with others isn't."""
    torch.manual_seed(0)
    frozen, trained = (OctConv2d(16, 16, 1, low_channels=8).double() for _ in range(2))
    frozen.requires_grad_(False)
    high, low = (torch.randn(2, 8, n, n, dtype=torch.float64) for n in (8, 4))
    x = Octave(high, low).contiguous(torch.channels_last)

    def loss(x: Any) -> Tensor:
        y: Any = F.relu(frozen(x) + trained(x))
        return sum((part.square().sum() for part in y.parts), torch.zeros(()))

    compiled = torch.compile(loss, backend=compiler, fullgraph=True)
    found, expected = (torch.autograd.grad(f(x), trained.weight) for f in (compiled, loss))
    torch.testing.assert_close(found, expected)
    assert len(compiler.calls) == 4  # X needs no gradient
