"""octavize on networks that octnet has no name for, and what it refuses."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octnet import OctaveError, OctConv2d, octavize
from octnet.convert import Plan, run_on_meta

PLANS: dict[str, Plan] = {
    "regnety_008": {
        "s[123].*.conv?.conv": 1,
        "s[123].*.downsample.conv": 1,
        "s4.*.conv?.conv": 0,
        "s4.*.downsample.conv": 0,
    },
    "efficientnet_b0": {"blocks.[0-4].?.conv_*": 1, "blocks.[56].?.conv_*": 0},
    "mobilenetv3_large_100": {"blocks.[1-4].?.conv_*": 1, "blocks.5.?.conv_*": 0},
    "vgg16_bn": {"features.40": 0, "features.*": 1},
    "resnetv2_50": {"stages.[012].*": 1, "stages.3.*": 0},
}
ALPHAS = (0.125, 0.5)


@pytest.mark.parametrize("name", PLANS)
def test_networks_without_a_name_here(name: str) -> None:
    """Strict loading of timm's state dict, every planned layer at its ratio, fewer multiply-adds the higher α, one forward."""
    macs = []
    for alpha in (0.0, *ALPHAS):
        with torch.device("meta"):
            vanilla = timm.create_model(name)
            model = octavize(timm.create_model(name), alpha, PLANS[name])
        model.load_state_dict(vanilla.state_dict(), strict=True, assign=True)
        for layer in (m for m in model.modules() if isinstance(m, OctConv2d)):
            assert layer.low_channels in (0, int(alpha * layer.out_channels))
        with FlopCounterMode(display=False) as counter:
            out = run_on_meta(model, (3, 224, 224))
        assert out.shape == (2, 1000)
        macs.append(counter.get_total_flops())
    assert macs == sorted(macs, reverse=True)
    assert len(set(macs)) == len(macs)


def test_real_forward_and_gradients() -> None:
    """Squeeze-and-excitation, depthwise, hard-swish, residuals: numbers arrive, every parameter learns."""
    torch.manual_seed(0)
    model = octavize(timm.create_model("mobilenetv3_large_100", num_classes=5), 0.5, PLANS["mobilenetv3_large_100"])
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_alpha_0_changes_nothing() -> None:
    torch.manual_seed(0)
    vanilla = timm.create_model("resnetv2_50", num_classes=5).eval()
    model = octavize(copy.deepcopy(vanilla), 0, PLANS["resnetv2_50"])
    assert [type(m) for m in model.modules()] == [type(m) for m in vanilla.modules()]
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), vanilla(x))


def test_alpha_1() -> None:
    """The paper's table needs α = 1: a part of a network without a high frequency."""
    with torch.device("meta"):
        model = octavize(timm.create_model("resnetv2_50"), 1, PLANS["resnetv2_50"])
    assert run_on_meta(model, (3, 224, 224)).shape == (2, 1000)


def test_first_pattern_holds_and_the_rest_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3))
    octavize(net, 0.5, {"2": 0, "[012]": 1})
    assert [m.low_channels if isinstance(m, OctConv2d) else None for m in net] == [4, 4, 0, None]
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 8, 6, 6)


class Flattens(nn.Module):
    """A network with an operation that has no meaning on a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 32, 32)}
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Sequential(nn.ReLU(), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stem(x))
        return out


@pytest.mark.parametrize(
    ("network", "alpha", "plan", "words"),
    [
        (Flattens, 0.5, {"stem": 1}, ["'head.1'", "flatten"]),
        (lambda: timm.create_model("resnet18"), 1.5, {"layer1.*": 1}, ["alpha=1.5", "between 0 and 1"]),
        (lambda: timm.create_model("resnet18"), 0.5, {"layer1.*.conv3": 1}, ["layer1.*.conv3", "layer1.1.conv"]),
        (lambda: timm.create_model("resnet18"), 0.5, {"layer1.*": 1}, ["'layer1.0'", "single map"]),
        (lambda: timm.create_model("resnet50"), 0.5, {"layer1.0.conv1": 1}, ["'layer1.0.conv2'", "conv2d"]),
        (lambda: timm.create_model("resnext50_32x4d"), 0.125, {"layer1.*": 1}, ["'layer1.0.conv2'", "32 groups", "0.125"]),
        (lambda: timm.create_model("resnetv2_50x1_bit"), 0.5, {"stages.0.*": 1}, ["'stages.0.blocks.0", "StdConv2d"]),
        (lambda: timm.create_model("vgg16_bn"), 0.5, {"pre_logits.*": 1}, ["'pre_logits.fc1'", "padding"]),
        (lambda: timm.create_model("convnext_atto"), 0.5, {"stages.0.*": 1}, ["'stages.0.blocks.0", "α = 0.5"]),
    ],
)  # fmt: skip
def test_refused_with_layer_and_operation(network: type[nn.Module], alpha: float, plan: Plan, words: list[str]) -> None:
    with torch.device("meta"):
        model = network()
    with pytest.raises(OctaveError) as caught:
        octavize(model, alpha, plan)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not any(isinstance(m, OctConv2d) for m in model.modules()), "the model is as it was"
