"""What the authors' networks share: batch-norm constants, initialisation, preprocessing, registration with timm.

Their code (facebookresearch/OctConv, commit 87c44f7) has two families: `utils/symbol`, the paper's ablation, and `utils/gluon`,
the published MobileNets and ResNet-152.
"""

import math
from functools import partial
from typing import Any

from timm.layers import SEModule
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from octnet.convert import Plan, register_octave

SYMBOL_NORM = partial(nn.BatchNorm2d, eps=1e-4, momentum=0.08)
GLUON_NORM = partial(nn.BatchNorm2d, eps=1e-5, momentum=0.1)  # MXNet's defaults, and torch's

# Their evaluation: (RGB − (124, 117, 104)) · 0.0167, bicubic; (RGB − mean) / std, bilinear. As fractions of 255 here.
SYMBOL_CFG = {
    "mean": (124 / 255, 117 / 255, 104 / 255),
    "std": 3 * (1 / (0.0167 * 255),),
    "interpolation": "bicubic",
}
GLUON_CFG = {
    "mean": (123.68 / 255, 116.779 / 255, 103.939 / 255),
    "std": (58.393 / 255, 57.12 / 255, 57.375 / 255),
    "interpolation": "bilinear",
}
default_cfgs: dict[str, Any] = {}  # timm looks here for what `register_paper` registers


def register_paper(name: str, network: type[nn.Module], plan: Plan, cfg: dict[str, Any], **variant: Any) -> None:
    """Registers `network(**variant)` with timm as `name`, and with octave convolutions as `oct_<name>`."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        args = variant | kwargs
        feature_cfg = dict(args.pop("feature_cfg", {}))  # a copy: timm writes into it
        return build_model_with_cfg(network, name, pretrained, feature_cfg=feature_cfg, **args)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The authors' {name.removeprefix('paper_')}: keywords as timm's definitions."
    shared = {"input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875, "num_classes": 1000}
    default_cfgs.update(generate_default_cfgs({name: shared | cfg}))
    register_model(create)
    register_octave(name, plan)


def placement(kwargs: dict[str, Any]) -> dict[str, Any]:
    """timm's keywords that say where a layer is made, and of what type."""
    return {key: kwargs[key] for key in ("device", "dtype") if key in kwargs}


def squeeze_excite(channels: int, **kwargs: Any) -> SEModule:
    """x · sigmoid(W₂ relu(W₁ mean(x) + b₁) + b₂), int(C / 16) hidden channels."""
    return SEModule(channels, rd_channels=channels // 16, **kwargs)


def init_gluon(model: nn.Module) -> None:
    """MXNet's MSRAPrelu: kernels N(0, 1.882 / mean(fan_in, fan_out)), biases 0.

    The fans are those of the whole kernel; theirs, at α > 0, of each path's own part, so each path starts larger there.
    """
    gain = math.sqrt(2 / (1 + 0.25**2))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
