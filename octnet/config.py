"""The only module that knows Hydra: command line and configs/ become Configs, all of a sweep's before its first run."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # PyYAML ships no types

from octnet.options import Config, UserError
from octnet.runconfig import OPEN_KEY, check_key, flatten, make_config, nearest, schema

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GROUPS = ("model", "data", "recipe", "experiment")
FIXED_FLAGS = ("config_path", "config_name", "config_dir", "experimental_rerun")
VERSION_BASE = "1.3"


@dataclass
class Grid:
    """The runs that a command line means, and how they are started."""

    configs: list[Config]
    multirun: bool
    launcher: str  # configs/hydra/launcher


def _store(base: Mapping[str, Any] | None = None) -> None:
    """Puts every option, with its default or `base`'s value, where configs/train.yaml finds it (`octnet`)."""
    node = OmegaConf.create(dict(schema() if base is None else base))
    OmegaConf.set_struct(cast(DictConfig, OmegaConf.select(node, OPEN_KEY)), False)  # takes new keys without a `+`
    ConfigStore.instance().store(name="octnet", node=node)


@contextmanager
def composer(base: Mapping[str, Any] | None = None) -> Iterator[Hydra]:
    """Hydra on configs/ and the defaults, or `base`'s values; what it finds wrong leaves as a UserError of one line."""
    _store(base)
    try:
        with hydra.initialize_config_dir(str(CONFIGS), job_name="octnet", version_base=VERSION_BASE):
            yield cast(Hydra, GlobalHydra.instance().hydra)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(_one_line(error)) from error


def _one_line(error: BaseException) -> str:
    """The gist of Hydra's several lines."""
    if isinstance(error, YAMLError):
        return f"configs: not YAML ({' '.join(str(error).split())})"
    parts = [str(part).splitlines()[0] for part in (error, error.__cause__) if part is not None and str(part)]
    key = getattr(error, "full_key", None)
    return (f"{key}: " if key else "") + " ".join(dict.fromkeys(parts))


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Hydra's flags, and all other arguments as `overrides`. Raises UserError for an unknown flag."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        flags, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    for text in rest:  # key=value after a flag, too
        if text.startswith("-"):
            known = [name for action in parser._actions for name in action.option_strings]
            guess = nearest(text, known)
            raise UserError(f"{text}: no such flag" + (f"; did you mean {guess}?" if guess else "; see --help"))
        flags.overrides.append(text)
    for name in [name for name in FIXED_FLAGS if getattr(flags, name) is not None]:
        right = "put files into configs/, or give hydra.searchpath=[file:///folder]"
        raise UserError(f"--{name.replace('_', '-')}: not for octnet; {right}")
    return flags


def check_overrides(
    texts: Sequence[str], app: Hydra, config_name: str = "train", options: Mapping[str, Any] | None = None
) -> list[Override]:
    """Parses key=value arguments, checking their form, keys (of `options`, or Config) and files. Raises UserError."""
    loader = cast(ConfigLoaderImpl, app.config_loader)
    parser = OverridesParser.create(config_loader=loader)
    overrides = []
    for text in texts:
        try:
            overrides += parser.parse_overrides([text])
        except HydraException as error:
            raise UserError(
                f"{text}: not understood; write key=value, and quote special characters: key='…'"
            ) from error
    for text, override in zip(texts, overrides, strict=True):
        key, is_open = override.key_or_group, override.key_or_group.startswith(OPEN_KEY)
        if not override.is_delete() and override.value() == "":
            raise UserError(f"{text}: a value is missing (for none at all: null)")
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{text}: give the values themselves, separated by commas")
        if key.startswith("hydra.sweeper.params"):
            raise UserError(f"{text}: give the values themselves, as -m seed=0,1")
        files = loader.get_group_options(key, config_name=config_name, overrides=list(texts))
        if files:
            _check_file(override, files)
        elif not override.is_hydra_override():
            for inner in flatten({key: override.value()}):  # launch={gpus:8}, too
                check_key(inner, [group for group in loader.list_groups("") if group != "hydra"], options)
            if override.is_delete() and not is_open:
                raise UserError(f"{text}: an option can't be removed; give it a value, {key}=…")
            if override.is_add() and not is_open:
                raise UserError(f"{text}: {key} is there already; write {text.removeprefix('+')}")
    return overrides


def _check_file(override: Override, files: list[str]) -> None:
    """A group's value names one of its files. Raises UserError with the nearest."""
    group = override.key_or_group
    if group == "experiment" and override.is_sweep_override():
        raise UserError(f"{override.input_line}: one experiment a command")
    names = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(override.value())]
    for name in names:
        if name not in (*files, "None", "null"):
            close = nearest(name, files)
            hint = f"did you mean {close}?" if close else f"there are {', '.join(files)}"
            other = f" (a timm network without a file: model.name={name})" if group == "model" else ""
            raise UserError(f"{group}={name}: there is no configs/{group}/{name}.yaml; {hint}{other}")


def to_config(composed: DictConfig) -> Config:
    """A composed configuration as a Config, interpolations resolved, keys and types checked. Raises UserError."""
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    return make_config(cast(dict[str, Any], OmegaConf.to_container(own, resolve=True)))


def compose_values(base: Mapping[str, Any], texts: Sequence[str], config_name: str) -> dict[str, Any]:
    """`base` with the primary config's files and the command line's on top, as nested values. Raises UserError."""
    with composer(base) as app:
        check_overrides(texts, app, config_name, base)
        composed = hydra.compose(config_name, list(texts))
        return cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))


def compose_grid(texts: Sequence[str], multirun: bool) -> Grid:
    """Every run that `train.py <texts>` means, as Hydra will start them. Raises UserError."""
    with composer() as app:
        overrides = check_overrides(texts, app)
        master = app.compose_config("train", list(texts), RunMode.MULTIRUN, with_log_configuration=False)
        sweeper = master.hydra.sweeper
        if not str(sweeper._target_).endswith(".BasicSweeper"):
            raise UserError("hydra/sweeper: must be basic")
        multirun = multirun or master.hydra.mode == RunMode.MULTIRUN
        swept = [str(override.input_line) for override in overrides if override.is_sweep_override()]
        params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        if not multirun and (swept or params):
            raise UserError(f"{' '.join(swept or params)}: several values need -m: train.py -m {shlex.join(texts)}")
        own = [str(override.input_line) for override in overrides if not override.is_hydra_override()]
        jobs = BasicSweeper.split_arguments(check_overrides([*params, *own], app), None)[0] if multirun else [own]
        configs = []
        for job in jobs:
            composed = app.config_loader.load_sweep_config(master, list(job))
            HydraConfig.instance().set_config(composed)  # for ${hydra:…}
            configs.append(to_config(composed))
        return Grid(configs, multirun, master.hydra.runtime.choices["hydra/launcher"])


def start(arguments: Sequence[str], run: Callable[[Config, int], str] | None = None) -> int:
    """Hydra's own main: calls `run(config, index)` for each run, or shows what flags ask for. Returns its exit code."""

    def job(composed: DictConfig) -> str:
        assert run is not None
        number = HydraConfig.get().job
        return run(to_config(composed), 0 if OmegaConf.is_missing(number, "num") else int(number.num))

    _store()
    main = hydra.main(version_base=VERSION_BASE, config_path=str(CONFIGS), config_name="train")(job)
    argv, sys.argv = sys.argv, [sys.argv[0], *arguments]  # where Hydra's main reads
    try:
        main()
    except ValueError as error:  # two of Hydra's flags that exclude each other
        raise UserError(_one_line(error)) from error
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
    return 0
