"""What a network costs: parameters, multiply-adds, the authors' FLOPs, memory of the feature maps.

Everything is counted on the plain operator, on the meta device, for one image.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.layers import SEModule
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octnet.conv import OctConv2d
from octnet.convert import run_on_meta
from octnet.errors import OctaveError, OddSizeError
from octnet.network import build_on_meta
from octnet.octave import Octave
from octnet.options import UserError

_BATCH = 2  # of run_on_meta


@dataclass(frozen=True)
class Complexity:
    """Counts for one image."""

    params: int
    macs: int  # multiply-adds of convolutions and linear layers; one multiply-add is 1
    flops_paper: int  # the authors' own rule, see `_PaperFlops`
    feature_map_mb: float  # outputs of all convolutions and linear layers in float32, 10^6 bytes


def measure(model: nn.Module, image_size_px: int, rule: str = "", channels: int = 3) -> Complexity:
    """The counts of `model` for an image (channels, S, S); `rule` is its timm name, on which the authors' rule depends.

    Raises OctaveError, naming the layer, where the network can't take the size.
    """
    paper = _PaperFlops(rule)
    handles = [m.register_forward_hook(paper.hook(name)) for name, m in model.named_modules()]
    try:
        with FlopCounterMode(display=False) as counter:
            output = run_on_meta(model, (channels, image_size_px, image_size_px))
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise OctaveError("a classifier gives one tensor (images, classes); this network gives another output")
    macs = counter.get_total_flops() // (2 * _BATCH)
    return Complexity(
        params=sum(p.numel() for p in model.parameters()),
        macs=macs,
        flops_paper=macs + paper.others // _BATCH,
        feature_map_mb=paper.feature_map_numel // _BATCH * 4 / 1e6,
    )


def check_model(name: str, alpha: float, kwargs: dict[str, Any], num_classes: int, image_size_px: int) -> Complexity:
    """The counts of the network that a configuration names; UserError, naming the layer, where it can't be what it says."""
    model = build_on_meta(name, alpha, kwargs, num_classes)
    try:
        return measure(model, image_size_px, name)
    except OddSizeError as error:
        sizes = " and ".join(map(str, _nearest_sizes(model, image_size_px)))
        raise UserError(
            f"data.image_size_px={image_size_px}: {error}; the nearest sizes that fit are {sizes}"
        ) from error
    except OctaveError as error:
        raise UserError(f"model.name={name}, data.image_size_px={image_size_px}: {error}") from error


def _nearest_sizes(model: nn.Module, image_size_px: int) -> list[int]:
    """The next smaller and the next larger image size, in px, that the network takes."""

    def fits(size: int) -> bool:
        try:
            measure(model, size)
        except OctaveError:
            return False
        return True

    below = next((s for s in range(image_size_px - 1, max(0, image_size_px - 65), -1) if fits(s)), None)
    above = next((s for s in range(image_size_px + 1, image_size_px + 65) if fits(s)), None)
    return [size for size in (below, above) if size is not None]


class _PaperFlops:
    """What the authors count beside the multiply-adds of convolutions and linear layers.

    Biases, pools (output · k², or the input's size if global) and one operation a ReLU; no batch norm, sum, up-sampling. Their
    tool (Ldpe2G/DeepLearningForFun, CalFlops) sees only some operators of their gluon networks, the post-activation ones: the
    ReLU of the stem and of squeeze-and-excitation, whose global pool it misses, and so MobileNetV1's.
    """

    def __init__(self, name: str) -> None:
        self.others = 0
        self.feature_map_numel = 0
        gluon = r"(oct_)?((se)?resne[xt]+\d|(paper_)?mobilenetv|paper_resnet152[ef]).*"
        self.gluon = re.fullmatch(gluon, name) is not None
        self.relu = re.compile(r"(conv1|maxpool)\..*|act1|bn1\.act|.*\.se\.act" if self.gluon else r".*")
        self.global_pool = "mobilenetv1" not in name

    def hook(self, name: str) -> Callable[..., None]:
        """A forward hook for the module `name`."""

        def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.Conv2d | nn.Linear):
                self.feature_map_numel += _numel(output)
                self.others += _numel(output) if module.bias is not None else 0
            if isinstance(module, OctConv2d):
                self.others += _path_pools(module, args[0], output, self.gluon)
            elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
                kernel = module.kernel_size
                self.others += _numel(output) * (kernel**2 if isinstance(kernel, int) else math.prod(kernel))
            elif (name.endswith("global_pool.pool") and self.global_pool) or (
                isinstance(module, SEModule) and not self.gluon
            ):
                self.others += _numel(args[0])
            elif isinstance(module, nn.ReLU) and self.relu.fullmatch(name):
                self.others += _numel(output)

        return count


def _numel(x: Tensor | Octave) -> int:
    return sum(part.numel() for part in x.parts) if isinstance(x, Octave) else x.numel()


def _path_pools(conv: OctConv2d, x: Tensor | Octave, y: Tensor | Octave, gluon: bool) -> int:
    """The average pools of each path: H→H and L→L 2×2 at stride 2; H→L 2×2, at stride 2 of H→H's pooled map, gluon: 4×4."""
    x = x if isinstance(x, Octave) else Octave(x, None)
    y = y if isinstance(y, Octave) else Octave(y, None)
    high, low = (0 if part is None else part.numel() for part in (x.high, x.low))  # a pool reads each value once
    strided = conv.stride[0] == 2
    flops = (high if strided and y.high is not None else 0) + (low if strided and y.low is not None else 0)
    if y.low is not None and not conv.depthwise:
        flops += high // 4 if strided and not gluon else high
    return flops
