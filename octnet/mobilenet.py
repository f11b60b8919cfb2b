"""MobileNetV1 and V2: timm's definitions, with the authors' choice of layers.

V1: from the pointwise convolution of block 1 to that of block 11, the fifth 512→512; the two blocks after it have ratio 0.
V2: only the expanded features between the two pointwise convolutions of a block are split, in the first 13 of the 17 blocks (the
first has no expansion in timm's definition, so nothing to split); the last 4 have ratio 0.
"""

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

register_octave("mobilenetv1_100", PLAN_V1)
register_octave("mobilenetv2_100", PLAN_V2)
