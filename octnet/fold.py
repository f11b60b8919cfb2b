"""For inference: each batch norm folded into the convolution before it, octave or not."""

from collections import Counter
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from octnet.convert import run_on_meta


def fold_batch_norms(model: nn.Module, image_size_px: int = 64) -> nn.Module:
    """Folds, in place, every batch norm that is all that its convolution's output goes into; returns the model in eval mode.

    What it computes stays the same to rounding; the state dict doesn't: load weights before. A batch norm behind something
    else (a sum, a concatenation) stays.
    """
    model.eval()
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    for conv, norm in _pairs(model, (first.in_channels, image_size_px, image_size_px)):
        layer, bn = model.get_submodule(conv), model.get_submodule(norm)
        assert isinstance(layer, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        assert bn.running_mean is not None and bn.running_var is not None
        layer.weight, layer.bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        model.set_submodule(norm, getattr(bn, "act", nn.Identity()))  # timm's have an activation in them
    return model


def _pairs(model: nn.Module, input_size: tuple[int, int, int]) -> list[tuple[str, str]]:
    """Names of the convolutions and batch norms that follow each other, seen in a run on the meta device."""
    outputs: dict[int, tuple[str, Any]] = {}  # the maps are held, so that an id is not used twice
    users: Counter[int] = Counter()
    pairs: dict[int, tuple[str, str]] = {}

    def produced(name: str) -> Any:
        return lambda _m, _x, y: outputs.update({id(y): (name, y)})

    def used(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            key = id(inputs[0])
            users[key] += key in outputs
            if isinstance(module, nn.BatchNorm2d) and module.track_running_stats and key in outputs:
                pairs[key] = (outputs[key][0], name)

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(produced(name)))
        leaf = not any(True for _ in module.children()) and not isinstance(module, nn.Identity)
        if leaf or isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(used(name)))
    try:
        run_on_meta(model, input_size)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for key, pair in pairs.items() if users[key] == 1]
