"""What a pair of maps does in modules written for tensors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from octnet.conv import OctConv2d
from octnet.errors import OctaveError
from octnet.octave import Octave


def pair() -> Octave:
    torch.manual_seed(0)
    return Octave(torch.randn(4, 6, 8, 8), torch.randn(4, 2, 4, 4))


def test_stands_for_one_feature_map() -> None:
    x = pair()
    assert x.shape == (4, 8, 8, 8)
    assert Octave(None, x.low).shape == (4, 2, 8, 8)
    merged = x.to_tensor()
    assert torch.equal(merged[:, :6], x.high)  # type: ignore[arg-type]
    assert torch.equal(merged[:, 6:, ::2, 1::2], x.low)  # type: ignore[arg-type]


def test_gradient_of_a_compiled_merge_is_no_scatter() -> None:
    """A scatter is slow, and on a GPU not deterministic."""
    operations: list[str] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        operations.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    def merge(high: Tensor, low: Tensor) -> Tensor:
        return Octave(high, low).to_tensor().square().sum()

    parts = [part.requires_grad_() for part in pair().parts]
    compiled = torch.compile(merge, backend=aot_autograd(fw_compiler=note, bw_compiler=note), fullgraph=True)
    grads = torch.autograd.grad(compiled(*parts), parts)
    for grad, part, copies in zip(grads, parts, (1, 4), strict=True):
        torch.testing.assert_close(grad, 2 * copies * part)
    assert "aten.cat.default" in operations
    assert not any("index" in name or "scatter" in name for name in operations)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.ReLU6(True), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.Dropout(0.0)])
def test_pointwise(module: nn.Module) -> None:
    x, y = pair(), module(pair())
    assert torch.equal(y.high, module(x.high.clone()))  # type: ignore[union-attr]
    assert torch.equal(y.low, module(x.low.clone()))  # type: ignore[union-attr]


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_one_for_each_frequency(training: bool) -> None:
    """Against two batch norms whose parameters are the halves of the one's."""
    norm, high, low = nn.BatchNorm2d(8), nn.BatchNorm2d(6), nn.BatchNorm2d(2)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.uniform_(0.5, 2)
    for part, channels in ((high, slice(0, 6)), (low, slice(6, 8))):
        state = {name: t[channels].clone() if t.ndim else t for name, t in norm.state_dict().items()}
        part.load_state_dict(state)
    for module in (norm, high, low):
        module.train(training)
    x = pair()
    y = norm(x)
    torch.testing.assert_close(y.high, high(x.high))
    torch.testing.assert_close(y.low, low(x.low))
    assert norm.running_mean is not None and high.running_mean is not None and low.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.cat([high.running_mean, low.running_mean]))


def test_frozen_batch_norm() -> None:
    norm = FrozenBatchNorm2d(8)
    norm.weight.uniform_(0.5, 2)
    x, y = pair(), norm(pair())
    torch.testing.assert_close(y.to_tensor(), norm(x.to_tensor()))


def test_sync_batch_norm_is_refused() -> None:
    norm = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(8))
    with pytest.raises(AttributeError, match="'size' has no meaning on a pair"):
        norm(pair())


def test_fused_batch_norm() -> None:
    """torch's own fusion of a convolution and its batch norm scales rows of the kernel, which are cut where the norm is."""
    torch.manual_seed(0)
    conv, norm = OctConv2d(8, 8, 3, padding=1, low_channels=2).eval(), nn.BatchNorm2d(8).eval()
    assert norm.running_var is not None
    norm.running_var.uniform_(0.5, 2)
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
    for a, b in zip(fused(pair()).parts, norm(conv(pair())).parts, strict=True):
        torch.testing.assert_close(a, b)


def test_pools() -> None:
    x, y = pair(), nn.MaxPool2d(3, 2, 1)(pair())
    assert torch.equal(y.low, nn.MaxPool2d(3, 2, 1)(x.low))
    pooled = nn.AdaptiveAvgPool2d(1)(x)
    torch.testing.assert_close(pooled, x.to_tensor().mean((2, 3), keepdim=True))
    with pytest.raises(OctaveError, match="low map is no longer half"):
        nn.MaxPool2d(3, 1)(x)


def test_squeeze_and_excitation_is_the_vanilla_one_on_the_concatenation() -> None:
    from timm.layers import SEModule

    torch.manual_seed(0)
    module = SEModule(8, rd_channels=4)
    x = pair()
    torch.testing.assert_close(module(x).to_tensor(), module(x.to_tensor()))


def test_sums_and_concatenations() -> None:
    x = pair()
    assert torch.equal((x + x).high, 2 * x.high)  # type: ignore[arg-type, operator]
    maps: list[Any] = [torch.ones(4, 1, 8, 8), x, x]
    y: Any = torch.cat(maps, 1)
    assert isinstance(y, Octave)
    assert y.shape[1] == 17
    assert y.high_channels == 13
    with pytest.raises(OctaveError, match="unequal splits"):
        x + Octave(x.high, None)
    with pytest.raises(OctaveError, match="single map"):
        x + x.to_tensor()
    with pytest.raises(OctaveError, match="single map"):
        x.to_tensor() + x


def test_stochastic_depth_drops_both_frequencies_of_an_image() -> None:
    from timm.layers import DropPath

    torch.manual_seed(1)
    y = DropPath(0.5).train()(Octave(torch.ones(64, 1, 2, 2), torch.ones(64, 1, 1, 1)))
    kept = y.high[:, 0, 0, 0] > 0
    assert 0 < kept.sum() < 64
    assert torch.equal(kept, y.low[:, 0, 0, 0] > 0)


def test_plain_1x1_convolution_is_that_of_the_whole_map() -> None:
    conv = nn.Conv2d(pair().shape[1], 5, 1)
    x = pair()
    torch.testing.assert_close(conv(x), conv(x.to_tensor()))
    torch.testing.assert_close(conv(Octave(None, x.to_tensor())), F.interpolate(conv(x.to_tensor()), scale_factor=2))


def test_other_operations_are_named() -> None:
    with pytest.raises(OctaveError, match="conv2d has no meaning"):
        nn.Conv2d(8, 8, 3, padding=1)(pair())
    with pytest.raises(OctaveError, match="conv2d has no meaning"):
        nn.Conv2d(8, 8, 1, stride=2)(pair())
    with pytest.raises(OctaveError, match="interpolate has no meaning"):
        nn.Upsample(scale_factor=2)(pair())


def test_pytree() -> None:
    x = pair()
    leaves, spec = pytree.tree_flatten({"x": x})
    assert [leaf.shape[1] for leaf in leaves] == [6, 2]
    again = pytree.tree_unflatten(leaves, spec)["x"]
    assert isinstance(again, Octave)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    block = nn.Sequential(OctConv2d(8, 8, 3, padding=1, low_channels=4), nn.BatchNorm2d(8), nn.ReLU())

    def gradients(use: bool) -> list[Tensor]:
        x = pair()
        y = checkpoint(block, x, use_reentrant=False) if use else block(x)
        loss = y.high.square().mean() + y.low.square().mean()
        return list(torch.autograd.grad(loss, list(block.parameters())))

    for a, b in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(a, b)
