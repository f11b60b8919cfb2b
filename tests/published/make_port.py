"""Writes the fixtures of the PyTorch port: its own, unmodified code, narrow networks, random weights, and the logits they give.

git clone https://github.com/d-li14/octconv.pytorch
python tests/published/make_port.py octconv.pytorch tests/published
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 10
LAYERS, CHANNELS = [2, 1, 1, 2], [8, 8, 8, 8]
WIDTH = 0.0625


def main() -> None:
    """Writes each file and, for all, networks_port.json."""
    repository, output = map(Path, sys.argv[1:])
    sys.path.insert(0, str(repository))
    images = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 64, 64)).astype(np.float32))
    networks: tuple[tuple[str, str, dict[str, Any], nn.Module], ...] = (
        ("port_resnet.pth", "oct_resnet50", {"layers": LAYERS, "channels": CHANNELS}, narrow_resnet()),
        ("port_mobilenet.pth.tar", "oct_paper_mobilenetv1_100", {"width": WIDTH}, narrow_mobilenet()),
    )
    records: list[dict[str, Any]] = []
    for file, model, kwargs, network in networks:
        torch.manual_seed(len(records))
        randomise(network.eval())
        with torch.no_grad():
            logits = np.round(network(images).double().numpy(), 6).tolist()
        state: dict[str, Any] = network.half().state_dict()
        if file.endswith(".tar"):  # a checkpoint of training under nn.DataParallel, as PyTorch's example writes it
            state = {"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
        torch.save(state, output / file)
        records.append({"file": file, "model": model, "alpha": 0.5, "kwargs": kwargs, "logits": logits})
    lines = ",\n".join(json.dumps(record) for record in records)
    (output / "networks_port.json").write_text(f"[\n{lines}\n]\n")


def narrow_resnet() -> nn.Module:
    """The port's ResNet; its stages get fewer channels than they ask for."""
    port: Any = import_module("oct_resnet")
    make_layer = port.OctResNet._make_layer
    port.OctResNet._make_layer = lambda self, block, _, *args, **kwargs: make_layer(
        self, block, CHANNELS[0], *args, **kwargs
    )
    network: nn.Module = port.OctResNet(port.Bottleneck, LAYERS)
    network.register_module("fc", nn.Linear(4 * CHANNELS[0], CLASSES))
    return network


def narrow_mobilenet() -> nn.Module:
    """The port's MobileNet of fewer channels; its own forward has their number written out."""
    port: Any = import_module("oct_mobilenet")
    conv_bn, conv_dw = port.conv_bn, port.conv_dw
    port.conv_bn = lambda inp, oup, stride: conv_bn(inp, int(oup * WIDTH), stride)
    port.conv_dw = lambda inp, oup, *args: conv_dw(int(inp * WIDTH), int(oup * WIDTH), *args)
    port.OctMobileNet.forward = lambda self, x: self.fc(self.features(x)[0].mean((2, 3)))
    network: nn.Module = port.OctMobileNet()
    network.register_module("fc", nn.Linear(int(1024 * WIDTH), CLASSES))
    return network


def randomise(network: nn.Module) -> None:
    """Values that float16 has; no statistic is 0 or 1."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1:
            tensor.normal_(std=0.2)
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        tensor.copy_(tensor.half())


if __name__ == "__main__":
    main()
