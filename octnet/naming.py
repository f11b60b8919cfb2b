"""How the published weights call the layers of a network.

The authors' files (facebookresearch/OctConv) have three styles: the symbol API's `arg:L2_B01_conv1_conv-h2l_weight`; gluon's
`L1_B0.conv1.conv_h2l.weight` and, exported or older, `R152_L1_B0_conv1-h2l_weight`. The PyTorch port's (d-li14/octconv.pytorch)
have one, `layer1.0.conv1.conv.conv_h2l.weight`. `unify` brings all of them to the form of the last, `<layer>.conv_h2l.<tensor>`
and `<layer>.bn_l.<tensor>` (`<layer>.<tensor>` where nothing is cut); `layer_names` says which `<layer>` is which of a model.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from timm.models.densenet import DenseNet
from timm.models.resnet import ResNet
from torch import nn

from octnet.conv import OctConv2d
from octnet.mobilenet import GluonMobileNet
from octnet.options import UserError
from octnet.preact import PreActResNet
from octnet.resnet152 import BigLittleStemResNet, GluonResNet

_MXNET_RULES = (
    (r"[._](?:gamma|weight)$", ".weight"),
    (r"[._](?:beta|bias)$", ".bias"),
    (r"[._](?:moving|running)_(mean|var)$", r".running_\1"),
    (r"-([hl]2[hl])\.", r".conv_\1."),
    (r"-([hl])\.", r".bn_\1."),
    (r"^(L\d_(?:B\d+|Trans))_", r"\1."),
    (r"\.se-", ".se_block."),
    (r"(se_block\.conv2)(?:_|\.bn_)([hl])\.", r"\1.conv_h2\2."),
)
_LEGACY = {  # layers outside of the blocks, as gluon's exported files call them
    "conv1": "conv1.0",
    "bn1": "conv1.1",
    **{f"stem_conv{k + 1}": f"conv1.{3 * k}" for k in range(3)},
    **{f"stem_bn{k + 1}": f"conv1.{3 * k + 1}" for k in range(3)},
    **{f"stem2_{layer}{k}": f"conv2.{layer}{k}" for layer in ("conv", "bn") for k in range(1, 5)},
    "tail-conv": "tail.0",
    "tail-bn": "tail.1",
    "classifer": "classifier",  # so spelt in the authors' code
}


def is_mxnet(names: Iterable[str]) -> bool:
    """Whether these are tensors of MXNet, which calls a batch norm's scale gamma, or of PyTorch."""
    return any(name.endswith("gamma") for name in names)


def unify(names: Iterable[str]) -> dict[str, str]:
    """The names of a file by their unified form. Raises UserError where two have the same."""
    names = list(names)
    if is_mxnet(names):
        bare = {name: re.sub("^(arg|aux):", "", name) for name in names}
        ends = (name.partition("classifier_weight") for name in bare.values())
        prefix = next((before for before, found, _ in ends if found), "")
        unified = {_unify_mxnet(text.removeprefix(prefix)): name for name, text in bare.items()}
    else:
        unified = {name.removeprefix("module."): name for name in names}  # nn.DataParallel's
    if len(unified) != len(names):
        double = next(name for name in names if name not in unified.values())
        raise UserError(f"{double!r} and another tensor of the file are the same one of the network")
    return unified


def _unify_mxnet(name: str) -> str:
    for pattern, replacement in _MXNET_RULES:
        name = re.sub(pattern, replacement, name)
    layer, _, tensor = name.rpartition(".")
    return f"{_LEGACY.get(layer, layer)}.{tensor}"


def layer_names(model: nn.Module, mxnet: bool) -> tuple[dict[str, str], float]:
    """The file's layer for each of the model's that is called otherwise there, and the batch norms' eps.

    Some may be of layers that the model doesn't have. Raises UserError for a network of which no weights were published.
    """
    network = type(model)
    if (network, mxnet) not in _FAMILIES:
        origin = "the authors' MXNet code" if mxnet else "the PyTorch port (d-li14/octconv.pytorch)"
        takes = "the networks paper_…" if mxnet else "timm's ResNets and paper_mobilenetv1_100"
        raise UserError(f"weights of {origin} fit {takes}, with or without oct_, and not a {network.__name__}")
    names, eps = _FAMILIES[network, mxnet]
    return names(model), eps


def _symbol_resnet(model: Any) -> dict[str, str]:
    names = {"conv1": "conv1_conv", "bn1": "conv1_bn", "layer4.tail.0": "tail_bn", "fc": "classifier"}
    for stage, i, ours, _ in _resnet_blocks(model):
        theirs = f"L{stage + 1}_B{i + 1:02}"
        for k in (1, 2, 3):
            names |= {f"{ours}.conv{k}": f"{theirs}.conv{k}_conv", f"{ours}.bn{k}": f"{theirs}.conv{k}_bn"}
            names |= {f"{ours}.se.fc{k}": f"{theirs}.se_fc{k}"}
        names |= {f"{ours}.downsample.0": f"{theirs}.conv4_bn", f"{ours}.downsample.2": f"{theirs}.conv4_conv"}
    return names


