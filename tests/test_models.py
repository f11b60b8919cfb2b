"""The registered networks: counts of the authors' code, vanilla state dicts, vanilla logits at α = 0."""

import csv
import warnings
from importlib.resources import files
from typing import Any

import pytest
import timm
import torch
from torch import nn

from octnet import OctConv2d
from octnet.complexity import check_model, measure
from octnet.network import build_on_meta
from octnet.octave import OctaveError

SIZES = {"resnet_tiny": 32}
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


def official_rows() -> list[Any]:
    """Rows of the authors' counts that one of timm's definitions shares, with the name here."""
    with (files("octnet") / "official_macs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["alpha"] != "0oct"]
    shared = {
        f"paper_{name}": name for name in NAMES if name not in ("mobilenetv2_100",)
    }  # timm's V2 lacks an expansion
    return [
        pytest.param(shared.get(row["model"], row["model"]), row, id=f"{row['model']}-{row['alpha']}")
        for row in rows
        if shared.get(row["model"], row["model"]) in NAMES and row["alpha"] in ("0", "0.125", "0.25", "0.5", "0.75")
    ]


@pytest.mark.parametrize(("name", "row"), official_rows())
def test_multiply_adds_are_the_authors(name: str, row: dict[str, str]) -> None:
    counts = check_model(f"oct_{name}", float(row["alpha"]), {}, 1000, 224)
    assert counts.macs == int(row["macs"])
    if row["model"] == name:  # the same network, not only the same convolutions
        assert counts.params == int(row["params"])
        if row["alpha"] != "0":  # their α = 0 counts pools that a vanilla network lacks
            assert counts.flops_paper == int(row["flops_paper"])
    if row["model"] == "paper_densenet121":
        assert counts.flops_paper == int(row["flops_paper"])


@pytest.mark.parametrize("name", NAMES)
def test_vanilla_state_dict_at_every_alpha(name: str) -> None:
    """Same names, same shapes: a strict load of the vanilla network's."""
    vanilla = build_on_meta(name, 0, {}, 1000).state_dict()
    for alpha in (*ALPHAS, 1):
        if name.startswith("resnext") and alpha == 0.125:
            with pytest.raises(OctaveError, match="32 groups"):
                timm.create_model(f"oct_{name}", alpha=alpha)
            continue
        model = build_on_meta(f"oct_{name}", alpha, {}, 1000)
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in vanilla.items()}
        assert model.alpha == alpha


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


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_follows_alpha(name: str) -> None:
    """A planned layer's low channels are int(α · C) or none, and the same layers have them at every α."""
    split: set[frozenset[str]] = set()
    for alpha in (0.25, 0.5, 0.75):
        model = build_on_meta(f"oct_{name}", alpha, {}, 1000)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, OctConv2d)}
        assert all(m.low_channels in (0, int(alpha * m.out_channels)) for m in layers.values())
        split.add(frozenset(n for n, m in layers.items() if m.low_channels > 0))
    assert len(split) == 1
    assert len(next(iter(split))) > 0


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
    assert measure(model, 32).feature_map_mb == pytest.approx(sum(sizes) * 4 / 1e6)


@pytest.mark.parametrize("name", ["oct_resnet_tiny", "oct_densenet121", "oct_mobilenetv2_100"])
def test_compiles_as_one_graph(name: str) -> None:
    """A training step without graph breaks, with the gradients of the eager one (the graph only: no code is generated)."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"block_config": (1, 1, 1, 1)} if "dense" in name else {}
    model = timm.create_model(name, alpha=0.5, num_classes=3, **kwargs)
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
    """One layer and its norm through code generation."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    block = nn.Sequential(OctConv2d(8, 8, 3, padding=1, low_channels=4), nn.BatchNorm2d(8), nn.ReLU()).eval()
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
