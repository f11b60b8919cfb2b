"""What a configuration may say: every value and combination is checked for the whole grid before anything starts."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from octnet.checkpoint import matching_weights
from octnet.complexity import check_model
from octnet.data import READERS, check_data, count_train_images
from octnet.network import build_on_meta
from octnet.options import Config, UserError
from octnet.run import check_folder, run_folder
from octnet.runconfig import OPEN_KEY, differing_keys, flatten, nearest, shown

Rule = tuple[Callable[[Any], bool], str]  # is it right, and what is right, in words


def _between(low: float, high: float, words: str) -> Rule:
    return lambda value: low <= value <= high, words


def _at_least(low: float, words: str) -> Rule:
    return lambda value: low <= value < math.inf, words  # false for nan and inf


def _or_null(rule: Rule) -> Rule:
    return lambda value: value is None or rule[0](value), f"{rule[1]}, or null"


ONE_OR_MORE = _at_least(1, "1 or more")
NOT_NEGATIVE = _at_least(0, "0 or more")
ABOVE_0: Rule = (lambda value: 0 < value < math.inf, "above 0")
BELOW_1: Rule = (lambda value: 0 <= value < 1, "0 or more and below 1")
RULES: dict[str, Rule] = {
    "model.alpha": _between(0, 1, "between 0 and 1"),
    "data.train_images": ONE_OR_MORE,
    "data.val_images": ONE_OR_MORE,
    "data.num_classes": _or_null(_at_least(2, "2 or more")),
    "data.image_size_px": ONE_OR_MORE,
    "data.color_jitter": _between(0, 1, "between 0 and 1"),
    "data.pca_noise": NOT_NEGATIVE,
    "data.val_crop_ratio": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "data.mean": (lambda value: len(value) == 3 and all(map(math.isfinite, value)), "three numbers: red, green, blue"),
    "data.std": (lambda value: len(value) == 3 and all(0 < v < math.inf for v in value), "three numbers above 0"),
    "data.workers": NOT_NEGATIVE,
    "recipe.epochs": ONE_OR_MORE,
    "recipe.batch_size": ONE_OR_MORE,
    "recipe.accumulation_steps": ONE_OR_MORE,
    "recipe.learning_rate": ABOVE_0,
    "recipe.warmup_epochs": NOT_NEGATIVE,
    "recipe.momentum": BELOW_1,
    "recipe.weight_decay": NOT_NEGATIVE,
    "recipe.label_smoothing": BELOW_1,
    "recipe.mixup_alpha": NOT_NEGATIVE,
    "recipe.ema_decay": _or_null((lambda value: 0 < value < 1, "between 0 and 1, both excluded")),
    "launch.gpus": _or_null(NOT_NEGATIVE),
    "launch.processes": _or_null(ONE_OR_MORE),
    "seed": _between(0, 2**32 - 1, "between 0 and 4294967295"),
    "output_dir": (bool, "a folder"),
}
CHOICES = {
    "data.reader": READERS,
    "data.val_resize": ("antialiased", "opencv"),
    "data.val_interpolation": ("bilinear", "bicubic"),
    "data.train_crop": ("none", "pad", "resized"),
    "recipe.precision": ("float32", "bfloat16", "float16"),
    "wandb.mode": ("disabled", "offline", "online"),
}


def check_values(config: Config) -> None:
    """Every value in its range, and the values together. Raises UserError naming key, value and what is right."""
    values = flatten(asdict(config))
    for key, (is_right, words) in RULES.items():
        if not is_right(values[key]):
            raise UserError(f"{key}={shown(values[key])}: must be {words}")
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            guess = nearest(values[key], choices)
            hint = f" (did you mean {guess}?)" if guess else ""
            raise UserError(f"{key}={values[key]}: must be one of {', '.join(choices)}{hint}")
    model = config.model
    if model.alpha != 0 and not model.name.startswith("oct_"):
        right = f"write model.name=oct_{model.name}, or model.alpha=0"
        raise UserError(f"model.alpha={model.alpha}: model.name={model.name} has no octave layers; {right}")
    if model.weights is not None and not Path(model.weights).is_file():
        raise UserError(f"model.weights={model.weights}: there is no such file")
    _check_batch(config)


def _check_batch(config: Config) -> None:
    """Warm-up, processes and the division of the batch. Raises UserError."""
    recipe, launch = config.recipe, config.launch
    if recipe.warmup_epochs > recipe.epochs:
        raise UserError(f"recipe.warmup_epochs={recipe.warmup_epochs}: longer than recipe.epochs={recipe.epochs}")
    gpus = launch.gpus if launch.gpus is not None else 0
    if gpus > 0 and launch.processes not in (None, gpus):
        right = f"on GPUs there is one process for each: leave it out, or launch.processes={gpus}"
        raise UserError(f"launch.processes={launch.processes} with launch.gpus={gpus}: {right}")
    processes = launch.processes if launch.processes is not None else max(gpus, 1)
    parts = processes * recipe.accumulation_steps
    size, each = recipe.batch_size, recipe.batch_size / parts
    if not each.is_integer():
        why = f"launch.processes={processes} x recipe.accumulation_steps={recipe.accumulation_steps}"
        raise UserError(f"recipe.batch_size={size}: must be a multiple of {parts} ({why})")
    if recipe.mixup_alpha > 0 and each % 2 != 0:
        right = f"mixup needs an even number, as with recipe.batch_size={2 * parts * math.ceil(each / 2)}"
        raise UserError(f"recipe.batch_size={size}: is {each:.0f} images a pass of each process; {right}")


def check_gpus(config: Config, local: bool) -> None:
    """The GPUs asked for are there, or, on a cluster, their number is given. Raises UserError."""
    gpus = config.launch.gpus
    if not local and gpus is None:
        raise UserError("launch.gpus=null: with hydra/launcher=slurm, say how many GPUs a run asks for (0: none)")
    found = torch.cuda.device_count()
    if local and gpus is not None and gpus > found:
        raise UserError(f"launch.gpus={gpus}: this machine has {found}")


def check_grid(configs: list[Config], local: bool = True) -> None:
    """Everything that could stop one of the runs, before the first starts. Raises UserError for the first mistake."""
    for config in configs:
        check_values(config)
        check_gpus(config, local)
    folders: dict[Path, Config] = {}
    for config in configs:
        folder = run_folder(config)
        if folder in folders:
            raise UserError(_same_folder(folder, folders[folder], config))
        folders[folder] = config
    classes, images = dict[str, int](), dict[str, int]()  # of each data set, read once
    models = set()
    for config in configs:
        data, model = config.data, config.model
        data_id = json.dumps(asdict(data))
        if data_id not in classes:
            classes[data_id], images[data_id] = check_data(data), count_train_images(data)
        if config.recipe.batch_size > images[data_id]:
            raise UserError(
                f"recipe.batch_size={config.recipe.batch_size}: more than the {images[data_id]} training images"
            )
        model_id = json.dumps([asdict(model), classes[data_id], data.image_size_px], default=str)
        if model_id not in models:
            arguments = (model.name, model.alpha, model.kwargs, classes[data_id])
            check_model(*arguments, data.image_size_px)
            if model.weights is not None:
                matching_weights(build_on_meta(*arguments), Path(model.weights))
            models.add(model_id)
    for config in configs:
        check_folder(config)


def _same_folder(folder: Path, first: Config, second: Config) -> str:
    """Why two runs of a sweep have one folder, and how to separate them."""
    differing = differing_keys(first, second)
    if not differing:
        return f"two runs of the sweep are the same: {folder}; give each value once"
    key = differing[0].partition(" ")[0]
    if key == OPEN_KEY:
        old, new = first.model.kwargs, second.model.kwargs
        key += "." + next(name for name in {**old, **new} if old.get(name) != new.get(name))
    example = f"output_dir='{first.output_dir}/{key.rpartition('.')[2]}${{{key}}}'"
    return f"two runs of the sweep have the same folder, {folder}: {key} isn't in its name; put it there: {example}"
