"""The authors' networks: their counts to the unit, their blocks written as equations, vanilla state dicts and logits."""

import csv
import math
import re
from importlib.resources import files
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import SEModule
from torch import Tensor, nn

from octnet import Octave, OctConv2d
from octnet.complexity import measure
from octnet.convert import run_on_meta
from octnet.errors import OctaveError
from octnet.network import build_on_meta

SHALLOW: dict[str, Any] = {"layers": (2, 1, 1, 2)}
SMALL: dict[str, dict[str, Any]] = {  # kwargs that make a family's member small
    "paper_resnet50": SHALLOW,
    "paper_seresnet50": SHALLOW,
    "paper_resnext50_32x4d": SHALLOW,
    "paper_densenet121": {"block_config": (2, 2, 2, 2)},
    "paper_mobilenetv1_075": {},
    "paper_mobilenetv2_1125": {},
    "paper_resnet152e": SHALLOW,
    "paper_resnet152e_se": SHALLOW,
    "paper_resnet152f": SHALLOW,
}


def build(name: str, **kwargs: Any) -> nn.Module:
    """A network with few layers, few classes and statistics that are not 0 and 1, in eval mode."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **SMALL[name.removeprefix("oct_")], **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 4
            module.running_var = torch.rand(module.num_features) + 0.5
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def official_rows() -> list[Any]:
    """The authors' counts of their own networks, without the octave code at ratio 0."""
    with (files("octnet") / "official_macs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"].startswith("paper_") and row["alpha"] != "0oct"]
    return [pytest.param(row, id=f"{row['model']}-{row['alpha']}") for row in rows]


@pytest.mark.usefixtures("no_batch_norm", "no_try_out")
@pytest.mark.parametrize("row", official_rows())
def test_counts_are_the_authors(row: dict[str, str]) -> None:
    name = f"oct_{row['model']}"
    counts = measure(build_on_meta(name, float(row["alpha"]), {}, 1000), 224, name)
    assert counts.params == int(row["params"])
    assert counts.macs == int(row["macs"])
    if row["authors_api"] == "symbol" or row["alpha"] != "0":  # gluon's α = 0 counts pools that a vanilla network lacks
        assert counts.flops_paper == int(row["flops_paper"])


@pytest.mark.usefixtures("no_batch_norm")
@pytest.mark.parametrize("name", SMALL)
def test_vanilla_state_dict_at_every_alpha(name: str) -> None:
    vanilla = build_on_meta(name, 0, SMALL[name], 7).state_dict()
    for alpha in (0, 0.125, 0.25, 0.75):
        if "resnext" in name and alpha == 0.125:
            with pytest.raises(OctaveError, match="32 groups"):
                timm.create_model(f"oct_{name}", alpha=alpha)
            continue
        model = build_on_meta(f"oct_{name}", alpha, SMALL[name], 7)
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in vanilla.items()}


@pytest.mark.parametrize("name", SMALL)
def test_alpha_0_is_the_vanilla_network(name: str) -> None:
    vanilla, model = build(name), build(f"oct_{name}", alpha=0)
    model.load_state_dict(vanilla.state_dict(), strict=True)
    assert not any(isinstance(m, OctConv2d) for m in model.modules())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), vanilla(x))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(f"oct_{name}", alpha=0.25, num_classes=7, **SMALL[name]).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", timm.list_models("paper_*"))
def test_batch_norm_constants(name: str) -> None:
    """The two APIs of the authors; a wrong eps moves logits by up to .02."""
    symbol = "mobilenet" not in name and "152e" not in name and "152f" not in name
    norms = [m for m in build_on_meta(name, 0, {}, 1000).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-4, 0.08) if symbol else (1e-5, 0.1)}


def bn(x: Tensor, m: Any) -> Tensor:
    """(x − mean) / √(var + eps) · weight + bias."""
    y = (x - m.running_mean.view(-1, 1, 1)) / (m.running_var.view(-1, 1, 1) + m.eps).sqrt()
    return y if m.weight is None else y * m.weight.view(-1, 1, 1) + m.bias.view(-1, 1, 1)


def se(x: Tensor, m: Any) -> Tensor:
    """x · sigmoid(W₂ relu(W₁ mean(x) + b₁) + b₂)."""
    hidden = torch.relu(m.fc1.weight[:, :, 0, 0] @ x.mean((2, 3)).T + m.fc1.bias[:, None])
    return x * torch.sigmoid(m.fc2.weight[:, :, 0, 0] @ hidden + m.fc2.bias[:, None]).T[:, :, None, None]


