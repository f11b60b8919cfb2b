"""The 1×1 convolution that measures its result. The kernel runs in Triton's interpreter; the oracle is PyTorch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, library

from octnet import inductor, pointwise, ways
from octnet.plain import Geometry
from octnet.pointwise import Moments

# tiles of 128 pixels and of 32, 64 and 128 channels: full ones, others, more than one; with and without a map to be added
CASES = [
    (2, 24, 24, 6, 10, 2),
    (1, 72, 136, 12, 12, 1),
    (3, 16, 64, 4, 6, 0),
    (1, 136, 192, 16, 16, 2),
    (2, 8, 256, 8, 8, 2),
]


def given(batch: int, inputs: int, outputs: int, height: int, width: int, scale: int) -> tuple[Tensor, ...]:
    """x, the left part of a kernel, and a map of 1/scale of x's size, where scale isn't 0."""
    torch.manual_seed(0)

    def last(*shape: int) -> Tensor:
        return torch.randn(shape).contiguous(memory_format=torch.channels_last)

    weight = torch.randn(outputs, inputs + 8, 1, 1)[:, :inputs]
    maps = [] if scale == 0 else [last(batch, outputs, height // scale, width // scale)]
    return last(batch, inputs, height, width), weight, *maps


def expected(x: Tensor, weight: Tensor, cross: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Y, and variance and mean of its channels."""
    y = F.conv2d(x.double(), weight.double())
    y = y if cross is None else y + F.interpolate(cross.double(), size=y.shape[2:], mode="nearest")
    return y, *torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)


def assert_expected(found: Any, *inputs: Tensor, tolerance: float = 1e-4) -> None:
    y, *moments = found
    pixels = y.numel() // y.shape[1]
    for got, want in zip((y, *Moments(*moments).var_mean(pixels)), expected(*inputs), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", CASES)
def test_y_and_its_moments(case: tuple[int, ...]) -> None:
    inputs = given(*case)
    assert_expected(pointwise.pointwise(*inputs, *[None] * (3 - len(inputs))), *inputs)


def test_the_kernel(tmp_path: Path) -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    pytest.importorskip("triton", "3.9", reason="the interpreter of torch 2.11's Triton can't read numpy's numbers")
    wide = [given(*case) for case in CASES]
    narrow = [tuple(x.half() for x in maps) for maps in wide]  # bfloat16 is beyond the interpreter
    inputs = wide + narrow
    torch.save(inputs, tmp_path / "inputs.pt")
    program = """
import sys, torch
from octnet.kernels import launch
from octnet.pointwise import TILE
inputs = torch.load(sys.argv[1])
torch.save([launch(*maps, *[None] * (3 - len(maps)), TILE) for maps in inputs], sys.argv[2])
"""
    files = str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")
    subprocess.run([sys.executable, "-c", program, *files], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
    for maps, outputs in zip(inputs, torch.load(files[1]), strict=True):
        assert_expected(outputs, *maps, tolerance=1e-4 if maps[0].dtype == torch.float32 else 2e-2)


REFUSED: list[dict[str, Any]] = [
    {"bias": torch.zeros(32)},
    {"dtype": torch.float32},
    {"high": 12},
    {"kernel": 3},
    {"low_channels": 0},
    {"memory_format": torch.contiguous_format},
]


@pytest.mark.parametrize("change", [{}, *REFUSED])
def test_what_it_takes(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits, channels last, channels by 8, no bias; else the library's convolutions run."""
    monkeypatch.setattr(pointwise, "fuses", lambda x: True)
    a: dict[str, Any] = {"high": 16, "kernel": 1, "low_channels": 16, "dtype": torch.float16} | change
    layout = change.get("memory_format", torch.channels_last)
    high, low = (
        torch.zeros(1, n, size, size, dtype=a["dtype"]).contiguous(memory_format=layout)
        for n, size in ((a["high"], 4), (32 - a["high"], 2))
    )
    weight = torch.zeros(32, 32, a["kernel"], a["kernel"], dtype=a["dtype"])
    geometry = Geometry(1, (0, 0), (1, 1), 1, a["low_channels"])
    assert pointwise.fits(high, low, weight, change.get("bias"), geometry) == (not change)


def test_it_keeps_pytorchs_rules() -> None:
    library.opcheck(pointwise.pointwise, given(*CASES[0]))


def test_moments_of_a_mean_far_from_zero() -> None:
    """Where sums of squares would have lost the variance."""
    x = torch.randn(2, 8, 12, 12) + 1e4
    _, *moments = pointwise.pointwise(x, torch.eye(8)[:, :, None, None], None)
    var, _ = Moments(*moments).var_mean(2 * 12 * 12)
    torch.testing.assert_close(var, x.double().var((0, 2, 3), correction=0, keepdim=True).float(), rtol=1e-2, atol=0)


# in stages 1 to 3: a block's first and last convolution, the shortcut; at α = .125 two of them are computed on their narrow side
@pytest.mark.parametrize(("alpha", "count"), [(0.125, 7), (0.5, 9)])
def test_a_training_step(alpha: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network compiled as for a GPU: outputs, gradients, running statistics are the eager ones."""
    monkeypatch.setattr(inductor, "DEVICES", {"cpu"})
    monkeypatch.setattr(pointwise, "DTYPES", {torch.float64})
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = timm.create_model("oct_resnet26", alpha=alpha, layers=(1, 1, 1, 1), num_classes=3).double()
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measured = ways._measured
    layers: list[int] = []

    def watch(*products: Any) -> Any:
        layers.append(1)
        return measured(*products)

    monkeypatch.setattr(ways, "_measured", watch)
    results: list[list[Tensor]] = []
    for f in (torch.compile(model, backend="aot_eager", fullgraph=True), model):
        model.load_state_dict(before)
        logits = f(x)
        gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        results.append([logits, *gradients, *(v.clone() for k, v in model.state_dict().items() if "running" in k)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    assert len(layers) == count
