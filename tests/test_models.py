"""The registered networks: counts of the authors' code, vanilla state dicts, vanilla logits at α = 0."""

import csv
import functools
import warnings
from importlib.resources import files
from typing import Any

import pytest
import timm
import torch
from torch import nn

from octnet import OctConv2d
from octnet.complexity import measure
from octnet.errors import OctaveError
from octnet.network import build_on_meta

NAMES = (
    *("resnet_tiny", "resnet26", "resnet50", "resnet101", "resnet152", "resnet200", "seresnet50"),
    *("resnext50_32x4d", "resnext101_32x4d", "densenet121", "mobilenetv1_100", "mobilenetv2_100"),
)
ALPHAS = (0, 0.125, 0.25, 0.5, 0.75)
SMALL: dict[str, dict[str, Any]] = {  # kwargs that make a family's member small
    "resnet26": {"layers": (1, 1, 1, 1)},
    "seresnet50": {"layers": (1, 1, 1, 1)},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1)},
    "resnet_tiny": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "mobilenetv1_100": {},
    "mobilenetv2_100": {},
}


def official_counts() -> dict[tuple[str, float], list[dict[str, str]]]:
    """The authors' rows for the networks here, by (name, α); timm's MobileNetV2 lacks an expansion that theirs has."""
    rows: dict[tuple[str, float], list[dict[str, str]]] = {}
    with (files("octnet") / "official_macs.csv").open() as file:
        for row in csv.DictReader(file):
            name = row["model"].removeprefix("paper_")
            if name in NAMES and name != "mobilenetv2_100" and row["alpha"] != "0oct":
                rows.setdefault((name, float(row["alpha"])), []).append(row)
    return rows


OFFICIAL = official_counts()


@functools.cache
def vanilla_shapes(name: str) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in build_on_meta(name, 0, {}, 1000).state_dict().items()}


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnext101_32x4d"])
def test_resnext_has_no_eighth(name: str) -> None:
    with pytest.raises(OctaveError, match=r"0.125.*'layer1.0.conv2'.*32 groups"):
        timm.create_model(f"oct_{name}", alpha=0.125)


@pytest.mark.usefixtures("no_batch_norm", "no_try_out")
@pytest.mark.parametrize(
    ("name", "alpha"), [(n, a) for n in NAMES for a in (*ALPHAS, 1) if not (n.startswith("resnext") and a == 0.125)]
)
def test_every_network_at_every_alpha(name: str, alpha: float) -> None:
    """The vanilla network's state dict, layers that follow α, and the multiply-adds of the authors' code."""
    model = build_on_meta(f"oct_{name}", alpha, {}, 1000)
    assert model.alpha == alpha
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == vanilla_shapes(name)
    layers = [m for m in model.modules() if isinstance(m, OctConv2d)]
    assert all(m.low_channels in (0, int(alpha * m.out_channels)) for m in layers)
    assert any(m.low_channels > 0 for m in layers) == (alpha > 0)
    rows = OFFICIAL.get((name, alpha), [])
    counts = measure(model, 224, f"oct_{name}") if rows else None
    for row in rows:
        assert counts is not None
        assert counts.macs == int(row["macs"])
        if row["model"] == name:  # the same network as theirs, not only the same convolutions
            assert counts.params == int(row["params"])
        if row["model"] in ("paper_densenet121", name) and alpha > 0:  # their α = 0 counts pools that vanilla ones lack
            assert counts.flops_paper == int(row["flops_paper"])


@pytest.mark.parametrize("name", SMALL)
def test_alpha_0_is_the_vanilla_network(name: str) -> None:
    """The same modules and bit-equal logits."""
    vanilla = timm.create_model(name, num_classes=7, **SMALL[name]).eval()
    model = timm.create_model(f"oct_{name}", alpha=0, num_classes=7, **SMALL[name]).eval()
    model.load_state_dict(vanilla.state_dict(), strict=True)
    assert [type(m) for m in model.modules()] == [type(m) for m in vanilla.modules()]
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), vanilla(x))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(f"oct_{name}", alpha=0.25, num_classes=7, **SMALL[name]).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_fvcore_agrees() -> None:
    """A second opinion on the count: fvcore's convolutions and linear layers."""
    from fvcore.nn import FlopCountAnalysis

    model = timm.create_model("oct_resnet50", alpha=0.25, layers=(1, 1, 1, 1)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore traces, and torch calls that old
        analysis = FlopCountAnalysis(model, torch.zeros(1, 3, 64, 64)).unsupported_ops_warnings(False)
        by_operator = analysis.uncalled_modules_warnings(False).by_operator()
    assert by_operator["conv"] + by_operator["linear"] == measure(model, 64).macs


def test_paper_curve_of_feature_map_memory() -> None:
    """Maps shrink by ¾α where a layer is split: measured on the outputs of real convolutions."""
    model = timm.create_model("oct_resnet_tiny", alpha=0.5, num_classes=10)
    sizes = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda _m, _i, y: sizes.append(sum(p.numel() for p in getattr(y, "parts", [y])))
            )
    model(torch.zeros(1, 3, 32, 32))
    total = sum(sizes)
    assert measure(model, 32).feature_map_mb == pytest.approx(total * 4 / 1e6)


@pytest.mark.parametrize(
    ("name", "alpha"), [("oct_resnet_tiny", 0.5), ("oct_resnet_tiny", 0.125), ("oct_densenet121", 0.5)]
)
def test_compiles_as_one_graph(name: str, alpha: float) -> None:
    """A training step without graph breaks, with the gradients of the eager one (the graph only: no code is generated)."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"block_config": (1, 1, 1, 1)} if "dense" in name else {}
    model = timm.create_model(name, alpha=alpha, num_classes=3, **kwargs)
    x = torch.randn(2, 3, 64, 64)

    def step(x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    def gradients(f: Any) -> list[torch.Tensor]:
        state = {k: v.clone() for k, v in model.state_dict().items()}
        grads = torch.autograd.grad(f(x), list(model.parameters()))
        model.load_state_dict(state)
        return list(grads)

    for a, b in zip(gradients(step), gradients(torch.compile(step, fullgraph=True, backend="aot_eager")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_compiled_code_gives_the_same_numbers() -> None:
    """A few layers through code generation."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    first = OctConv2d(8, 8, 3, padding=1, low_channels=4)
    depthwise = OctConv2d(8, 8, 3, stride=2, padding=1, groups=8, low_channels=4)
    block = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), depthwise).eval()
    x = torch.randn(2, 8, 8, 8)
    eager, compiled = block(x), torch.compile(block, fullgraph=True)(x)
    torch.testing.assert_close(compiled.high, eager.high)
    torch.testing.assert_close(compiled.low, eager.low)


def test_traces() -> None:
    model = timm.create_model("oct_resnet_tiny", alpha=0.25, num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x))
