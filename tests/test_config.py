"""The shipped configuration files, and what is composed of them and a command line."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
from omegaconf import OmegaConf

import octnet.config
from octnet.checks import check_values
from octnet.config import CONFIGS, GROUPS, compose_grid, compose_values
from octnet.options import Config, UserError
from octnet.runconfig import make_config, schema

FILES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for group in GROUPS
    for path in (CONFIGS / group).glob("*.yaml")
)


@pytest.mark.parametrize("file", FILES)
def test_every_shipped_file_composes_to_legal_runs(file: str) -> None:
    group, name = file.split("/")
    one = ["model.alpha=0.5", "seed=0"]  # of an experiment's runs
    grid = compose_grid([f"{group}={name}", *one], multirun=group == "experiment")
    for config in grid.configs:
        check_values(config)
    given = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{file}.yaml"))
    assert isinstance(given, dict)
    if group != "experiment":
        composed = asdict(grid.configs[0])[group]
        assert {key: composed[key] for key in given} == given, "the file's values reach the run, and all are declared"
    if group == "model":
        assert given["name"] == name
        assert timm.is_model(name)
    if group == "data":  # so that data=… replaces all of another data set's preparation
        unsaid = {"train_images", "val_images"}
        assert set(given) >= set(schema()["data"]) - unsaid


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("recipe/")])
def test_a_recipe_opens_with_source_command_cost_and_expectation(file: str) -> None:
    comment = (CONFIGS / f"{file}.yaml").read_text().partition("\nepochs")[0]
    assert all(word in comment for word in ("Source:", "Command: python train.py", "Cost:", "Expect:"))


def test_the_papers_recipe_and_augmentation() -> None:
    texts = ["model=oct_resnet50", "data=imagenet", "data.root=x", "recipe=paper"]
    config = compose_grid(texts, multirun=False).configs[0]
    recipe, data = config.recipe, config.data
    # stated by the authors' README and training script
    assert (recipe.learning_rate, recipe.warmup_epochs, recipe.momentum, recipe.weight_decay) == (0.4, 5, 0.9, 1e-4)
    assert recipe.decay_vectors
    assert recipe.label_smoothing == 0
    assert recipe.mixup_alpha == 0
    assert (data.color_jitter, data.pca_noise, data.train_crop, data.horizontal_flip) == (0.4, 0.1, "resized", True)
    assert (data.image_size_px, round(data.image_size_px / data.val_crop_ratio), data.num_classes) == (224, 256, 1000)
    assert config.output_dir == "runs/imagenet"


def test_the_ablation_is_five_alphas_by_two_seeds() -> None:
    configs = compose_grid(["experiment=ablation"], multirun=True).configs
    found = [(config.model.alpha, config.seed) for config in configs]
    assert found == [(alpha, seed) for alpha in (0, 0.125, 0.25, 0.5, 0.75) for seed in (0, 1)]
    assert {config.output_dir for config in configs} == {"runs/ablation"}
    one = compose_grid(["experiment=ablation", "model.alpha=0.5", "recipe.epochs=1"], multirun=True).configs
    assert [(c.model.alpha, c.seed, c.recipe.epochs) for c in one] == [(0.5, 0, 1), (0.5, 1, 1)], "the command wins"


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_model_kwargs_take_any_argument(prefix: str) -> None:
    texts = [f"{prefix}model.kwargs.layers=[1,1,1,1]", "model.name=resnet50", "model.alpha=0"]
    model = compose_grid(texts, multirun=False).configs[0].model
    assert model.kwargs == {"layers": [1, 1, 1, 1]}
    assert model.name == "resnet50"


def test_the_slurm_launcher_composes_with_the_runs_gpus() -> None:
    with octnet.config.composer() as app:
        texts = ["hydra/launcher=slurm", "launch.gpus=4", "hydra.launcher.partition=p", "output_dir=o"]
        launcher = app.compose_config("train", texts, octnet.config.RunMode.MULTIRUN).hydra.launcher
        assert (launcher.gpus_per_node, launcher.partition, launcher.nodes) == (4, "p", 1)
        assert launcher._target_.endswith(".SlurmLauncher")
        assert launcher.submitit_folder == "o/slurm/%j"


def test_an_evaluation_starts_from_a_runs_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    groups = "".join(f"  - {group}: null\n" for group in ("model", "data", "recipe"))
    (configs / "eval.yaml").write_text(f"defaults:\n  - octnet\n{groups}")
    monkeypatch.setattr(octnet.config, "CONFIGS", configs)
    run = Config(seed=7)
    run.model.kwargs, run.data.image_size_px = {"layers": [1, 1]}, 48
    base = {**asdict(run), "checkpoint": None}
    texts = ["data=cifar10", "data.workers=1", "model.alpha=0.5", "checkpoint=x"]
    values = compose_values(base, texts, "eval")
    assert values.pop("checkpoint") == "x"
    config = make_config(values)
    assert (config.seed, config.model.kwargs, config.model.alpha) == (7, {"layers": [1, 1]}, 0.5)
    assert (config.data.reader, config.data.image_size_px, config.data.workers) == ("cifar10", 32, 1)
    with pytest.raises(UserError, match=r"chekpoint.*did you mean checkpoint\?"):
        compose_values(base, ["chekpoint=x"], "eval")
