"""MobileNetV1 and V2: timm's definitions and the authors' (`utils/gluon`), with the authors' choice of layers.

V1: from the pointwise convolution of block 1 to that of block 11, the fifth 512→512; the two blocks after it have ratio 0.
V2: only the expanded features between the two pointwise convolutions of a block are split, in the first 13 of the 17 blocks (the
first has no expansion in timm's definition, so nothing to split); the last 4 have ratio 0.

The authors' own: V1 with ReLU instead of ReLU6, V2 with a 1×1 convolution in the first block too, int(m · C) channels.
"""

from functools import partial
from typing import Any

from timm.layers import get_norm_act_layer
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from torch import nn

from octnet.authors import GLUON_CFG, GLUON_NORM, init_gluon, placement, register_paper
from octnet.convert import Plan, register_octave

PLAN_V1: Plan = {
    "blocks.3.5.conv_pw": 0,
    "blocks.[0-3].*": 1,
    "blocks.4.*": 0,
}
PLAN_V2: Plan = {
    "blocks.[1-4].*.conv_pwl": 0,
    "blocks.[1-4].*": 1,
    "blocks.[56].*": 0,
}
PAPER_PLAN_V2: Plan = {
    "blocks.[0-4].*.conv_pwl": 0,
    "blocks.[0-4].*": 1,
    "blocks.[56].*": 0,
}

# timm's notation: kind, repeats, kernel, stride, expansion, channels
BLOCKS_V1 = ["dsa_r1_k3_s1_c64", "dsa_r2_k3_s2_c128", "dsa_r2_k3_s2_c256", "dsa_r6_k3_s2_c512", "dsa_r2_k3_s2_c1024"]
BLOCKS_V2 = [
    *("ir_r1_k3_s1_e1_c16", "ir_r2_k3_s2_e6_c24", "ir_r3_k3_s2_e6_c32", "ir_r4_k3_s2_e6_c64"),
    *("ir_r3_k3_s1_e6_c96", "ir_r3_k3_s2_e6_c160", "ir_r1_k3_s1_e6_c320"),
]


class GluonMobileNet(EfficientNet):
    """timm's EfficientNet of the blocks `arch`, int(width · C) channels, the authors' initialisation."""

    def __init__(self, arch: list[str], width: float, num_features: int, **kwargs: Any) -> None:
        super().__init__(
            decode_arch_def([[stage] for stage in arch]),
            num_features=int(width * num_features),
            round_chs_fn=lambda channels: int(width * channels),
            **kwargs,
        )
        norm_act = get_norm_act_layer(kwargs["norm_layer"], kwargs["act_layer"])
        placed = placement(kwargs)
        for block in self.blocks.modules():
            if isinstance(block, InvertedResidual):
                expansion = 1 if block is self.get_submodule("blocks.0.0") else 6
                set_expanded(block, expansion * block.conv_pw.in_channels, partial(norm_act, **placed), placed)
        init_gluon(self)


def set_expanded(block: InvertedResidual, channels: int, norm_act: Any, placed: dict[str, Any]) -> None:
    """Gives the block `channels` expanded channels; timm rounds them to a multiple of 8."""
    pw, dw, pwl = block.conv_pw, block.conv_dw, block.conv_pwl
    if channels != pw.out_channels:
        block.conv_pw = nn.Conv2d(pw.in_channels, channels, 1, bias=False, **placed)
        block.bn1 = norm_act(channels)
        block.conv_dw = nn.Conv2d(
            channels, channels, 3, dw.stride, dw.padding, dw.dilation, groups=channels, bias=False, **placed
        )
        block.bn2 = norm_act(channels)
        block.conv_pwl = nn.Conv2d(channels, pwl.out_channels, 1, bias=False, **placed)


register_octave("mobilenetv1_100", PLAN_V1)
register_octave("mobilenetv2_100", PLAN_V2)

_V1 = {"arch": BLOCKS_V1, "num_features": 0, "act_layer": nn.ReLU}
_V2 = {"arch": BLOCKS_V2, "num_features": 1280, "act_layer": nn.ReLU6}
for _name, _plan, _variant in (
    ("paper_mobilenetv1_075", PLAN_V1, _V1 | {"width": 0.75}),
    ("paper_mobilenetv1_100", PLAN_V1, _V1 | {"width": 1.0}),
    ("paper_mobilenetv2_100", PAPER_PLAN_V2, _V2 | {"width": 1.0}),
    ("paper_mobilenetv2_1125", PAPER_PLAN_V2, _V2 | {"width": 1.125}),
):
    _cfg = GLUON_CFG | {"first_conv": "conv_stem", "classifier": "classifier"}
    _features = {"feature_cls": "getter"}
    register_paper(_name, GluonMobileNet, _plan, _cfg, norm_layer=GLUON_NORM, feature_cfg=_features, **_variant)
