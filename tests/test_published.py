"""Published weights give the published networks' logits: against files and logits that the authors' and the port's code wrote."""

import json
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from octnet import load_published_weights
from octnet.checkpoint import load_weights
from octnet.options import UserError
from octnet.published import put_weights, read_published

FIXTURES = Path(__file__).parent / "published"
SCRIPT = Path(__file__).parent.parent / "scripts" / "import_weights.py"
NETWORKS: dict[str, Any] = {
    record["file"]: record
    for file in ("networks.json", "networks_port.json")
    for record in json.loads((FIXTURES / file).read_text())
}


def build(file: str, **changed: Any) -> nn.Module:
    """The network of a fixture, in eval mode."""
    record = NETWORKS[file] | changed
    torch.manual_seed(0)
    kwargs = {"num_classes": 10, "alpha": record["alpha"]} | record["kwargs"]
    model: nn.Module = timm.create_model(record["model"], **kwargs)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    """Of the images that the fixtures' logits are of."""
    images = np.random.RandomState(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        output: Tensor = model(torch.from_numpy(images))
    return output


def refusal(model: nn.Module, file: str, tensors: dict[str, Tensor]) -> str:
    """The one line with which these tensors are refused; the model stays as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        put_weights(model, tensors, Path(file))
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return message


@pytest.mark.parametrize("file", NETWORKS)
def test_logits_are_the_authors(file: str) -> None:
    """Of the order of 1 (see the fixtures' README); a wrong eps, split or pool moves them by 1e-3 and more."""
    model = build(file)
    load_published_weights(model, FIXTURES / file)
    torch.testing.assert_close(logits(model), torch.tensor(NETWORKS[file]["logits"]), rtol=0, atol=1e-5)


def test_every_style_and_type_is_among_the_fixtures() -> None:
    seen = set()
    for file in NETWORKS:
        tensors = read_published(FIXTURES / file)
        name = next(name for name in tensors if "classif" in name or "fc." in name)
        seen |= {name} | {str(tensor.dtype) for tensor in tensors.values()}
    names = {"arg:classifier_weight", "classifer.weight", "M100_classifier_weight", "arg:M075_classifier_weight"}
    assert names | {"fc.weight", "module.fc.weight", "torch.float16", "torch.float32"} <= seen


def test_dtype_and_counters_stay_the_models() -> None:
    model = build("port_resnet.pth").to(torch.float64)
    counter = model.get_buffer("bn1.num_batches_tracked").fill_(7)
    load_published_weights(model, FIXTURES / "port_resnet.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert counter == 7


def test_vanilla_pth(tmp_path: Path) -> None:
    """A ResNet with torchvision's names, which are timm's."""
    vanilla, model = (build("port_resnet.pth", alpha=0) for _ in range(2))
    nn.init.uniform_(vanilla.get_parameter("layer2.0.downsample.0.weight"))
    torch.save(vanilla.state_dict(), tmp_path / "x.pth")
    load_published_weights(model, tmp_path / "x.pth")
    assert torch.equal(logits(model), logits(vanilla))


@pytest.mark.parametrize(
    ("file", "changed", "words"),
    [
        ("resnet-a0.25.tar", {"alpha": 0.4}, "the file's network has α = 0.25, and the model α = 0.4"),
        ("resnet-a0.25.tar", {"alpha": 0}, "the file's network has α = 0.25, and the model α = 0"),
        ("resnet-a0.25.tar", {"alpha": 0.0001}, "the file's network has α = 0.25, and the model α = 0.0001"),
        (
            "resnet-a0-0000.params",
            {"alpha": 0.25},
            "the file's network has α = 0 (a vanilla one), and the model α = 0.25",
        ),
        ("mobilenetv1-a0.params", {"alpha": 0}, "at alpha=0.0001"),
        ("mobilenetv1-a0.params", {"alpha": 0.5}, "the file's network has α = 0, and the model α = 0.5"),
        ("port_resnet.pth", {"alpha": 0.25}, "the file's network has α = 0.5, and the model α = 0.25"),
        ("densenet-a0.4-0000.params", {"model": "oct_densenet121"}, "eps = 0.0001, and the model's 1e-05"),
        ("resnet-a0.25.tar", {"model": "oct_resnet50"}, "fit the networks paper_…"),
        ("port_resnet.pth", {"model": "oct_paper_resnet50"}, "fit timm's ResNets"),
        ("resnet-a0.25.tar", {"model": "oct_paper_seresnet50"}, "missing: layer1.0.se.fc1.weight, "),
        (
            "seresnet-a0.25-0000.params",
            {"model": "oct_paper_resnet50"},
            "without a place in it: arg:L2_B01_se_fc1-h2h_weight, ",
        ),
    ],
)
def test_another_network_is_refused(file: str, changed: dict[str, Any], words: str) -> None:
    message = refusal(build(file, **changed), file, read_published(FIXTURES / file))
    assert words in message, message


def test_differences_are_listed() -> None:
    file = "resnet-a0.25.tar"
    tensors, model = read_published(FIXTURES / file), build(file)
    path = "arg:L3_B01_conv2_conv-l2h_weight"
    for changed, words in (
        ({path: None}, "missing: layer2.0.conv2.weight (L3_B01.conv2_conv.conv_l2h.weight)"),
        ({"arg:classifier_bias": None}, "missing: fc.bias"),
        ({path: tensors[path][:1]}, f"{path} is (1, 2, 3, 3) instead of (6, 2, 3, 3)"),
        ({path: tensors[path].long()}, f"{path} doesn't hold plain floating-point numbers"),
        ({"arg:extra": torch.zeros(1)}, "without a place in it: arg:extra"),
        (
            {"aux:tail_bn_moving_mean": None, "arg:tail_bn_mean": torch.zeros(32)},
            "missing: layer4.tail.0.running_mean; without a place in it: arg:tail_bn_mean",
        ),
        ({path.removeprefix("arg:"): tensors[path]}, "the same one of the network"),
    ):
        edited = {name: tensor for name, tensor in (tensors | changed).items() if tensor is not None}
        assert words in refusal(model, file, edited)
    assert " and 5 more" in refusal(model, file, tensors | {f"arg:extra{i}": torch.zeros(1) for i in range(8)})


def test_shift_of_a_batch_norm_without_one() -> None:
    """MXNet would add it; its scale is not used."""
    file = "resnet152e_se-a0.25.params"
    tensors = read_published(FIXTURES / file)
    name = "L1_B0.bn1a.bn_h.beta"
    assert tensors[name.replace("beta", "gamma")].ne(1).any()
    assert f"{name} is not 0" in refusal(build(file), file, tensors | {name: tensors[name] + 1})


class Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2))])
def test_pickled_code_is_not_run(save: Any, tmp_path: Path) -> None:
    save({"fc.weight": Harmful(tmp_path / "made")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth: cannot be read") as caught:
        read_published(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pth(zipped: bool, tmp_path: Path) -> None:
    """Cut off or written over: read or refused, no other exception."""
    path, rng = tmp_path / "x.pth", np.random.default_rng(0)
    torch.save({"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        content = np.frombuffer(whole, np.uint8)[: rng.choice([len(whole), int(rng.integers(2, len(whole)))])].copy()
        content[rng.integers(2, len(content), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(content.tobytes())
        try:
            read_published(path)
        except UserError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("name", ["a\nb", 3])
def test_names_are_text(name: Any, tmp_path: Path) -> None:
    torch.save({name: torch.ones(3)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is no name of a tensor"):
        read_published(tmp_path / "x.pth")


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("file", "name", "alpha"),
    [("resnet-a0.25.tar", "oct_paper_resnet50", 0.25), ("resnet-a0-0000.params", "paper_resnet50", 0)],
)
def test_import_script(
    file: str,
    name: str,
    alpha: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same command twice: the same file, with the names that octnet loads strictly."""
    output = tmp_path / "out.safetensors"
    options = ("--model", name, "--alpha", alpha, "--kwargs", "layers=[2,1,1,2]", "channels=[8,8,8,8]")
    contents = []
    for _ in range(2):
        assert run_script(monkeypatch, FIXTURES / file, *options, "--output", output) == 0
        contents.append(output.read_bytes())
    assert contents[0] == contents[1]
    assert f"{name}, α = {alpha:g}, 10 classes" in capsys.readouterr().out
    model = build(file)
    load_weights(model, output)
    torch.testing.assert_close(logits(model), torch.tensor(NETWORKS[file]["logits"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--model": "oct_paper_resnet5O"}, "oct_paper_resnet50"),
        ({"--kwargs": "layer=[2,1,1,2]"}, "layer"),
        ({"--kwargs": "layers"}, "--kwargs layers: write key=value"),
        ({"--alpha": 0.5}, "α = 0.25"),
        ({"--output": "weights.pth"}, ".safetensors"),
        ({"--output": "nowhere/x.safetensors"}, "there is no folder nowhere"),
        ({"file": "nowhere.params"}, "nowhere.params: cannot be read"),
        ({"file": FIXTURES / "numpy_shape.params"}, "has no classifier; what it holds: a, b"),
    ],
)
def test_import_script_refuses(
    changed: dict[str, Any],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"file": FIXTURES / "resnet-a0.25.tar", "--model": "oct_paper_resnet50", "--alpha": 0.25}
    options |= {"--kwargs": "layers=[2,1,1,2]", "--output": tmp_path / "x.safetensors"} | changed
    file = options.pop("file")
    assert run_script(monkeypatch, file, *(text for pair in options.items() for text in pair)) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
