"""Published weights: the authors' MXNet files, and those of the PyTorch port d-li14/octconv.pytorch, put into octnet's networks.

In the files every path of an octave convolution has a weight of its own, and every frequency a batch norm. Here they are parts of
one tensor, cut where the model's own maps are cut:

    W = [W_HH W_LH]    v = [v_H]
        [W_HL W_LL]        [v_L]    v: a bias; a batch norm's scale, shift, mean or variance
"""

from pathlib import Path
from typing import Any

import torch
from timm.layers import SEModule
from torch import Tensor, nn

from octnet.checkpoint import read_weights
from octnet.conv import OctConv2d
from octnet.convert import run_on_meta
from octnet.naming import is_mxnet, layer_names, unify
from octnet.octave import Octave
from octnet.options import UserError
from octnet.params import is_params, read_params

Part = tuple[str, tuple[slice, ...]]  # a tensor of the model's state dict, and where in it

_TENSORS = ("weight", "bias", "running_mean", "running_var")  # num_batches_tracked stays the model's
_SHOWN = 3  # of a list in a message


def load_published_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a `.params` file of the authors' code (or the `.tar` of one), or a `.pth` of the PyTorch port, into `model`.

    The model has to be the file's network at the file's α; its dtype and device stay. Nothing is loaded unless everything fits.
    Raises UserError for a file that can't be read, another network or another α, listing the tensors that differ.
    """
    path = Path(path)
    put_weights(model, read_published(path), path)


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published file by their names in it. Raises UserError."""
    tensors = read_params(path) if is_params(path) else read_weights(path)
    for name in tensors:
        if not isinstance(name, str) or not name.isprintable():
            raise UserError(f"{path}: {name!r} is no name of a tensor")
    return tensors


def count_classes(tensors: dict[str, Tensor], path: Path) -> int:
    """The rows of the file's classifier. Raises UserError if it has none."""
    for name, tensor in tensors.items():
        if name.endswith(("classifier_weight", "classifer.weight", "fc.weight")) and tensor.ndim > 0:
            return tensor.shape[0]
    raise UserError(f"{path}: has no classifier; what it holds: {_some(sorted(tensors))}")


def put_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """What `load_published_weights` does, with what `read_published` gave for `path`."""
    try:
        names = unify(name for name in tensors if not name.endswith("num_batches_tracked"))
        layers, eps = layer_names(model, is_mxnet(tensors))
        given = {name: tensors[theirs] for name, theirs in names.items()}
        _check_network(model, given, eps)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error

    parts, constants = _parts(model, layers, given)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    placeless, unfit = [], []
    for name, theirs in names.items():
        if name in parts:
            target, index = parts[name]
            unfit += _put(given[name], state[target][index], theirs)
        elif name not in constants:
            placeless.append(theirs)
        elif name.endswith("bias") and given[name].any():
            unfit.append(f"{theirs} is not 0, but that batch norm has no shift")
    found = {"missing": _missing(parts, given), "without a place in it": placeless, "unfit": unfit}
    if any(found.values()):
        problems = "; ".join(f"{what}: {_some(items)}" for what, items in found.items() if items)
        raise UserError(f"{path}: not the weights of this {type(model).__name__}: {problems}")
    model.load_state_dict(state)


