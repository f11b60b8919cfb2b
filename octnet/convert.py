"""An octave network is a vanilla network and a plan: `octavize` turns the convolutions that the plan names into octave ones."""

import difflib
import fnmatch
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from torch import nn

from octnet.conv import OctConv2d
from octnet.errors import OctaveError, OddSizeError
from octnet.octave import Octave

Plan = Mapping[str, float]
"""Convolutions, by module name or pattern (`layer1.*.conv?`), and their low ratio as a share of α: 1 is α, 0 ends the octave.

The first pattern that matches a convolution holds. One that no pattern matches is left alone.
"""
default_cfgs: dict[str, Any] = {}  # timm looks here for what `register_octave` registers
register_notrace_module(OctConv2d)  # for timm's and torchvision's torch.fx: what it does depends on what arrives
MAPS_LEAVE = ("forward_features", "forward_intermediates")  # timm's methods that hand out feature maps


class Whole:
    """A method whose maps leave the network: each pair in its result, at any depth, as one tensor."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return whole(self.method(*args, **kwargs))


def whole(result: Any) -> Any:
    """Each pair of maps in a tensor, list, tuple or dict as [high, upsampled low] (B, C, H, W)."""
    if isinstance(result, Octave):
        return result.to_tensor()
    if isinstance(result, list | tuple):
        return type(result)(whole(item) for item in result)
    if isinstance(result, dict):
        return type(result)((key, whole(item)) for key, item in result.items())
    return result


def octavize(model: nn.Module, alpha: float, plan: Plan) -> nn.Module:
    """Turns the planned convolutions of `model` into `OctConv2d`, in place, and returns it with `.alpha` and `.plan`.

    A convolution with C output channels gets int(share · α · C) low ones. Parameters and state dict stay as they are. At α = 0,
    and where an error is raised, nothing is changed at all. A network that says its input size (timm's do) is run once on the
    meta device. timm's `forward_features` and `forward_intermediates` return tensors (B, C, H, W), [high, upsampled low].

    Raises OctaveError, naming the layer: for α outside [0, 1], a pattern without a convolution, a convolution the operator
    can't stand for, an operation of the network that has no meaning on a pair of maps.
    """
    if not 0 <= alpha <= 1:
        raise OctaveError(f"alpha={alpha} is not between 0 and 1")
    shares = resolve(model, plan)
    if alpha > 0:
        try:
            for name, share in shares.items():
                conv = model.get_submodule(name)
                assert isinstance(conv, nn.Conv2d)
                with _naming(f"layer '{name}' at α = {alpha:g}"):
                    OctConv2d.convert(conv, int(share * alpha * conv.out_channels))
            with _naming(f"α = {alpha:g}"):
                _try_out(model)
        except OctaveError:
            for name in shares:
                OctConv2d.revert(model.get_submodule(name))
            raise
        for name in MAPS_LEAVE:
            if hasattr(model, name):
                setattr(model, name, Whole(getattr(model, name)))
    vars(model).update(alpha=alpha, plan=dict(plan))
    return model


def resolve(model: nn.Module, plan: Plan) -> dict[str, float]:
    """The planned convolutions of `model` by name, in its order, with their share of α; OctaveError for an idle pattern."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    shares: dict[str, float] = {}
    for pattern, share in plan.items():
        if not 0 <= share <= 1:
            raise OctaveError(f"plan['{pattern}']={share} is not a share of α between 0 and 1")
        matched = fnmatch.filter(names, pattern)
        if not matched:
            nearest = difflib.get_close_matches(pattern, names, 1, 0)
            raise OctaveError(f"plan['{pattern}'] matches no convolution; the nearest is {' '.join(nearest)}")
        shares = dict.fromkeys(matched, share) | shares
    return {name: shares[name] for name in names if name in shares}


def register_octave(name: str, plan: Plan) -> None:
    """Registers `oct_<name>` with timm: timm's model `name`, octavized with `plan` at the keyword `alpha` (.25)."""

    def create(pretrained: bool = False, *, alpha: float = 0.25, **kwargs: Any) -> nn.Module:
        if pretrained and alpha > 0:
            text = f"the weights of {name} at α = {alpha:g} are another network: a start for training, not a result"
            warnings.warn(text, stacklevel=4)  # of who calls timm.create_model
        model = timm.models.model_entrypoint(name)(pretrained=pretrained, **kwargs)
        if not kwargs.get("features_only"):
            return octavize(model, alpha, plan)
        octavize(model, alpha, _plan_of_extractor(model, plan))
        model.register_forward_hook(_leave)
        return model

    create.__name__ = create.__qualname__ = f"oct_{name}"
    create.__doc__ = f"timm's {name} with octave convolutions: keyword `alpha`, and those of timm's definition."
    cfg = timm.models.get_pretrained_cfg(name)
    default_cfgs.update(
        generate_default_cfgs({create.__name__: {} if cfg is None else cfg.to_dict(remove_source=True)})
    )
    register_model(create)


def _plan_of_extractor(model: nn.Module, plan: Plan) -> Plan:
    """The plan for timm's `features_only` network: it has no layers past the last map, and other names for the rest."""
    names = {
        name.removeprefix("model.").removeprefix("body.").replace(".", "_"): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    planned: dict[str, float] = {}
    for pattern, share in plan.items():
        found = fnmatch.filter(names, pattern.replace(".", "_"))
        planned = {names[name]: share for name in found} | planned
    return planned


def _leave(model: nn.Module, args: Any, maps: Any) -> Any:
    """A forward hook: timm's extractors would pass pairs on."""
    return whole(maps)


def run_on_meta(model: nn.Module, input_size: tuple[int, ...]) -> Any:
    """The output of `model` for two inputs (C, H, W) on the meta device: shapes only, no arithmetic, nothing changed.

    Raises OctaveError that names the layer.
    """
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    with torch.no_grad(), naming_the_layer(model):
        return torch.func.functional_call(model, meta, (torch.empty(2, *input_size, device="meta"),))


@contextmanager
def naming_the_layer(model: nn.Module) -> Iterator[None]:
    """Inside, an error that a layer's forward raises becomes an OctaveError that begins with the layer's name."""
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: Any) -> None:
        running.pop()

    def layer() -> str:
        return f"layer '{running[-1]}'" if running and running[-1] else type(model).__name__

    modules = list(model.named_modules())
    handles = [m.register_forward_pre_hook(enter(name)) for name, m in modules]
    handles += [m.register_forward_hook(leave) for _, m in modules]
    try:
        yield
    except OddSizeError as error:
        raise OddSizeError(f"{layer()}: {error}") from error
    except Exception as error:  # whatever a network raises for an input it can't take
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OctaveError(f"{layer()}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Puts what it is about before the message of an OctaveError."""
    try:
        yield
    except OctaveError as error:
        raise OctaveError(f"{what}: {error}") from error


def _try_out(model: nn.Module) -> None:
    """One forward on the meta device at the network's own input size, up to the next multiple of 64 px."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if "input_size" in cfg:
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        _, *sides = cfg["input_size"]
        run_on_meta(model, (first.in_channels, *(-side // 64 * -64 for side in sides)))
