"""What Inductor makes of octnet/inductor.py's operations; registered by importing it."""

from typing import Any

import torch
from torch._inductor import ir
from torch._inductor.lowering import lowerings, register_lowering
from torch._inductor.virtualized import V, ops

from octnet.inductor import NAMESPACE


def _is_channels_last(x: Any) -> bool:
    """What the map is to be: as traced, or because Inductor makes all convolutions so."""
    traced: Any = V.graph.current_node.args[0]
    value = traced.meta["val"]
    return value.ndim == 4 and (V.graph.layout_opt or value.is_contiguous(memory_format=torch.channels_last))


def _write_cells(x: Any) -> tuple[Any, list[Any]]:
    """x written as four maps (B, C, H/2, W/2) of its cells' corners, which lie in one buffer (B, C, H, W)."""
    batch, channels, height, width = size = x.get_size()
    device, dtype = x.get_device(), x.get_dtype()
    stride = ir.make_channels_last_strides_for(size)
    whole: Any = ir.ConcatKernel(name=None, layout=ir.FixedLayout(device, dtype, size, stride), inputs=[])
    box, load, corners = ir.StorageBox(whole), x.make_loader(), []
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = ir.Pointwise.create(
            device=device,
            dtype=dtype,
            inner_fn=lambda at, i=i, j=j: load([at[0], at[1], 2 * at[2] + i, 2 * at[3] + j]),
            ranges=[batch, channels, height // 2, width // 2],
        )
        rows = ir.SliceView.create(box, 2, i, height, 2, clamp=False)
        place = ir.SliceView.create(rows, 3, j, width, 2, clamp=False)
        whole.inputs.append(ir.ConcatKernel.realize_into(corner, place))
        corners.append(corner)
    whole.name = V.graph.register_buffer(whole)
    whole.inputs = ir.ConcatKernel.unwrap_storage(whole.inputs)
    V.graph.register_operation(whole)
    return ir.TensorBox(box), corners


operations = getattr(torch.ops, NAMESPACE)


@register_lowering(operations.with_pool.default, type_promotion_kind=None)
def lower_with_pool(x: Any) -> tuple[Any, Any]:
    if not _is_channels_last(x):
        x.realize()
        return x, lowerings[torch.ops.aten.avg_pool2d.default](x, [2, 2])
    y, corners = _write_cells(x)
    loads = [corner.make_loader() for corner in corners]
    wide = torch.promote_types(x.get_dtype(), torch.float32)

    def mean(at: Any) -> Any:
        a, b, c, d = (ops.to_dtype(load(at), wide) for load in loads)
        return ops.to_dtype(ops.mul(ops.add(ops.add(a, b), ops.add(c, d)), ops.constant(0.25, wide)), x.get_dtype())

    ranges = corners[0].get_size()
    return y, ir.Pointwise.create(device=x.get_device(), dtype=x.get_dtype(), inner_fn=mean, ranges=ranges)


@register_lowering(operations.written.default, type_promotion_kind=None)
def lower_written(x: Any, cells: bool) -> Any:
    if ir.is_storage_and_layout(x):  # it is already
        return x
    if cells and _is_channels_last(x):
        return _write_cells(x)[0]
    x.realize()
    return x


@register_lowering(operations.apart.default, type_promotion_kind=None)
def lower_apart(x: Any) -> tuple[Any, Any, Any]:
    if ir.is_storage_and_layout(x):  # written already
        return x, x, x

    def again() -> Any:
        load = x.make_loader()
        return ir.Pointwise.create(device=x.get_device(), dtype=x.get_dtype(), inner_fn=load, ranges=x.get_size())

    return again(), again(), again()