def _check_network(model: nn.Module, given: dict[str, Tensor], eps: float) -> None:
    """What the tensors' shapes don't show: eps and, at α = 0, pools; and α, which they show less clearly."""
    found = {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    if found != {eps}:
        raise UserError(
            f"the file's batch norms have eps = {eps:g}, and the model's {', '.join(f'{e:g}' for e in sorted(found))}: "
            "another network (the authors' own are paper_…)"
        )
    alpha = getattr(model, "alpha", 0)
    convs = [m for m in model.modules() if isinstance(m, OctConv2d)]
    paths = [name.removesuffix("h2h.weight") for name in given if name.endswith(".conv_h2h.weight")]
    if not paths and not convs:
        return
    split = [(_rows(given, f"{path}h2l.weight"), _rows(given, f"{path}h2h.weight")) for path in paths]
    low, high = max((rows for rows in split if rows[0] > 0), key=sum, default=(0, 1))  # the widest says α best
    if paths and not convs and low == 0:
        raise UserError(
            "the file's network is an octave one without low channels, which average-pools where a vanilla one has strides: "
            "its model is the oct_ one at alpha=0.0001"
        )
    both = bool(paths) and bool(convs)
    if not both or (low > 0) != any(m.low_channels for m in convs) or int(alpha * (low + high)) != low:
        its = f"α = {low / (low + high):.4g}" if paths else "α = 0 (a vanilla one)"
        raise UserError(f"the file's network has {its}, and the model α = {alpha:g}")


def _rows(given: dict[str, Tensor], name: str) -> int:
    return given[name].shape[:1].numel() if name in given else 0


def _parts(model: nn.Module, layers: dict[str, str], given: dict[str, Tensor]) -> tuple[dict[str, Part], set[str]]:
    """Each tensor that the file must have, and its place in the model; and those that stand for constants of the network."""
    parts: dict[str, Part] = {}
    constants: set[str] = set()
    low = _low_channels(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            continue
        layer = layers.get(name, name)
        if isinstance(module, nn.BatchNorm2d) and not module.affine:  # MXNet saves the scale 1 and the shift 0, too
            constants |= {f"{layer}.bn_{band}.{tensor}" for band in "hl" for tensor in ("weight", "bias")}
        for tensor in _TENSORS:
            value = getattr(module, tensor, None)
            if value is None:
                continue
            whole: dict[str, tuple[slice, ...]] = {tensor: ()}
            cut = whole if f"{layer}.{tensor}" in given else _cut(module, tensor, *low.get(name, (0, 0)))
            for part, index in cut.items():
                if value[index].numel() > 0:
                    parts[f"{layer}.{part}"] = f"{name}.{tensor}", index
    return parts, constants


def _cut(module: Any, tensor: str, low_in: int, low_out: int) -> dict[str, tuple[slice, ...]]:
    """The parts of a layer's tensor, as the files call them."""

    def bands(size: int, low: int) -> dict[str, slice]:
        return {"h": slice(0, size - low), "l": slice(size - low, size)}

    if isinstance(module, nn.BatchNorm2d):
        return {f"bn_{band}.{tensor}": (rows,) for band, rows in bands(module.num_features, low_in).items()}
    rows = bands(len(module.weight), low_out)
    if tensor == "bias":
        return {f"conv_h2{to}.bias": (rows[to],) for to in "hl"}
    if isinstance(module, OctConv2d) and module.depthwise:
        return {f"conv_{band}2{band}.weight": (rows[band],) for band in "hl"}
    groups = getattr(module, "groups", 1)
    columns = bands(module.weight.shape[1], low_in // groups)
    return {f"conv_{of}2{to}.weight": (rows[to], columns[of]) for of in "hl" for to in "hl"}


def _low_channels(model: nn.Module) -> dict[str, tuple[int, int]]:
    """How many of a layer's input and output channels are low: seen in a run of the model on the meta device."""
    low: dict[str, tuple[int, int]] = {}

    def channels(x: Any) -> int:
        return x.low.shape[1] if isinstance(x, Octave) and x.low is not None else 0

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            low[name] = channels(args[0]), channels(output)
            if isinstance(module, SEModule):  # its layers see both frequencies in one vector
                low[f"{name}.fc1"], low[f"{name}.fc2"] = (low[name][0], 0), (0, low[name][0])

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        run_on_meta(model, (first.in_channels, 64, 64))
    finally:
        for handle in handles:
            handle.remove()
    return low


def _missing(parts: dict[str, Part], given: dict[str, Tensor]) -> list[str]:
    """What the file lacks, by the network's names; with the part, where it has another one of the same tensor."""
    there = {target for name, (target, _) in parts.items() if name in given}
    lost = [(name, target) for name, (target, _) in parts.items() if name not in given]
    return list(dict.fromkeys(f"{target} ({name})" if target in there else target for name, target in lost))


def _put(tensor: Tensor, place: Tensor, name: str) -> list[str]:
    """Copies a tensor of the file to its place, or says why not. A linear layer and a 1×1 convolution have the same weights."""
    if (*tensor.shape, 1, 1)[:4] != (*place.shape, 1, 1)[:4]:
        return [f"{name} is {tuple(tensor.shape)} instead of {tuple(place.shape)}"]
    if not (tensor.is_floating_point() and tensor.is_cpu and tensor.layout is torch.strided):
        return [f"{name} doesn't hold plain floating-point numbers"]
    place.copy_(tensor.reshape(place.shape))
    return []


def _some(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
