"""Training against a plain loop, and a continued run against an uninterrupted one, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor

from octnet.accuracy import evaluate_images
from octnet.augment import normalize
from octnet.checkpoint import load_weights, read_weights
from octnet.data import train_steps
from octnet.engine import Diverged, Hooks, Interrupted, open_data, train, train_step
from octnet.network import build_network
from octnet.optimizer import learning_rate
from octnet.options import Config, UserError
from octnet.processes import Processes
from octnet.randomness import step_seed
from octnet.state import State, restore, start
from tests.small import small_config

ONE = Processes(0, 1, torch.device("cpu"))


def run(config: Config, folder: Path, stop: Callable[[], bool] = lambda: False) -> State:
    """Trains as a run does, without its process; the folder holds the checkpoint."""
    folder.mkdir(exist_ok=True)
    images, val_images = open_data(config, ONE)
    state = start(config, len(images.classes), ONE.device)
    train(state, images, val_images, config, folder, ONE, Hooks(lambda *_: None, lambda _: None, stop))
    return state


def test_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """timm's vanilla network, torch's SGD, the batches of the data layer: the same weights after an epoch."""
    config = small_config(tmp_path, epochs=1)
    config.model.alpha = 0
    config.recipe.label_smoothing = 0.1
    config.recipe.channels_last = False
    state = run(config, tmp_path)

    torch.manual_seed(config.seed)
    model = timm.create_model("resnet_tiny", num_classes=16, **config.model.kwargs).train()
    sgd = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    images, _ = open_data(config, ONE)
    batches = train_steps(images, config.data, config.seed, 16)
    for step in range(4):
        x, y = next(batches)
        sgd.param_groups[0]["lr"] = learning_rate(step, 4, config.recipe)
        sgd.zero_grad()
        mean, std = torch.tensor(config.data.mean)[:, None, None], torch.tensor(config.data.std)[:, None, None]
        F.cross_entropy(model((x / 255 - mean) / std), y, label_smoothing=0.1).backward()
        sgd.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_continued_run_is_the_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    """Interrupted inside and between epochs, with mixup, EMA, stochastic depth: every bit of weights and state."""
    config = small_config(tmp_path)
    config.recipe.mixup_alpha, config.recipe.ema_decay = 0.2, 0.9
    config.model.kwargs["drop_path_rate"] = 0.2
    whole = run(config, tmp_path / "whole")
    calls = iter(range(100))
    with pytest.raises(Interrupted):
        run(config, tmp_path / "broken", stop=lambda: next(calls) + 1 == stop_after)
    torch.randn(7)  # random state that a new process would not have
    np.random.rand(7)
    broken = run(config, tmp_path / "broken")
    for a, b in ((whole.model, broken.model), (whole.measured, broken.measured)):
        assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())
    assert (tmp_path / "whole" / "weights.safetensors").read_bytes() == (
        tmp_path / "broken" / "weights.safetensors"
    ).read_bytes()
    measured = read_weights(tmp_path / "whole" / "weights.safetensors")
    assert all(torch.equal(x, measured[name]) for name, x in whole.measured.state_dict().items())
    assert not torch.equal(whole.model.state_dict()["fc.weight"], measured["fc.weight"])


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    """Without batch statistics, 2 passes of 8 images are a step of 16."""
    results = []
    for passes in (1, 2):
        config = small_config(tmp_path)
        config.model.kwargs = {"channels": [32, 32, 32, 32], "norm_layer": "groupnorm1"}
        config.model.name, config.model.alpha = "resnet_tiny", 0
        config.recipe.accumulation_steps = passes
        images, _ = open_data(config, ONE)
        state = start(config, 16, ONE.device)
        for group in state.optimizer.param_groups:
            group["lr"] = 0.1
        batches = train_steps(images, config.data, 0, 16, passes)
        train_step(state, state.model.train(), batches, config, ONE)
        results.append(state)
    for name, tensor in results[0].model.state_dict().items():
        torch.testing.assert_close(results[1].model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0].totals, results[1].totals, rtol=1e-5, atol=0)


def test_mixup_is_timms_at_the_step_seed(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    config.recipe.mixup_alpha, config.recipe.label_smoothing = 0.4, 0.1
    images, _ = open_data(config, ONE)
    state = start(config, 16, ONE.device)
    seen: list[Tensor] = []
    state.model.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    train_step(state, state.model.train(), train_steps(images, config.data, 0, 16), config, ONE)
    x, y = next(train_steps(images, config.data, 0, 16))
    np.random.seed(step_seed(0, 0, 0))
    mixed, _ = Mixup(0.4, label_smoothing=0.1, num_classes=16)(normalize(x, config.data.mean, config.data.std), y)
    torch.testing.assert_close(seen[0], mixed)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns(tmp_path: Path, precision: str) -> None:
    config = small_config(tmp_path, epochs=1)
    config.recipe.precision = precision
    state = run(config, tmp_path)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in state.model.parameters())
    assert (state.scaler.get_scale() > 1) == (precision == "float16")


def test_divergence_names_its_step(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    config.recipe.learning_rate = 1e30
    with pytest.raises(Diverged) as caught:
        run(config, tmp_path)
    assert 2 <= caught.value.step <= 4


def test_evaluation_counts_each_image_once(tmp_path: Path) -> None:
    """Against logits of one plain pass, with a batch size that leaves a rest."""
    config = small_config(tmp_path)
    config.data.val_images, config.recipe.batch_size = 45, 16
    _, val_images = open_data(config, ONE)
    torch.manual_seed(0)
    model = build_network("oct_resnet_tiny", 0.5, config.model.kwargs, 16)
    metrics = evaluate_images(model, val_images, config, ONE)
    loaded = [val_images.load(i) for i in range(45)]
    x = normalize(torch.stack([image for image, _ in loaded]), config.data.mean, config.data.std)
    y = torch.tensor([label for _, label in loaded])
    with torch.no_grad():
        order = model.eval()(x).argsort(1, descending=True)
    assert metrics["top1"] == pytest.approx(100 * (order[:, 0] == y).float().mean().item())
    assert metrics["top5"] == pytest.approx(100 * (order[:, :5] == y[:, None]).any(1).float().mean().item())


def test_starting_weights_are_the_same_at_every_alpha_and_can_be_given(tmp_path: Path) -> None:
    config = small_config(tmp_path, epochs=1)
    states = []
    for alpha in (0, 0.5):
        config.model.alpha = alpha
        states.append(start(config, 16, ONE.device).model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    run(config, tmp_path)
    config.model.weights = str(tmp_path / "weights.safetensors")
    config.model.alpha = 0.25
    again = start(config, 16, ONE.device).model.state_dict()
    assert all(torch.equal(t, again[name]) for name, t in read_weights(tmp_path / "weights.safetensors").items())


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path, epochs=1)
    state = run(config, tmp_path)
    path = tmp_path / "checkpoints" / "last.pt"
    with pytest.raises(UserError, match="other images"):
        restore(state, path, "another digest", ONE)
    other = build_network("oct_resnet_tiny", 0.5, {}, 16)
    with pytest.raises(
        UserError, match=r"last.pt: of another network: .*shape \(16, 32\) where .* \(16, 512\).*and \d+ more"
    ):
        load_weights(other, path)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"broken.pt: cannot be read as a checkpoint"):
        load_weights(other, broken)
    with pytest.raises(UserError, match=r"missing.safetensors: cannot be read as weights"):
        load_weights(other, tmp_path / "missing.safetensors")


class Evil:
    """Pickles as a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_pickled_code_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pt")
    with pytest.raises(UserError, match=r"evil.pt: cannot be read as a checkpoint"):
        read_weights(Path("evil.pt"))
    assert not Path("executed").exists()
