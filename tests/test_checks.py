"""Which values and combinations of values a run may have."""

import pytest

from octnet.checks import CHOICES, RULES, check_grid, check_values
from octnet.options import Config, UserError
from octnet.runconfig import flatten, make_config, schema


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.alpha", 1.5, "between 0 and 1"),
        ("model.alpha", float("nan"), "between 0 and 1"),
        ("recipe.epochs", 0, "1 or more"),
        ("recipe.learning_rate", 0.0, "above 0"),
        ("recipe.learning_rate", float("inf"), "above 0"),
        ("recipe.label_smoothing", 1.0, "below 1"),
        ("recipe.ema_decay", 1.0, "both excluded"),
        ("recipe.precision", "bf16", "did you mean bfloat16?"),
        ("wandb.mode", "onlin", "did you mean online?"),
        ("data.reader", "imagenet", "one of shapes, folder, packed, cifar10"),
        ("data.std", [1.0, 0.0, 1.0], "three numbers above 0"),
        ("data.val_crop_ratio", 0.0, "above 0"),
        ("launch.processes", 0, "1 or more"),
        ("seed", -1, "between 0"),
        ("model.name", "resnet50", "write model.name=oct_resnet50, or model.alpha=0"),
        ("model.weights", "nowhere.pth", "no such file"),
        ("recipe.warmup_epochs", 9.0, "longer than recipe.epochs=8"),
        ("recipe.accumulation_steps", 3, "recipe.batch_size=128: must be a multiple of 3"),
        ("launch.processes", 6, "recipe.batch_size=128: must be a multiple of 6 (launch.processes=6 x"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_right(key: str, value: object, message: str) -> None:
    config = Config()
    section, _, name = key.rpartition(".")
    setattr(getattr(config, section) if section else config, name, value)
    with pytest.raises(UserError) as caught:
        check_values(config)
    assert message in str(caught.value)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_together() -> None:
    config = Config()
    config.recipe.mixup_alpha, config.recipe.batch_size = 0.2, 126
    config.recipe.accumulation_steps = 2
    with pytest.raises(UserError, match=r"recipe.batch_size=126: .* 63 images .* recipe.batch_size=128"):
        check_values(config)
    config.recipe.batch_size = 128
    check_values(config)
    config.launch.gpus, config.launch.processes = 2, 1
    with pytest.raises(UserError, match=r"launch.processes=1 with launch.gpus=2.*launch.processes=2"):
        check_values(config)
    config.launch.gpus, config.launch.processes = 0, 2
    check_values(config)


def test_every_rule_is_for_an_option_that_exists() -> None:
    assert set(RULES) | set(CHOICES) <= set(flatten(schema()))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"recipe.batch_size=8192: more than the 4096 training images"):
        check_grid([make_config({"recipe": {"batch_size": 8192}})])
