"""Writes the MXNet fixtures: narrow networks by the authors' own, unmodified code, random weights, and the logits they give.

    git clone https://github.com/facebookresearch/OctConv && git -C OctConv checkout 87c44f7
    python3.8 -m venv mx && mx/bin/pip install mxnet==1.9.1 numpy==1.23.5
    MXNET_SUBGRAPH_BACKEND=NONE mx/bin/python tests/published/make.py OctConv tests/published

The authors' functions take no widths: what they pass to their layers is narrowed on the way.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

CLASSES = 10
LAYERS, CHANNELS = [2, 1, 1, 2], [8, 8, 8, 8]
RESNET = {"layers": LAYERS, "channels": CHANNELS}
RESNEXT = {**RESNET, "cardinality": 4, "base_width": 32}
DENSENET = {"block_config": [2, 2, 2, 2], "growth_rate": 8}
V1_100, V1_075 = {"width": 0.125}, {"width": 0.09375}
V2 = {"width": 0.1875, "num_features": 6827}  # 1280 features of the head, as theirs below a width of 1

# file, octnet's network, its keywords; the authors' network, its ratio, how it's saved, in which type
NETWORKS: tuple[tuple[str, str, dict[str, Any], str, float, str, str], ...] = (
    ("resnet-a0", "paper_resnet50", RESNET, "symbol_resnetv2", -1, "checkpoint", "float32"),
    ("resnet-a0.25", "paper_resnet50", RESNET, "symbol_resnetv2", 0.25, "tar", "float16"),
    ("resnet-a0.4", "paper_resnet50", RESNET, "symbol_resnetv2", 0.4, "checkpoint", "float16"),
    ("seresnet-a0.25", "paper_seresnet50", RESNET, "symbol_seresnetv2", 0.25, "checkpoint", "float16"),
    ("resnext-a0.25", "paper_resnext50_32x4d", RESNEXT, "symbol_resnextv2_32x4d", 0.25, "checkpoint", "float16"),
    ("resnext-a0.5", "paper_resnext50_32x4d", RESNEXT, "symbol_resnextv2_32x4d", 0.5, "checkpoint", "float16"),
    ("densenet-a0", "paper_densenet121", DENSENET, "symbol_densenet", -1, "checkpoint", "float16"),
    ("densenet-a0.4", "paper_densenet121", DENSENET, "symbol_densenet", 0.4, "checkpoint", "float16"),
    ("mobilenetv1-a0", "paper_mobilenetv1_100", V1_100, "mobilenet_v1_100", 0, "prefixed", "float16"),
    ("mobilenetv1-a0.5", "paper_mobilenetv1_100", V1_100, "mobilenet_v1_100", 0.5, "parameters", "float16"),
    ("mobilenetv1-a0.375", "paper_mobilenetv1_075", V1_075, "mobilenet_v1_075", 0.375, "export", "float32"),
    ("mobilenetv2-a0.375", "paper_mobilenetv2_100", V2, "mobilenet_v2_100", 0.375, "parameters", "float16"),
    ("mobilenetv2-a0.5", "paper_mobilenetv2_1125", V2, "mobilenet_v2_1125", 0.5, "prefixed", "float16"),
    ("resnet152e-a0.25", "paper_resnet152e", RESNET, "resnet152_v1e", 0.25, "export", "float32"),
    ("resnet152e_se-a0.25", "paper_resnet152e_se", RESNET, "resnet152_v1e", 0.25, "parameters", "float16"),
    ("resnet152e_se-a0.5", "paper_resnet152e_se", RESNET, "resnet152_v1e", 0.5, "prefixed", "float16"),
    ("resnet152f-a0.125", "paper_resnet152f", RESNET, "resnet152_v1f", 0.125, "parameters", "float16"),
    ("resnet152f-a0.25", "paper_resnet152f", RESNET, "resnet152_v1f", 0.25, "prefixed", "float16"),
)


def main() -> None:
    """Writes each file and, for all, networks.json."""
    repository, output = map(Path, sys.argv[1:])
    sys.path[:0] = [str(repository / "utils" / "symbol"), str(repository / "utils" / "gluon")]
    images = np.random.RandomState(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    records: list[dict[str, Any]] = []
    for file, model, kwargs, theirs, ratio, style, dtype in NETWORKS:
        rng = np.random.RandomState(len(records))
        if theirs.startswith("symbol"):
            network = narrow_symbol(theirs, kwargs, ratio)
            file, logits = save_symbol(network, output / file, style, dtype, rng, images)
        else:
            network = narrow_gluon(theirs, kwargs, ratio, use_se=model.endswith("_se"))
            file, logits = save_gluon(network, output / file, style, dtype, rng, images)
        alpha = {-1.0: 0.0, 0.0: 0.0001}.get(ratio, ratio)  # -1: vanilla; 0: octave code without low channels
        record = {"file": file, "model": f"oct_{model}", "alpha": alpha, "kwargs": kwargs}
        records.append({**record, "logits": np.round(logits.astype(float), 6).tolist()})
    lines = ",\n".join(json.dumps(record) for record in records)
    (output / "networks.json").write_text(f"[\n{lines}\n]\n")
    with mx.util.np_shape(True):  # the newest version of the format
        arrays = {"a": mx.nd.arange(6).reshape((2, 3)), "b": mx.nd.ones((4,), dtype="int64")}
        mx.nd.save(str(output / "numpy_shape.params"), arrays)


def narrow_symbol(module: str, kwargs: dict[str, Any], ratio: float) -> Any:
    """The authors' symbol up to the logits, of the widths that `kwargs` says to octnet."""
    network: Any = import_module(module)
    if module == "symbol_densenet":
        growth = kwargs["growth_rate"]
        network.densenet_spec[121] = (2 * growth, growth, dict(enumerate(kwargs["block_config"], start=2)))
        return network.get_linear(CLASSES, 121, ratio=ratio)
    base: Any = import_module("symbol_resnetv2")
    bottleneck = import_module("symbol_resblock").BottleNeckV2
    channels = kwargs["channels"][0]

    def narrow(**given: Any) -> Any:
        middle = channels * given["num_mid"] * 4 // given["num_out"]  # twice as many in ResNeXt
        return bottleneck(**{**given, "num_mid": middle, "num_out": 4 * channels})

    base.BottleNeckV2 = narrow
    base.resenet_spec[50] = dict(enumerate(kwargs["layers"], start=2))
    if "cardinality" in kwargs:
        network.group = kwargs["cardinality"]
    return network.get_linear(CLASSES, 50, ratio=ratio)


