"""Whole runs in their own processes: how they end, and what their folder holds then."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from octnet.accuracy import evaluate_images
from octnet.checkpoint import load_weights, read_weights
from octnet.engine import open_data
from octnet.launch import execute
from octnet.network import build_network
from octnet.options import UserError
from octnet.run import check_folder, locked, read_summary, record_epoch, run_folder
from octnet.runconfig import load_config
from tests.small import small_config
from tests.test_engine import ONE


def test_two_processes_make_one_run(tmp_path: Path) -> None:
    """gloo on the CPU; the recorded accuracy is what one process measures with the saved weights."""
    config = small_config(tmp_path)
    config.launch.processes = 2
    config.data.val_images = 47  # uneven: no image twice, none left out
    assert execute(config) == "done"
    folder = run_folder(config)
    assert {path.name for path in folder.iterdir()} >= {
        *("config.yaml", "train.log", "metrics.jsonl", "checkpoints", "weights.safetensors", "summary.json")
    }
    summary = read_summary(folder)
    assert summary["processes"] == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["top1"] == summary["top1"]

    _, val_images = open_data(config, ONE)
    model = build_network(config.model.name, config.model.alpha, config.model.kwargs, 16)
    load_weights(model, folder / "weights.safetensors")
    metrics = evaluate_images(model, val_images, config, ONE)
    assert metrics["top1"] == pytest.approx(summary["top1"])
    assert metrics["val_loss"] == pytest.approx(lines[-1]["val_loss"], rel=1e-4)


def test_a_finished_run_is_skipped_and_another_config_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path, epochs=1)
    assert execute(config) == "done"
    folder = run_folder(config)
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    assert execute(config) == "done"
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before
    assert load_config(folder / "config.yaml") == config
    check_folder(config)
    config.recipe.epochs, config.data.workers = 3, 1
    with pytest.raises(UserError, match=r"recipe.epochs \(1, now 3\)") as caught:
        check_folder(config)
    assert "workers" not in str(caught.value)


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    config.recipe.learning_rate = 1e30
    assert execute(config) == "diverged"
    summary = read_summary(run_folder(config))
    assert summary["diverged_step"] in (2, 3, 4)
    assert execute(config) == "diverged"


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (1, 1), (0, 2)])
def test_a_run_that_fails_names_the_file_and_starts_again(tmp_path: Path, workers: int, processes: int) -> None:
    root = Path(images(tmp_path / "images", 99))
    bad = root / "train" / "b" / "99-3.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    config = small_config(tmp_path / "runs", epochs=1)
    config.data.reader, config.data.root, config.data.workers = "folder", str(root), workers
    config.data.num_classes, config.launch.processes = 2, processes
    assert execute(config) == "failed"
    folder = run_folder(config)
    assert str(bad) in read_summary(folder)["error"]
    assert "Traceback" in (folder / "train.log").read_text()
    bad.write_bytes(whole)
    assert execute(config) == "done"
    assert read_summary(folder)["error"] is None


def test_the_folder_of_a_run_is_taken_once(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    folder = run_folder(config)
    folder.mkdir(parents=True)
    with locked(folder):
        code = (
            "import sys; from pathlib import Path; from octnet.run import locked\n"
            "from octnet.options import UserError\n"
            "try:\n    locked(Path(sys.argv[1])).__enter__()\nexcept UserError as error:\n    print(error)"
        )
        said = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        assert "is in use by process" in said.stdout
    with locked(folder):
        pass


def test_metrics_of_a_repeated_epoch_replace_the_first(tmp_path: Path) -> None:
    for epoch, top1 in ((1, 10), (2, 20), (3, 30), (2, 25)):
        record_epoch(tmp_path, {"epoch": epoch, "top1": top1})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["top1"]) for line in lines] == [(1, 10), (2, 25)]


def test_wandb_offline_is_one_run_with_its_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = small_config(tmp_path, epochs=1)
    config.wandb.mode = "offline"
    assert execute(config) == "done"
    folder = run_folder(config)
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    assert runs[0].name.endswith(read_summary(folder)["wandb_id"])
    shutil.rmtree(folder / "wandb")


def images(root: Path, color: int) -> str:
    """A data set of two classes, its files named by the colour."""
    for split, name in ((s, n) for s in ("train", "val") for n in ("a", "b")):
        (root / split / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (16, 16), (color, 20 * i, 50)).save(root / split / name / f"{color}-{i}.png")
    return str(root)


def test_other_images_under_the_same_configuration_are_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path / "runs", epochs=1)
    config.data.reader, config.data.root = "folder", images(tmp_path / "one", 10)
    assert execute(config) == "done"
    config.data.root = str((tmp_path / "one").rename(tmp_path / "moved"))  # the same images elsewhere
    check_folder(config)
    config.data.root = images(tmp_path / "two", 20)
    with pytest.raises(UserError, match=r"data.root \(.*one, now other images in .*two\)"):
        check_folder(config)
    assert load_config(run_folder(config) / "config.yaml").data.root == str(tmp_path / "one")


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Without batch statistics the split of the batch makes no difference: gradients are averaged, mixup pairs the same."""
    weights = []
    for processes in (1, 2):
        config = small_config(tmp_path / str(processes), epochs=1)
        config.model.name, config.model.alpha = "resnet_tiny", 0
        config.model.kwargs = {"channels": [8, 8, 8, 8], "norm_layer": "groupnorm1"}
        config.recipe.mixup_alpha, config.recipe.ema_decay, config.recipe.learning_rate = 0.4, 0.5, 0.01
        config.launch.processes = processes
        assert execute(config) == "done"
        weights.append(read_weights(run_folder(config) / "weights.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)


def start_and_wait(folder: Path, epochs: int) -> tuple["subprocess.Popen[str]", Path]:
    """train.py as a user starts it, once its first epoch is over."""
    arguments = [f"output_dir={folder}", f"recipe.epochs={epochs}", "recipe.batch_size=16", "data.image_size_px=16"]
    arguments += ["data.train_images=256", "data.val_images=16", "model.kwargs.channels=[4,8,8,8]", "launch.gpus=0"]
    train = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent.parent / "train.py"), "-m", "seed=0,1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    run = folder / "oct_resnet_tiny-a0.25-s0"
    while not (run / "metrics.jsonl").exists() and train.poll() is None:
        time.sleep(0.05)
    return train, run


def test_ctrl_c_saves_the_run_and_stops_the_sweep(tmp_path: Path) -> None:
    train, run = start_and_wait(tmp_path, epochs=1000)
    os.killpg(train.pid, signal.SIGINT)
    said = train.communicate()[0]
    assert train.returncode == 130, said
    assert "Traceback" not in said
    assert read_summary(run)["status"] == "interrupted"
    assert (run / "checkpoints" / "last.pt").exists()
    assert not (tmp_path / "oct_resnet_tiny-a0.25-s1" / "summary.json").exists()


def test_a_killed_parent_does_not_leave_a_run_behind(tmp_path: Path) -> None:
    """The training process notices, saves and ends; until then the folder is taken."""
    train, run = start_and_wait(tmp_path, epochs=1000)
    train.kill()
    train.wait()
    while read_summary(run)["status"] == "running":
        time.sleep(0.05)
    assert read_summary(run)["status"] == "interrupted"
