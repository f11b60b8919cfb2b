"""The model benchmark as a user starts it: its records, not its times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from octnet.complexity import check_model

PROGRAM = Path(__file__).parent.parent / "scripts" / "benchmark.py"
FEW = ["--image-size-px", "32", "--batch", "2", "--rounds", "2", "--eager", "--device", "cpu"]


def benchmark(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(PROGRAM), "model", *arguments], capture_output=True, text=True, timeout=300
    )


def test_records(tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    for dtype in ("float32", "bfloat16"):
        done = benchmark("--models", "oct_resnet_tiny", "--alphas", "0.5", *FEW, "--dtype", dtype, "--json", str(file))
        assert done.returncode == 0, done.stderr
        assert "realised" in done.stdout
    records = json.loads(file.read_text())
    expected = [(m, a, d) for d in ("float32", "bfloat16") for m in ("inference", "train") for a in (0, 0.5)]
    assert [(r["mode"], r["alpha"], r["dtype"]) for r in records] == expected, "the second run adds to the first"
    vanilla, octave = (check_model("oct_resnet_tiny", a, {}, 1000, 32).macs for a in (0, 0.5))
    for record in records:
        assert record["model"] == "oct_resnet_tiny"
        assert record["batch"] == 2 and record["image_size_px"] == 32 and not record["compiled"]
        assert record["device"] and record["time_ms"] > 0
        assert record["macs_ratio"] == (1 if record["alpha"] == 0 else octave / vanilla)
        assert record["realised"] == pytest.approx(record["macs_ratio"] / record["time_ratio"])
        assert ("saved_mb" in record) == (record["mode"] == "train")


def test_what_is_kept_is_what_autograd_keeps(tmp_path: Path) -> None:
    """Against the vanilla network's own graph: inputs of its layers, counted by hand; and the octave one's is near its bound."""
    file = tmp_path / "records.json"
    arguments = ["--models", "oct_resnet_tiny", "--alphas", "0.25", "--modes", "train", *FEW, "--json", str(file)]
    assert benchmark(*arguments).returncode == 0
    vanilla, octave = json.loads(file.read_text())
    model = timm.create_model("resnet_tiny")
    inputs: dict[int, torch.Tensor] = {}
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            layer.register_forward_pre_hook(lambda _, x: inputs.update({x[0].untyped_storage().data_ptr(): x[0]}))
    model(torch.randn(1, 3, 32, 32))
    needed = sum(x.numel() for x in inputs.values()) * 4 / 1e6
    assert vanilla["bound_mb"] == pytest.approx(needed)
    assert vanilla["saved_mb"] == pytest.approx(needed, rel=0.03)
    assert octave["bound_mb"] < 0.87 * vanilla["bound_mb"]
    assert octave["saved_mb"] / vanilla["saved_mb"] == pytest.approx(octave["bound_mb"] / vanilla["bound_mb"], abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "resnet50"], "--models resnet50: octave networks begin with oct_: oct_resnet50"),
        (["--models", "oct_resnet5"], "oct_resnet50"),
        (["--batch", "0"], "--batch 0: must be 1 or more"),
        (["--json", "nowhere/file.json"], "there is no folder nowhere"),
        (["--image-size-px", "40"], "the nearest sizes that fit are"),
        (["--device", "gpu"], "--device gpu: there is cpu"),
        (["--cuda-graphs"], "--cuda-graphs: of compiled networks on a GPU only"),
        (["--json", __file__], "cannot be read as benchmark records"),
        (["--alphas", "1.5"], "alpha=1.5 is not between 0 and 1"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    done = benchmark("--device", "cpu", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