def narrow_gluon(name: str, kwargs: dict[str, Any], ratio: float, use_se: bool) -> Any:
    """The authors' network, with the arguments of their function `name`, and instead of its widths those of `kwargs`."""
    change: dict[str, Any]
    if name.startswith("mobilenet"):
        family, cls = import_module(f"utils.mobilenetv{name[11]}"), f"_MobileNetV{name[11]}"
        change = {"multiplier": kwargs["width"]}
    else:
        family, cls = import_module("utils.resnetv1"), "_ResNetV1"
        channels = kwargs["channels"]
        change = {"layers": kwargs["layers"], "num_mid": channels, "num_out": [4 * c for c in channels]}
    network = getattr(family, cls)
    setattr(family, cls, lambda *args, **given: (args, given))  # see what their function passes
    args, given = getattr(family, name)(ratio=float(ratio), classes=CLASSES, **({"use_se": True} if use_se else {}))
    setattr(family, cls, network)
    return network(*args[:1], **{**given, **change})


def save_symbol(symbol: Any, path: Path, style: str, dtype: str, rng: Any, images: Any) -> tuple[str, Any]:
    """Writes a checkpoint, as `-0000.params` or in an archive with its graph; returns the file's name and the logits."""
    shapes, _, auxiliary_shapes = symbol.infer_shape(data=images.shape)
    arguments = {n: values(n, shapes[i], rng) for i, n in enumerate(symbol.list_arguments()) if n != "data"}
    auxiliary = {n: values(n, auxiliary_shapes[i], rng) for i, n in enumerate(symbol.list_auxiliary_states())}
    inputs = {**arguments, "data": mx.nd.array(images)}
    (logits,) = symbol.bind(mx.cpu(), inputs, aux_states=auxiliary).forward()
    cast = [{n: a.astype(dtype) for n, a in arrays.items()} for arrays in (arguments, auxiliary)]
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / path.name
        mx.model.save_checkpoint(str(prefix), 0, symbol, *cast)
        parameters = Path(f"{prefix}-0000.params")
        if style == "tar":
            target = path.with_name(f"{path.name}.tar")
            with tarfile.open(target, "w") as archive:
                archive.add(f"{prefix}-symbol.json", f"{path.name}/{path.name}-symbol.json")
                archive.add(parameters, f"{path.name}/{parameters.name}")
        else:
            target = path.with_name(parameters.name)
            shutil.move(str(parameters), target)
    return target.name, logits.asnumpy()


def save_gluon(net: Any, path: Path, style: str, dtype: str, rng: Any, images: Any) -> tuple[str, Any]:
    """Writes the parameters in one of gluon's three styles; returns the file's name and the logits."""
    net.initialize()
    net.hybridize()
    net(mx.nd.array(images))  # now the shapes are known
    for name, parameter in net.collect_params().items():
        parameter.set_data(values(name, parameter.shape, rng))
    logits = net(mx.nd.array(images)).asnumpy()
    if dtype == "float16":
        net.cast(dtype)  # batch norms stay in float32
    target = path.with_name(f"{path.name}.params")
    if style == "export":
        target = path.with_name(f"{path.name}-0000.params")
        net.export(str(path))
        path.with_name(f"{path.name}-symbol.json").unlink()
    elif style == "prefixed":
        net.collect_params().save(str(target))
    else:
        net.save_parameters(str(target))
    return target.name, logits


def values(name: str, shape: tuple[int, ...], rng: Any) -> Any:
    """Random values that float16 has, of sizes that keep the logits near 1; no statistic is 0 or 1."""
    if name.endswith(("gamma", "var")):
        drawn = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("weight"):
        sources = 2 if "l2h" in name or "h2h" in name else 1
        gain = 0.25 if "conv3" in name else 1  # the last of a block: a sum of many must not grow
        drawn = gain * rng.standard_normal(shape) / np.sqrt(sources * np.prod(shape[1:]))
    else:
        drawn = rng.standard_normal(shape) / 5
    if name.endswith("beta") and ("bn1a" in name or "bn4a" in name):
        drawn = np.zeros(shape)  # a batch norm without shift: the authors never set it
    return mx.nd.array(drawn.astype(np.float16).astype(np.float32))


if __name__ == "__main__":
    main()
