"""A run's configuration as a file, and the comparison of two."""

from pathlib import Path

import pytest

from octnet.options import Config, UserError
from octnet.runconfig import differing_keys, load_config, save_config


def test_a_saved_config_reads_back_equal(tmp_path: Path) -> None:
    config = Config(seed=3, output_dir="a b")
    config.model.kwargs = {"layers": [1, 2], "block_args": {"a": None}}
    config.recipe.weight_decay, config.recipe.ema_decay, config.data.root = 1e-7, 0.999, "None"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"], "no temporary file is left"
    assert "epochs: 8" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: {epoch: 3}", "unknown key recipe.epoch: did you mean recipe.epochs?"),
        ("recipe: {epochs: many}", "recipe.epochs=many: must be a whole number"),
        ("launch: 8", "launch=8: is not an option; there is launch.gpus, launch.processes"),
        ("recipe: [", "is not YAML"),
        ("- 1", "is not a run's configuration"),
        (None, "can't be read (No such file or directory)"),
    ],
)
def test_a_wrong_config_file_is_named_with_its_key(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_differing_keys_name_both_values_and_ignore_where_a_run_runs() -> None:
    old, new = Config(), Config()
    assert differing_keys(old, new) == []
    new.launch.gpus, new.wandb.mode, new.data.workers, new.data.root, new.output_dir = 8, "online", 4, "x", "y"
    assert differing_keys(old, new) == []
    new.recipe.epochs, new.model.kwargs, new.recipe.compile = 9, {"layers": [1]}, True
    assert differing_keys(old, new) == [
        "model.kwargs ({}, now {'layers': [1]})",
        "recipe.epochs (8, now 9)",
        "recipe.compile (false, now true)",
    ]
