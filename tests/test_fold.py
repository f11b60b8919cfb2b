"""Folded batch norms: the same logits."""

from typing import Any

import pytest
import torch
from torch import nn

from octnet import fold_batch_norms
from tests.test_paper_models import SMALL, build

LEFT = {"densenet121": 2 * 8 + 3, "paper_densenet121": 2 * 4 + 3 + 1}  # those behind a concatenation, and the last


@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("name", SMALL)
def test_the_logits_stay(name: str, alpha: float) -> None:
    model: Any = build(f"oct_{name}", alpha=alpha)
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert fold_batch_norms(model) is model
    left = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert left < norms
    if "mobilenet" in name or name in ("paper_resnet152e", "paper_resnet152f"):
        assert left == 0, "each follows a convolution"
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-4)


def test_a_map_that_others_see_is_left_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.side = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + self.side(y)

    model = Both().eval()
    nn.init.normal_(model.norm.weight)
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    torch.testing.assert_close(fold_batch_norms(model)(x), before)
