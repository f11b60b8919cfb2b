"""Feature maps leave a network as tensors: under timm's extractors, a detection neck, and exported."""

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from octnet import Octave
from tests.test_models import SMALL as OURS
from tests.test_paper_models import SMALL as PAPER

SMALL = OURS | PAPER


def build(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(f"oct_{name}", alpha=0.25, **SMALL[name], **kwargs).eval()


def stage_outputs(model: nn.Module, x: Tensor, names: list[str]) -> list[Tensor]:
    """What the layers `names` put out in one forward, the low part repeated 2×2 behind the high one."""
    maps: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_m: nn.Module, _x: Any, y: Any) -> None:
            maps[name] = y.map(torch.clone) if isinstance(y, Octave) else y.clone()  # a ReLU in place may follow

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(keep(name))
    model(x)
    return [as_one(maps[name]) for name in names]


def as_one(y: Any) -> Tensor:
    return torch.cat([y.high, y.low.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1) if hasattr(y, "low") else y


@pytest.mark.parametrize("name", SMALL)
def test_feature_maps_are_the_stages_outputs(name: str) -> None:
    """Of the announced channels and reduction, from the vanilla extractor's state dict, whichever maps are asked for."""
    x = torch.randn(1, 3, 64, 64)
    extractor: Any = build(name, features_only=True)
    vanilla = timm.create_model(name, features_only=True, **SMALL[name])
    assert {k: v.shape for k, v in extractor.state_dict().items()} == {
        k: v.shape for k, v in vanilla.state_dict().items()
    }
    full = build(name)
    for mine, same in zip(extractor.state_dict().values(), full.state_dict().values(), strict=False):
        mine.copy_(same)  # the names differ, the order doesn't
    modules = [info["module"] for info in full.feature_info if info["module"]]
    expected = stage_outputs(full, x, modules)[-4:]
    maps = extractor(x)
    sizes = zip(extractor.feature_info.channels(), extractor.feature_info.reduction(), strict=True)
    assert [y.shape for y in maps] == [(1, c, 64 // r, 64 // r) for c, r in sizes]
    for got, want in zip(maps[-4:], expected, strict=True):
        torch.testing.assert_close(got, want)
    some = build(name, features_only=True, out_indices=(1, 3))
    some.load_state_dict({key: extractor.state_dict()[key] for key in some.state_dict()})
    for got, want in zip(some(x), (maps[1], maps[3]), strict=True):
        torch.testing.assert_close(got, want)
    last, intermediates = full.forward_intermediates(x)
    torch.testing.assert_close(intermediates[-4:], maps[-4:])
    torch.testing.assert_close(last, full.forward_features(x))


def test_copies_hand_out_tensors_too() -> None:
    model = build("resnet_tiny")
    x = torch.randn(1, 3, 32, 32)
    expected = model.forward_intermediates(x, intermediates_only=True)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            model.fc.weight.zero_()
            again.conv1.weight.mul_(1)
        torch.testing.assert_close(again.forward_intermediates(x, intermediates_only=True), expected)
        assert again.forward_features.method.__self__ is again


@pytest.mark.parametrize("features_only", [False, True])
def test_detection_neck(features_only: bool) -> None:
    """torchvision's, with its lateral 1×1 convolutions on pairs: those of the whole maps."""
    backbone = build("resnet26", features_only=features_only)
    x = torch.randn(1, 3, 64, 64)
    maps = stage_outputs(build("resnet26"), x, [f"layer{i}" for i in (1, 2, 3, 4)])
    neck = BackboneWithFPN(backbone, {f"layer{i}": str(i) for i in (1, 2, 3, 4)}, [256, 512, 1024, 2048], 16).eval()
    got = neck(x)
    inner = [F.conv2d(y, block[0].weight, block[0].bias) for y, block in zip(maps, neck.fpn.inner_blocks, strict=True)]
    for i in (2, 1, 0):
        inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:])
    for i in range(4):
        torch.testing.assert_close(got[str(i + 1)], neck.fpn.layer_blocks[i](inner[i]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet_tiny", "paper_mobilenetv2_1125", "densenet121"])
def test_torch_export(name: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    for model in (build(name), build(name, features_only=True)):
        exported = torch.export.export(model, (x,))
        torch.testing.assert_close(exported.module()(x), model(x))


def test_onnx_export(tmp_path: Path) -> None:
    import onnxruntime

    model = build("resnet_tiny")
    x = torch.randn(2, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_heads(name: str) -> None:
    """num_classes=0, global_pool='', in_chans=1, the classifier's accessors, checkpointing: as timm's own models."""
    x = torch.randn(2, 1, 64, 64)
    model = build(name, in_chans=1, num_classes=7)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2 if "tiny" not in name else 8, 2 if "tiny" not in name else 8)
    assert model.get_classifier().out_features == 7
    torch.testing.assert_close(model.forward_head(features), model(x))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features.mean((2, 3)), rtol=1e-4, atol=1e-5)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    bare = build(name, in_chans=1, num_classes=0, global_pool="")
    bare.load_state_dict(model.state_dict())
    torch.testing.assert_close(bare(x), features)


@pytest.mark.parametrize("name", ["resnet_tiny", "densenet121", "mobilenetv1_100"])
def test_extractors_checkpoint_their_gradients(name: str) -> None:
    model = build(name, features_only=True)
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        loss = sum(y.square().mean() for y in model(x))
        gradients.append(torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)
    assert all(g is not None for g in gradients[0])


def test_torch_fx() -> None:
    """torchvision's extractor traces through octave layers; a pair inside the network stays one."""
    from timm.models._features_fx import get_notrace_modules
    from torchvision.models.feature_extraction import create_feature_extractor

    model = build("resnet_tiny")
    leaves = {"leaf_modules": list(get_notrace_modules())}
    traced = create_feature_extractor(model, ["layer2", "fc"], tracer_kwargs=leaves)
    x = torch.randn(1, 3, 32, 32)
    outputs = traced(x)
    assert isinstance(outputs["layer2"], Octave)
    torch.testing.assert_close(outputs["fc"], model(x))
