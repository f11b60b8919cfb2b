"""DenseNet-121: timm's definition; the authors' is the same with their batch-norm constants (`utils/symbol`).

Dense blocks 1 to 3 and the first two transitions have the low ratio α, the third transition and the last block 0. The stem is
left alone, so that block 1 starts without a low part and low channels grow with every layer (the authors' ablation).
Their initialisation is not published: ours is timm's.
"""

from timm.models.densenet import DenseNet

from octnet.authors import SYMBOL_CFG, SYMBOL_NORM, register_paper
from octnet.convert import Plan, register_octave

PLAN: Plan = {
    "features.denseblock[1-3].*": 1,
    "features.transition[12].*": 1,
    "features.transition3.*": 0,
    "features.denseblock4.*": 0,
}

register_octave("densenet121", PLAN)
register_paper(
    "paper_densenet121",
    DenseNet,
    PLAN,
    SYMBOL_CFG | {"first_conv": "features.conv0", "classifier": "classifier"},
    norm_layer=SYMBOL_NORM,
    feature_cfg={"flatten_sequential": True},
)
