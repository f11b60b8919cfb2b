"""The networks of the paper's ablation: pre-activation ResNet, SE-ResNet and ResNeXt as the authors' `utils/symbol` has them.

    y = x + f(x), f = BN-ReLU-1×1, BN-ReLU-3×3, BN-ReLU-1×1 (He et al., arXiv 1603.05027)

What is theirs: in the first block of a stage x goes through a BN-ReLU-1×1 of its own (not the one of f), BN with eps 1e-4 and
momentum .08. Their initialisation is not published: ours is that of timm's ResNet, without the zero in the last layer of f.
"""

from typing import Any

from timm.layers import get_act_layer, get_norm_layer
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from octnet.authors import SYMBOL_CFG, SYMBOL_NORM, placement, register_paper, squeeze_excite
from octnet.resnet import PLAN


class PreActBottleneck(Bottleneck):
    """x + f(x), f = BN-ReLU-1×1, BN-ReLU-3×3 (stride), BN-ReLU-1×1, [SE]; a stage's first: BN-ReLU-1×1 (x) + f(x)."""

    aa: nn.Module

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Sequential | None = None,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
        act_layer: type[nn.Module] = nn.ReLU,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample, norm_layer=norm_layer, act_layer=act_layer, **kwargs)
        placed = placement(kwargs)
        for i, conv in enumerate((self.conv1, self.conv2, self.conv3), start=1):
            setattr(self, f"bn{i}", norm_layer(conv.in_channels, **placed))  # before the convolution, not after
        if downsample is not None:
            conv = next(m for m in downsample if isinstance(m, nn.Conv2d))
            self.downsample = nn.Sequential(norm_layer(inplanes, **placed), act_layer(inplace=True), conv)

    def zero_init_last(self) -> None:
        """Not the last BN: a ReLU follows it, and stays 0."""
        nn.init.zeros_(self.conv3.weight)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(self.act1(self.bn1(x)))
        x = self.aa(self.conv2(self.drop_block(self.act2(self.bn2(x)))))
        x = self.conv3(self.act3(self.bn3(x)))
        if self.se is not None:
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        return shortcut + x


class PreActResNet(ResNet):
    """timm's ResNet with the last stage ending in BN-ReLU."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        placed = placement(kwargs)
        norm = get_norm_layer(kwargs["norm_layer"])(self.num_features, **placed)
        act = get_act_layer(kwargs.get("act_layer", nn.ReLU))(inplace=True)
        # in the stage: who takes its features takes them finished
        self.get_submodule("layer4").add_module("tail", nn.Sequential(norm, act))


_COMMON: dict[str, Any] = {"block": PreActBottleneck, "norm_layer": SYMBOL_NORM, "zero_init_last": False}
_VARIANTS: dict[str, dict[str, Any]] = {
    "resnet26": {"layers": (2, 2, 2, 2)},
    "resnet50": {"layers": (3, 4, 6, 3)},
    "resnet101": {"layers": (3, 4, 23, 3)},
    "resnet152": {"layers": (3, 8, 36, 3)},
    "resnet200": {"layers": (3, 24, 36, 3)},
    "seresnet50": {"layers": (3, 4, 6, 3), "block_args": {"attn_layer": squeeze_excite}},
    "resnext50_32x4d": {"layers": (3, 4, 6, 3), "cardinality": 32, "base_width": 4},
    "resnext101_32x4d": {"layers": (3, 4, 23, 3), "cardinality": 32, "base_width": 4},
}
for _name, _variant in _VARIANTS.items():
    _cfg = SYMBOL_CFG | {"first_conv": "conv1", "classifier": "fc"}
    register_paper(f"paper_{_name}", PreActResNet, PLAN, _cfg, **_COMMON, **_variant)
