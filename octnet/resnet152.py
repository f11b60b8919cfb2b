"""The published ResNet-152: post-activation, deep stem, stride in a block's last convolution (`utils/gluon/utils/resnetv1.py`).

    y = ReLU(x + f(x)), f = 1×1-BN-ReLU, 3×3-BN-ReLU, 1×1-BN

e: three 3×3 convolutions and a max-pool before the stages; f: narrower ones, and in the pool's place a bottleneck of stride 2;
e with squeeze-and-excitation: also a BN without scale and shift before f and before the convolution of the shortcut.
"""

from typing import Any

from timm.layers import get_act_layer, get_norm_layer
from timm.models.resnet import Bottleneck, ResNet, downsample_conv
from torch import Tensor, nn

from octnet.authors import GLUON_CFG, GLUON_NORM, init_gluon, placement, register_paper, squeeze_excite
from octnet.resnet import PLAN


class LateBottleneck(Bottleneck):
    """ReLU(x + f(x)), f = [BN'], 1×1-BN-ReLU, 3×3-BN-ReLU, 1×1 (stride)-BN, [SE]; a stage's first: [BN'], 1×1-BN (x)."""

    aa: nn.Module

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Sequential | None = None,
        extra_bn: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample, **kwargs)
        self.conv2.stride, self.conv3.stride = (1, 1), self.conv2.stride
        self.extra = nn.Identity()
        if extra_bn:
            norm = {"affine": False} | placement(kwargs)
            self.extra = kwargs["norm_layer"](inplanes, **norm)
            if downsample is not None:
                self.downsample = nn.Sequential(kwargs["norm_layer"](inplanes, **norm), *downsample)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(self.extra(x))))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        x = self.bn3(self.conv3(x))
        if self.se is not None:
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        return self.act3(shortcut + x)


class GluonResNet(ResNet):
    """timm's ResNet with the authors' initialisation."""

    def init_weights(self, zero_init_last: bool = False) -> None:
        """MSRAPrelu; `zero_init_last` is their option --last-gamma."""
        super().init_weights(zero_init_last)
        init_gluon(self)


class BigLittleStemResNet(GluonResNet):
    """3×3 of 8, 32 (stride 2) and 64 channels, then a bottleneck 64-32-64 of stride 2 where others have a max-pool."""

    def __init__(self, zero_init_last: bool = False, **kwargs: Any) -> None:
        super().__init__(zero_init_last=zero_init_last, **kwargs)
        norm_layer = get_norm_layer(kwargs["norm_layer"])
        act_layer = get_act_layer(kwargs.get("act_layer", nn.ReLU))
        placed = placement(kwargs)
        self.conv1[0] = nn.Conv2d(self.in_chans, 8, 3, padding=1, bias=False, **placed)
        self.conv1[1] = norm_layer(8, **placed)
        self.conv1[3] = nn.Conv2d(8, 32, 3, stride=2, padding=1, bias=False, **placed)
        shortcut = downsample_conv(64, 64, 1, stride=2, norm_layer=norm_layer, **placed)
        layers = {"norm_layer": norm_layer, "act_layer": act_layer}
        self.register_module("maxpool", Bottleneck(64, 16, 2, shortcut, base_width=128, **layers, **placed))
        self.init_weights(zero_init_last)


for _name, _network, _block_args in (
    ("paper_resnet152e", GluonResNet, {}),
    ("paper_resnet152e_se", GluonResNet, {"attn_layer": squeeze_excite, "extra_bn": True}),
    ("paper_resnet152f", BigLittleStemResNet, {}),
):
    _variant: dict[str, Any] = {
        "block": LateBottleneck,
        "layers": (3, 8, 36, 3),
        "stem_type": "deep",
        "stem_width": 32,
        "norm_layer": GLUON_NORM,
        "zero_init_last": False,
        "block_args": _block_args,
    }
    register_paper(_name, _network, PLAN, GLUON_CFG | {"first_conv": "conv1.0", "classifier": "fc"}, **_variant)
