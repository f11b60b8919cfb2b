"""The pair of maps that stands for one feature map: its low-frequency channels are kept at half the resolution.

Modules written for tensors take a pair as it is: an operation that means the same on a pair (a pointwise function, a batch
norm, a pool, a sum of equal splits, squeeze-and-excitation's mean and product) is carried out on both frequencies through
`__torch_function__`; any other is an `OctaveError` that names it. (Chen et al., arXiv 1904.05049, section 3.1.)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from octnet.clipping import Bounds, Step, clip, clip_with_pool
from octnet.errors import OctaveError, OddSizeError
from octnet.inductor import fuses, with_pool
from octnet.norm import Batch
from octnet.pointwise import Moments
from octnet.resampling import upsample


class Octave:
    """A feature map (B, C, H, W) as `high` (B, C_h, H, W) and `low` (B, C_l, H/2, W/2), C = C_h + C_l; either may be None.

    Compiled, a pair may know more about itself, for whoever comes next: the pool of `high` that was written with it; the steps
    that write its parts, of which what comes next can still become part; and what its parts measure. Steps read what the pair was
    made from: between a convolution and its activation, change that by operations on pairs, not on their maps. A pair that leaves
    a compiled function takes its steps along.
    """

    def __init__(
        self,
        high: Tensor | None,
        low: Tensor | None,
        pooled: Tensor | None = None,
        steps: tuple[Step, Step] | None = None,
        moments: tuple[Moments, Moments] | None = None,
    ) -> None:
        self.high = high
        self.low = low
        self.pooled = pooled
        self.steps = steps
        self.moments = moments

    def map(self, f: Callable[[Tensor], Tensor]) -> "Octave":
        """f of each frequency that is there."""
        return Octave(None if self.high is None else f(self.high), None if self.low is None else f(self.low))

    @property
    def parts(self) -> list[Tensor]:
        """The frequencies that are there, high first."""
        return [part for part in (self.high, self.low) if part is not None]

    @property
    def high_channels(self) -> int:
        """C_h, where vectors over channels are cut."""
        return 0 if self.high is None else self.high.shape[1]

    @property
    def shape(self) -> torch.Size:
        """(B, C, H, W) of the feature map that the pair stands for."""
        part, scale = (self.low, 2) if self.high is None else (self.high, 1)
        assert part is not None
        batch, _, height, width = part.shape
        return torch.Size((batch, sum(part.shape[1] for part in self.parts), height * scale, width * scale))

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    def dim(self) -> int:
        """4."""
        return 4

    @property
    def dtype(self) -> torch.dtype:
        """Of both frequencies."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Of both frequencies."""
        return self.parts[0].device

    @property
    def requires_grad(self) -> bool:
        """Of either frequency: what timm's DenseNet asks before it checkpoints a layer."""
        return any(part.requires_grad for part in self.parts)

    def new_empty(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Tensor.new_empty`: stochastic depth draws one mask that serves both frequencies."""
        return self.parts[0].new_empty(*args, **kwargs)

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> "Octave":
        """As `Tensor.contiguous`."""
        return self.map(lambda part: part.contiguous(memory_format=memory_format))

    def _forget(self) -> None:
        """Before an operation that may be in place: what the pair knew about itself no longer holds."""
        if self.pooled is not None or self.steps is not None or self.moments is not None:
            self.pooled = self.steps = self.moments = None

    def _become(self, y: "Octave") -> "Octave":
        """An operation in place, compiled: y's maps in this pair, and none changed, for steps that read them."""
        self.high, self.low, self.pooled, self.steps, self.moments = y.high, y.low, y.pooled, y.steps, y.moments
        return self

    def mean(self, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
        """Mean over space: (B, C) or (B, C, 1, 1), channels [high, low]."""
        _check_spatial("mean", dim)
        return torch.cat([part.mean((2, 3), keepdim) for part in self.parts], 1)

    def amax(self, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
        """Maximum over space: (B, C) or (B, C, 1, 1), channels [high, low]."""
        _check_spatial("amax", dim)
        return torch.cat([part.amax((2, 3), keepdim) for part in self.parts], 1)

    def to_tensor(self) -> Tensor:
        """One map (B, C, H, W): [high, low upsampled by 2, nearest]."""
        high = [] if self.high is None else [self.high]
        low = [] if self.low is None else [upsample(self.low)]
        return torch.cat(high + low, 1)

    def __add__(self, other: Any) -> "Octave":
        return _plus(self, other)

    def __iadd__(self, other: Any) -> "Octave":
        if not fuses(self.parts[0]):
            self._forget()
            return _combine(Tensor.add_, self, other)
        dtype = self.dtype
        total = _plus(self, other)
        return self._become(total if total.dtype == dtype else total.map(lambda part: part.to(dtype)))

    def __mul__(self, other: Any) -> "Octave":
        return _combine(torch.mul, self, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"'{name}' has no meaning on a pair of high and low frequency maps")

    def __repr__(self) -> str:
        return f"Octave(high={_shape(self.high)}, low={_shape(self.low)})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None:
            raise OctaveError(
                f"{getattr(func, '__name__', func)} has no meaning on a pair of high and low frequency maps"
            )
        return handler(func, *args, **(kwargs or {}))


def _shape(part: Tensor | None) -> tuple[int, ...] | None:
    return None if part is None else tuple(part.shape)


def _check_spatial(name: str, dim: int | Sequence[int]) -> None:
    if not isinstance(dim, Sequence) or sorted(d % 4 for d in dim) != [2, 3]:
        raise OctaveError(f"{name} over dimensions {dim} has no meaning on a pair; over (2, 3) it has")


def _combine(op: Callable[[Any, Any], Tensor], x: Any, y: Any) -> Octave:
    """op of two pairs of equal split, or of a pair and what has no extent in space: (B or 1, C or 1, 1, 1) or a number."""
    if not isinstance(x, Octave):
        x, y = y, x
    if not isinstance(y, Tensor | Octave):
        return x.map(lambda part: op(part, y))
    if isinstance(y, Octave):
        if (_shape(x.high), _shape(x.low)) != (_shape(y.high), _shape(y.low)):
            raise OctaveError(f"{op.__name__} of unequal splits {x} and {y}: plan both with one ratio")
        return Octave(
            None if x.high is None else op(x.high, y.high),
            None if x.low is None else op(x.low, y.low),
        )
    if y.ndim == 0:
        return x.map(lambda part: op(part, y))
    if y.ndim != 4 or y.shape[-2:] != (1, 1):
        raise OctaveError(f"{op.__name__} of {x} and a single map {tuple(y.shape)}: plan both with one ratio")
    if y.shape[1] == 1:
        return x.map(lambda part: op(part, y))
    cut = x.high_channels
    return Octave(
        None if x.high is None else op(x.high, y[:, :cut]),
        None if x.low is None else op(x.low, y[:, cut:]),
    )


def _plus(x: Octave, y: Any) -> Octave:
    """x + y; of a convolution that isn't carried out yet it becomes part."""
    total = _combine(torch.add, x, y)
    if x.steps is not None and isinstance(y, Octave) and y.dtype == x.dtype and fuses(x.parts[0]):
        high, low = (step.plus(part) for step, part in zip(x.steps, y.parts, strict=True))
        total.steps = None if high is None or low is None else (high, low)
    return total


def _binary(op: Callable[[Any, Any], Tensor]) -> Callable[..., Octave]:
    def handler(func: Any, x: Any, y: Any, **kwargs: Any) -> Octave:
        if kwargs:
            raise OctaveError(f"{op.__name__} with {', '.join(kwargs)} has no meaning on a pair")
        return _combine(op, x, y)

    return handler


def _pointwise(func: Callable[..., Tensor], x: Octave, *args: Any, **kwargs: Any) -> Octave:
    if kwargs.get("inplace") and fuses(x.parts[0]):
        return x._become(x.map(lambda part: func(part, *args, **kwargs | {"inplace": False})))
    x._forget()
    return x.map(lambda part: func(part, *args, **kwargs))


def _activation(func: Callable[..., Tensor], x: Octave, *args: Any, **kwargs: Any) -> Octave:
    """Pointwise; compiled, together with the pool of the high map, and with the convolution or batch norm before it."""
    if x.high is None or x.low is None or not fuses(x.high):
        return _pointwise(func, x, *args, **kwargs)
    bounds = Bounds.of(func, *args, **kwargs)
    if bounds is None:
        y = _pointwise(func, x, *args, **kwargs)
        assert y.high is not None
        y.high, y.pooled = with_pool(y.high)
        return y
    if x.steps is None:
        high, pooled = clip_with_pool(x.high, bounds)
        low = clip(x.low, bounds)
    else:
        high, pooled = x.steps[0].clipped(bounds, pools=True)
        (low,) = x.steps[1].clipped(bounds, pools=False)
    y = Octave(high, low, pooled)
    return x._become(y) if bounds.in_place else y


def _pool(func: Callable[..., Tensor], x: Octave, *args: Any, **kwargs: Any) -> Octave:
    """A pool of each frequency; the low map must stay half of the high one."""
    y = x.map(lambda part: func(part, *args, **kwargs))
    if y.high is not None and y.low is not None and y.high.shape[-2:] != tuple(2 * n for n in y.low.shape[-2:]):
        raise OddSizeError(f"{func.__name__} of {x} gives {y}: the low map is no longer half of the high one")
    return y


def _global_pool(func: Callable[..., Tensor], x: Octave, output_size: int | Sequence[int]) -> Tensor:
    """Adaptive pooling to 1×1: (B, C, 1, 1), channels [high, low]."""
    if output_size not in (1, (1, 1), [1, 1], torch.Size((1, 1))):
        raise OctaveError(f"{func.__name__} to {output_size} has no meaning on a pair; to 1 it has")
    return torch.cat([func(part, output_size) for part in x.parts], 1)


def _batch_norm(
    func: Callable[..., Tensor],
    x: Octave,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Octave:
    """Batch norm of each frequency, its vectors over channels cut where the channels are."""
    vectors = (running_mean, running_var, weight, bias)
    channels = next((len(v) for v in vectors if v is not None), x.shape[1])
    if channels != x.shape[1]:
        raise OctaveError(f"batch_norm of {channels} channels gets {x.shape[1]}")

    cut = x.high_channels
    of_high, of_low = ([v if v is None else v[part] for v in vectors] for part in (slice(None, cut), slice(cut, None)))
    fusible = training and weight is not None and bias is not None and fuses(x.parts[0])
    if x.high is None or x.low is None or not fusible or x.low.numel() == x.low.shape[1]:  # of one value func raises
        return Octave(
            None if x.high is None else func(x.high, *of_high, training, momentum, eps),
            None if x.low is None else func(x.low, *of_low, training, momentum, eps),
        )
    of_maps = (None, None) if x.moments is None else x.moments
    high = Batch.of(x.high, of_high, momentum, eps, high=True, moments=of_maps[0])
    low = Batch.of(x.low, of_low, momentum, eps, high=False, moments=of_maps[1])
    # where a clipping activation follows, it begins with (high, low), and what is normalised here is never compiled
    return Octave(high.normalize(), low.normalize(), steps=(high, low))


def _conv2d(
    func: Callable[..., Tensor],
    x: Octave,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A plain 1×1 convolution of the map that a pair stands for (a detection neck's): it commutes with upsampling."""
    if weight.shape[2:] != (1, 1) or stride not in (1, (1, 1)) or padding not in (0, (0, 0)) or groups != 1:
        raise OctaveError(
            "conv2d has no meaning on a pair of high and low frequency maps, unless 1×1 of stride 1: plan it"
        )
    cut = x.high_channels
    parts = [] if x.high is None else [func(x.high, weight[:, :cut], bias)]
    if x.low is not None:
        parts.append(upsample(func(x.low, weight[:, cut:], None if parts else bias)))
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _cat(func: Callable[..., Tensor], tensors: Sequence[Any], dim: int = 0) -> Octave:
    """Concatenation of channels for each frequency; a single map counts as high."""
    if dim not in (1, -3):
        raise OctaveError(f"cat over dimension {dim} has no meaning on pairs; over channels it has")
    pairs = [x if isinstance(x, Octave) else Octave(x, None) for x in tensors]
    high = [x.high for x in pairs if x.high is not None]
    low = [x.low for x in pairs if x.low is not None]
    return Octave(func(high, 1) if high else None, func(low, 1) if low else None)


_ACTIVATIONS: tuple[Any, ...] = (
    *(
        F.relu,
        torch.relu,
        torch.relu_,
        F.relu6,
        F.hardtanh,
        F.leaky_relu,
        F.elu,
        F.celu,
        F.selu,
        F.gelu,
        F.silu,
        F.mish,
    ),
    *(F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh, F.sigmoid, F.tanh, F.logsigmoid, F.softplus),
)
_POINTWISE: tuple[Any, ...] = (F.dropout, F.dropout2d, F.alpha_dropout, torch.clamp)
_HANDLERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys((F.avg_pool2d, F.max_pool2d, torch.max_pool2d, F.lp_pool2d), _pool),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_max_pool2d), _global_pool),
    **dict.fromkeys(
        (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__),
        _binary(torch.add),
    ),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _binary(torch.mul)),
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    torch.mean: lambda _, x, dim, keepdim=False: x.mean(dim, keepdim),
    F.batch_norm: _batch_norm,
    F.conv2d: _conv2d,
}

pytree.register_pytree_node(
    Octave,
    lambda x: ([x.high, x.low], None),
    lambda parts, _: Octave(*parts),
    serialized_type_name="octnet.Octave",
)