@pytest.mark.parametrize("name", ["paper_resnet50", "paper_seresnet50"])
def test_preactivation_block_is_its_equation(name: str) -> None:
    """The first block's shortcut is a BN-ReLU-1×1 of its own on the raw input; the other's is the raw input."""
    model: Any = build(name)
    x = torch.randn(2, 64, 16, 16)
    for stage, stride in ((model.layer1, 1), (model.layer4, 2)):
        for index, block in enumerate((stage[0], stage[1])):
            s = stride if index == 0 else 1
            y = F.conv2d(bn(x, block.bn1).relu(), block.conv1.weight)
            y = F.conv2d(bn(y, block.bn2).relu(), block.conv2.weight, stride=s, padding=1)
            y = F.conv2d(bn(y, block.bn3).relu(), block.conv3.weight)
            if name == "paper_seresnet50":
                assert block.se.fc1.out_channels == y.shape[1] // 16
                y = se(y, block.se)
            if index == 0:
                own, _, conv = block.downsample
                assert own is not block.bn1
                y = y + F.conv2d(bn(x, own).relu(), conv.weight, stride=s)
            else:
                y = y + x
            torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-4)
            x = y
        x = torch.randn(2, 1024, 8, 8)
    tail = model.layer4.tail
    y = torch.randn(2, 2048, 2, 2)
    torch.testing.assert_close(tail(y), bn(y, tail[0]).relu())
    assert tail is list(model.layer4.children())[-1]


@pytest.mark.parametrize("name", ["paper_resnet152e", "paper_resnet152e_se"])
def test_late_block_is_its_equation(name: str) -> None:
    """Stride in the last convolution; with SE a BN without affine before f and before the shortcut's convolution."""
    model: Any = build(name)
    x = torch.randn(2, 1024, 8, 8)
    for block, s in ((model.layer4[0], 2), (model.layer4[1], 1)):
        y = bn(x, block.extra) if name.endswith("_se") else x
        y = bn(F.conv2d(y, block.conv1.weight), block.bn1).relu()
        y = bn(F.conv2d(y, block.conv2.weight, padding=1), block.bn2).relu()
        y = bn(F.conv2d(y, block.conv3.weight, stride=s), block.bn3)
        shortcut = x
        if name.endswith("_se"):
            y = se(y, block.se)
        if s == 2:
            *extra, conv, norm = block.downsample
            assert len(extra) == name.endswith("_se")
            shortcut = bn(F.conv2d(bn(x, extra[0]) if extra else x, conv.weight, stride=2), norm)
        y = (y + shortcut).relu()
        torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-4)
        x = y


