"""A run's configuration as values and as a file: checked against the dataclasses of options.py, without Hydra."""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octnet.options import Config, UserError

OPEN_KEY = "model.kwargs"  # the one dict that takes any key: timm's arguments
WHERE_IT_RUNS = ("launch.", "wandb.", "data.workers", "data.root", "output_dir")  # not part of what a run is
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list of numbers",
}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as {"recipe.epochs": 8, …}; the open dict stays whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        nested = isinstance(value, Mapping) and key != OPEN_KEY
        flat |= flatten(value, f"{key}.") if nested else {key: value}
    return flat


def schema() -> dict[str, Any]:
    """Every option with its default, as nested dicts."""
    return dataclasses.asdict(Config())


def nearest(word: str, right: Iterable[str]) -> str:
    """The most similar of `right`, for an error message; "" if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(right), 1)), "")


def check_key(key: str, groups: Iterable[str] = (), options: Mapping[str, Any] | None = None) -> None:
    """Refuses a key that isn't in `options` (schema()); the name of a group may have been meant. Raises UserError."""
    known = flatten(schema() if options is None else options)
    sections = {name.rpartition(".")[0] for name in known} - {""}
    if key in known or key in sections or key.startswith(f"{OPEN_KEY}."):
        return
    section, _, last = key.rpartition(".")
    places = [section] if section in sections else ["", *sections]  # `epochs` may mean `recipe.epochs`
    names = [name for name in known if name.rpartition(".")[0] in places]
    close = nearest(last, [*(name.rpartition(".")[2] for name in names), *groups])
    meant = [name for name in [*names, *groups] if close and name.rpartition(".")[2] == close]
    guess = " or ".join(dict.fromkeys(meant)) or ("" if section in sections else nearest(key, known))
    if guess:
        raise UserError(f"unknown key {key}: did you mean {guess}?")
    listed = ", ".join(names) if section in sections else "what --help lists"
    raise UserError(f"unknown key {key}: there is {listed}")


def make_config(values: Mapping[str, Any]) -> Config:
    """The Config of nested plain values, keys and types checked. Raises UserError naming the key and what is right."""
    given, known = flatten(values), flatten(schema())
    for key in [key for key in given if key not in known and not key.startswith(OPEN_KEY)]:
        check_key(key)
        inside = ", ".join(name for name in known if name.startswith(f"{key}."))  # a section with one value, `launch=8`
        raise UserError(f"{key}={shown(given[key])}: is not an option; there is {inside}")
    try:
        config = cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values)))
    except OmegaConfBaseException as error:
        key = (error.full_key or "").partition("[")[0]  # data.mean[0]: an item of data.mean
        if key not in known:
            raise UserError(" ".join(str(error).split())) from error
        raise UserError(f"{key}={shown(given[key])}: must be {kind(key)}") from error
    _fill_in(config)
    return config


def _fill_in(config: Config) -> None:
    """Puts the network's own preprocessing where the options ask for it, so that a run's record has the numbers."""
    data = config.data
    if data.val_interpolation == "network" or not data.mean or not data.std:
        from octnet.network import own_preprocessing  # here: it takes seconds, and most configurations don't need it

        own = own_preprocessing(config.model.name)
        data.mean, data.std = data.mean or own["mean"], data.std or own["std"]
        data.val_interpolation = own["interpolation"] if data.val_interpolation == "network" else data.val_interpolation


def shown(value: Any) -> str:
    """A value as a user writes it: null, true, 0.25."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def kind(key: str) -> str:
    """What an option takes, in words: "a whole number or null"."""
    section, _, name = key.rpartition(".")
    owner: Any = getattr(Config(), section) if section else Config()
    declared = str(get_type_hints(type(owner))[name])  # "<class 'int'>", "int | None", "list[float]"
    word = next((text for start, text in KINDS.items() if declared.removeprefix("<class '").startswith(start)), "")
    return (word or "names with values") + (" or null" if "None" in declared else "")


def save_config(config: Config, path: Path) -> None:
    """Writes every option, resolved, as YAML; whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    OmegaConf.save(OmegaConf.structured(config), part)
    os.replace(part, path)


def load_config(path: Path) -> Config:
    """Reads what save_config wrote. Raises UserError naming the file, and the key that is wrong."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # YAML's errors have no common base with OmegaConf's
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: is not a run's configuration")
    try:
        return make_config(cast(dict[str, Any], values))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def differing_keys(there: Config, here: Config) -> list[str]:
    """Each option in which two runs differ, as "recipe.epochs (8, now 3)"; where a run runs doesn't count."""
    old, new = flatten(dataclasses.asdict(there)), flatten(dataclasses.asdict(here))
    keys = [key for key in old if old[key] != new[key] and not key.startswith(WHERE_IT_RUNS)]
    return [f"{key} ({shown(old[key])}, now {shown(new[key])})" for key in keys]