def _symbol_densenet(model: Any) -> dict[str, str]:
    names = {"features.conv0": "conv1_conv", "features.norm0": "conv1_bn"}
    names |= {"features.norm5": "tail_bn", "classifier": "classifier"}
    for name, _ in model.named_modules():
        if layer := re.fullmatch(r"features\.denseblock(\d+)\.denselayer(\d+)\.(norm|conv)(\d)", name):
            block, i, kind, k = layer.groups()
            names[name] = f"L{int(block) + 1}_B{int(i):02}.conv{k}_{'bn' if kind == 'norm' else 'conv'}"
        elif layer := re.fullmatch(r"features\.transition(\d+)\.(norm|conv)", name):
            block, kind = layer.groups()
            names[name] = f"L{int(block) + 2}_Trans.conv_{'bn' if kind == 'norm' else 'conv'}"
    return names


def _gluon_resnet(model: Any) -> dict[str, str]:
    names = {f"conv1.{i}": f"conv1.{i}" for i in (0, 1, 3, 4, 6)} | {"bn1": "conv1.7", "fc": "classifier"}
    names |= {f"maxpool.{layer}{k}": f"conv2.{layer}{k}" for layer in ("conv", "bn") for k in (1, 2, 3)}
    names |= {"maxpool.downsample.0": "conv2.conv4", "maxpool.downsample.1": "conv2.bn4"}
    for stage, i, ours, block in _resnet_blocks(model):
        theirs = f"L{stage}_B{i}"
        names |= {f"{ours}.{layer}{k}": f"{theirs}.{layer}{k}" for layer in ("conv", "bn") for k in (1, 2, 3)}
        names |= {f"{ours}.extra": f"{theirs}.bn1a"}
        names |= {f"{ours}.se.fc{k}": f"{theirs}.se_block.conv{k}" for k in (1, 2)}
        shortcut = ("conv4", "bn4") if isinstance(block.extra, nn.Identity) else ("bn4a", "conv4", "bn4")
        names |= {f"{ours}.downsample.{k}": f"{theirs}.{layer}" for k, layer in enumerate(shortcut)}
    return names


def _gluon_mobilenet(model: Any) -> dict[str, str]:
    names = {
        "conv_stem": "conv1.0",
        "bn1": "conv1.1",
        "conv_head": "tail.0",
        "bn2": "tail.1",
        "classifier": "classifier",
    }
    stage, i = 1, 0
    for _, ours, block in _mobilenet_blocks(model):
        stage, i = (stage, i + 1) if block.conv_dw.stride == (1, 1) else (stage + 1, 0)
        for k, conv in enumerate(_convs(block), start=1):
            names |= {f"{ours}.{conv}": f"L{stage}_B{i}.conv{k}", f"{ours}.bn{k}": f"L{stage}_B{i}.bn{k}"}
    return names


def _port_resnet(model: Any) -> dict[str, str]:
    if not any(isinstance(module, OctConv2d) for module in model.modules()):
        return {}  # a vanilla ResNet has torchvision's names, which are timm's
    names: dict[str, str] = {}
    for _, _, block, _ in _resnet_blocks(model):
        for k in (1, 2, 3):
            names |= {f"{block}.conv{k}": f"{block}.conv{k}.conv", f"{block}.bn{k}": f"{block}.conv{k}"}
        names |= {
            f"{block}.downsample.0": f"{block}.downsample.0.conv",
            f"{block}.downsample.1": f"{block}.downsample.0",
        }
    return names


def _port_mobilenet(model: Any) -> dict[str, str]:
    names = {"conv_stem": "features.0.0", "bn1": "features.0.1", "classifier": "fc"}
    for n, ours, block in _mobilenet_blocks(model):
        for k, conv in enumerate(_convs(block)):
            names |= {f"{ours}.{conv}": f"features.{n}.{k}.conv", f"{ours}.bn{k + 1}": f"features.{n}.{k}"}
    return names


def _resnet_blocks(model: Any) -> Iterator[tuple[int, int, str, Any]]:
    """Stage from 1, number in it from 0, name and module of each bottleneck."""
    for stage in (1, 2, 3, 4):
        for name, block in model.get_submodule(f"layer{stage}").named_children():
            if name.isdecimal():  # not the last stage's tail
                yield stage, int(name), f"layer{stage}.{name}", block


def _mobilenet_blocks(model: Any) -> Iterator[tuple[int, str, Any]]:
    """Number from 1, name and module of each block."""
    blocks = ((f"blocks.{s}.{i}", block) for s, stage in enumerate(model.blocks) for i, block in enumerate(stage))
    for n, (name, block) in enumerate(blocks, start=1):
        yield n, name, block


def _convs(block: nn.Module) -> list[str]:
    """Names of a block's convolutions in the order in which they are computed."""
    return [name for name, module in block.named_children() if isinstance(module, nn.Conv2d)]


_FAMILIES: dict[tuple[type[nn.Module], bool], tuple[Callable[[Any], dict[str, str]], float]] = {
    (PreActResNet, True): (_symbol_resnet, 1e-4),
    (DenseNet, True): (_symbol_densenet, 1e-4),
    (GluonResNet, True): (_gluon_resnet, 1e-5),
    (BigLittleStemResNet, True): (_gluon_resnet, 1e-5),
    (GluonMobileNet, True): (_gluon_mobilenet, 1e-5),
    (ResNet, False): (_port_resnet, 1e-5),
    (GluonMobileNet, False): (_port_mobilenet, 1e-5),
}