def test_extra_norms_are_the_authors() -> None:
    """Their frozen gammas and betas are 95,488 numbers; an identity shortcut has none."""
    norms = [m for m in build_on_meta("paper_resnet152e_se", 0, {}, 1000).modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(2 * m.num_features for m in norms if not m.affine) == 95_488


def test_stem_of_152f_is_its_equation() -> None:
    model: Any = build("paper_resnet152f")
    x = torch.randn(2, 3, 32, 32)
    y = x
    norms = (model.conv1[1], model.conv1[4], model.bn1)
    for conv, norm, s in zip((model.conv1[0], model.conv1[3], model.conv1[6]), norms, (1, 2, 1), strict=True):
        y = bn(F.conv2d(y, conv.weight, stride=s, padding=1), norm).relu()
    assert y.shape == (2, 64, 16, 16)
    b = model.maxpool
    z = bn(F.conv2d(y, b.conv1.weight), b.bn1).relu()
    z = bn(F.conv2d(z, b.conv2.weight, stride=2, padding=1), b.bn2).relu()
    z = bn(F.conv2d(z, b.conv3.weight), b.bn3) + bn(F.conv2d(y, b.downsample[0].weight, stride=2), b.downsample[1])
    stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
    torch.testing.assert_close(stem(x), z.relu(), rtol=1e-4, atol=1e-4)


def outputs(name: str, kwargs: dict[str, Any]) -> dict[str, bool]:
    """Which layers of the network at α = .25 give a pair of maps."""
    model = build_on_meta(name, 0.25, kwargs, 7)
    paired: dict[str, bool] = {}
    for key, module in model.named_modules():
        module.register_forward_hook(lambda _m, _x, y, key=key: paired.update({key: isinstance(y, Octave)}))
    run_on_meta(model, (3, 64, 64))
    return paired


def test_mobilenetv2_splits_only_what_is_expanded() -> None:
    paired = outputs("oct_paper_mobilenetv2_1125", {})
    blocks = [f"blocks.{stage}.{i}" for stage, repeats in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(repeats)]
    assert not any(paired[block] for block in blocks)
    for layer in ("conv_pw", "conv_dw"):
        assert [paired[f"{block}.{layer}"] for block in blocks] == 13 * [True] + 4 * [False]


def test_mobilenetv1_starts_and_ends_at_pointwise_convolutions() -> None:
    paired = outputs("oct_paper_mobilenetv1_075", {})
    blocks = [f"blocks.{stage}.{i}" for stage, repeats in enumerate((1, 2, 2, 6, 2)) for i in range(repeats)]
    assert [paired[f"{block}.conv_dw"] for block in blocks] == [False] + 10 * [True] + 2 * [False]
    assert [paired[f"{block}.conv_pw"] for block in blocks] == 10 * [True] + 3 * [False]


@pytest.mark.parametrize("name", ["paper_seresnet50", "paper_resnet152e_se"])
def test_resnet_splits_the_first_three_stages(name: str) -> None:
    paired = outputs(f"oct_{name}", SMALL[name])
    convs = {key: pair for key, pair in paired.items() if re.search(r"conv\d$|downsample", key)}
    assert all(pair for key, pair in convs.items() if re.match(r"layer[123]\..*conv", key))
    assert not any(pair for key, pair in convs.items() if re.match(r"conv1|layer4\..*conv", key))
    assert not paired["layer4"] and paired["layer1"]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("paper_resnet50", ("layer4.0.conv2", "layer4.0.downsample.2")),
        ("paper_resnet152e", ("layer4.0.conv3", "layer4.0.downsample.0")),
        ("paper_mobilenetv1_075", ("blocks.4.0.conv_dw",)),
        ("paper_mobilenetv2_1125", ("blocks.5.0.conv_dw",)),
    ],
)
def test_last_stage_pools(name: str, layers: tuple[str, ...]) -> None:
    """Of a single frequency, and yet its stride is an average pool and a convolution of stride 1; strided at α = 0."""
    vanilla, model = build(name), build(f"oct_{name}", alpha=0.25)
    for layer in layers:
        strided: Any = vanilla.get_submodule(layer)
        x = torch.randn(2, strided.in_channels, 8, 8)
        w, padding, groups = strided.weight, strided.padding, strided.groups
        torch.testing.assert_close(strided(x), F.conv2d(x, w, None, 2, padding, 1, groups))
        pooled: Any = model.get_submodule(layer)
        pooled.load_state_dict(strided.state_dict())
        torch.testing.assert_close(pooled(x), F.conv2d(F.avg_pool2d(x, 2), w, None, 1, padding, 1, groups))


@pytest.mark.parametrize("name", ["paper_mobilenetv1_075", "paper_mobilenetv2_1125", "paper_resnet152f"])
def test_gluon_initialisation(name: str) -> None:
    """MXNet's MSRAPrelu: N(0, 1.882 / mean(fan_in, fan_out)) of weights (out, in / groups, k, k); biases 0."""
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL[name])
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
        rows, columns, area = layer.weight.shape[0], layer.weight.shape[1], math.prod(layer.weight.shape[2:])
        if layer.weight.numel() > 5000:
            assert layer.weight.std().item() == pytest.approx(
                math.sqrt(1.882 / (area * (rows + columns) / 2)), rel=0.05
            )
        assert layer.bias is None or layer.bias.eq(0).all()


@pytest.mark.parametrize("name", timm.list_models("paper_*resnet*"))
def test_no_zero_initialised_branch(name: str) -> None:
    model = timm.create_model(name, layers=(1, 1, 1, 1))
    weights = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    assert all(weight.eq(1).all() for weight in weights)
    assert sum(isinstance(m, SEModule) for m in model.modules()) == (4 if "se" in name else 0)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_of_pairs(name: str) -> None:
    """The same gradient, less memory."""
    model: Any = build(f"oct_{name}", alpha=0.25)
    x = torch.randn(1, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(x).square().sum(), model.parameters()))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("name", SMALL)
def test_timms_interface(name: str) -> None:
    """What timm's own models can do."""
    x = torch.randn(2, 1, 64, 64)
    model: Any = build(name, in_chans=1, drop_rate=0.1)
    features = model.forward_features(x)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    logits = model(x)
    last, intermediates = model.forward_intermediates(x)
    torch.testing.assert_close(last, features)
    reductions = [info["reduction"] for info in model.feature_info]
    channels = [info["num_chs"] for info in model.feature_info]
    shapes = [(2, c, 64 // r, 64 // r) for c, r in zip(channels, reductions, strict=True)]
    assert [f.shape for f in intermediates] == shapes
    extractor = build(name, in_chans=1, features_only=True)
    assert [f.shape for f in extractor(x)] == shapes
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x.requires_grad_()), logits)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(3, "max")
    assert model(x).shape == (2, 3)
