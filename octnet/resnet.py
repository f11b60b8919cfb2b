"""ResNet, SE-ResNet and ResNeXt: timm's definitions, and a small one for images of 32 to 64 px.

Stages 1 to 3 have the low ratio α, the last stage 0 (Chen et al., section 4.1, and the authors' code: `[α, α, α, 0]`); the
stem and the squeeze-and-excitation layers are left alone.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from octnet.convert import Plan, register_octave

PLAN: Plan = {
    "layer[1-3].*.conv?": 1,
    "layer[1-3].*.downsample.*": 1,
    "layer4.*.conv?": 0,
    "layer4.*.downsample.*": 0,
}


STEM_CHANNELS = 32  # of the tiny one; not 64, so that the first shortcut is a convolution and can be split


class TinyResNet(ResNet):
    """timm's ResNet of bottlenecks with a 3×3 stem of stride 1, no max-pool: maps of 1, 1/2, 1/4 and 1/8 of the image."""

    def __init__(self, **kwargs: Any) -> None:
        args: dict[str, Any] = {"block": Bottleneck, "stem_type": "deep", "stem_width": STEM_CHANNELS // 2}
        super().__init__(**args | kwargs)
        stem = nn.Conv2d(self.in_chans, STEM_CHANNELS, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNet
        self.register_module("conv1", stem)
        self.register_module("maxpool", nn.Identity())
        for info, reduction in zip(self.feature_info, (1, 1, 2, 4, 8), strict=True):
            info["reduction"] = reduction


default_cfgs = generate_default_cfgs(
    {
        "resnet_tiny": {
            "input_size": (3, 32, 32),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "num_classes": 1000,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "pool_size": (4, 4),
            "first_conv": "conv1",
            "classifier": "fc",
            "license": "mit",
        }
    }
)


@register_model
def resnet_tiny(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Four bottlenecks of 64 to 512 channels: 29.7 M multiply-adds at 32 px."""
    args: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)}
    model: ResNet = build_model_with_cfg(TinyResNet, "resnet_tiny", pretrained, **args | kwargs)
    return model


for _name in (
    *("resnet_tiny", "resnet26", "resnet50", "resnet101", "resnet152", "resnet200"),
    *("seresnet50", "resnext50_32x4d", "resnext101_32x4d"),
):
    register_octave(_name, PLAN)
