"""The schedule against PyTorch's schedulers, and which parameters decay."""

import pytest
import timm
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from octnet.optimizer import learning_rate, make_optimizer
from octnet.options import RecipeConfig


def test_schedule_is_linear_then_cosine_by_iteration() -> None:
    recipe = RecipeConfig(epochs=6, learning_rate=0.4, warmup_epochs=2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    warmup = LinearLR(optimizer, start_factor=1e-9, total_iters=20)
    cosine = CosineAnnealingLR(optimizer, T_max=40)
    schedule = SequentialLR(optimizer, [warmup, cosine], milestones=[20])
    for step in range(60):
        assert learning_rate(step, 10, recipe) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        schedule.step()
    assert learning_rate(0, 10, recipe) == 0
    assert learning_rate(60, 10, recipe) == pytest.approx(0)
    assert learning_rate(0, 10, RecipeConfig(warmup_epochs=0, learning_rate=0.3)) == 0.3


@pytest.mark.parametrize("vectors", [True, False])
def test_weight_decay_by_dimension(vectors: bool) -> None:
    """After a step without gradients only decaying parameters have moved: kernels, and vectors if the recipe says so."""
    model = timm.create_model("oct_resnet_tiny", num_classes=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, RecipeConfig(weight_decay=0.1, decay_vectors=vectors))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer.step()
    for name, p in model.named_parameters():
        if before[name].abs().max() > 0:
            assert torch.equal(p, before[name]) == (p.ndim <= 1 and not vectors), name
