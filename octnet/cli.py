"""train.py's command line: check the whole grid, let Hydra run it, report."""

import dataclasses
import inspect
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from octnet.checks import check_grid
from octnet.config import CONFIGS, GROUPS, Grid, check_overrides, compose_grid, composer, parse_flags, start
from octnet.options import Config, UserError
from octnet.run import FINISHED, read_summary, run_folder
from octnet.runconfig import shown

HERE = ("local", "basic")  # launchers that run everything in this process
WIDTH = 100  # columns of --help


def train(argv: list[str]) -> int:
    """Runs train.py's command; returns its exit code: 0 done, 1 a run failed, 2 a user's mistake, 130 interrupted."""
    try:
        flags = parse_flags(argv)
        if flags.shell_completion:
            return start(argv)
        if flags.help or flags.hydra_help or flags.cfg or flags.info:
            with composer() as app:
                check_overrides(flags.overrides, app)
            return start(argv)
        grid = compose_grid(flags.overrides, flags.multirun)
        check_launcher(grid)
        check_grid(grid.configs, grid.launcher in HERE)
        return run_grid(grid, flags.overrides)
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command continues", file=sys.stderr)
        return 130


def check_launcher(grid: Grid) -> None:
    """A cluster takes sweeps only, and is there. Raises UserError."""
    if grid.launcher not in HERE and not grid.multirun:
        raise UserError(f"hydra/launcher={grid.launcher}: only sweeps go there; add -m, also for a single run")
    if grid.launcher == "slurm" and shutil.which("sbatch") is None:
        raise UserError("hydra/launcher=slurm: there is no sbatch on this machine; start it where Slurm is")


def run_grid(grid: Grid, overrides: list[str]) -> int:
    """Runs what was checked through Hydra's launcher; after a sweep prints its table. Returns the exit code."""
    from octnet.launch import execute  # takes a second: not for --help and mistakes

    total, statuses = len(grid.configs), list[str]()

    def run(config: Config, index: int) -> str:
        if "interrupted" not in statuses:  # Ctrl-C stops the sweep, not just its run
            try:
                statuses.append(execute(config, index, total))
            except UserError as error:  # another process took the folder since it was checked
                print(f"train.py: {error}", file=sys.stderr)
                statuses.append("failed")
        return statuses[-1]

    common = _common_folder(grid.configs)
    if grid.launcher in HERE and grid.multirun:
        print(f"{total} runs, in {common}")
    if grid.launcher not in HERE:
        print(f"runs for the cluster: {total}; what their jobs print: {common / 'slurm'}")
        paths = [str(CONFIGS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # jobs import octnet wherever train.py was started
    quoted = str(common).replace("\\", "\\\\").replace("'", "\\'")
    code = start(["--multirun" if grid.multirun else "--run", f"hydra.sweep.dir='{quoted}'", *overrides], run)
    # a launcher may lose what a job returned, or the job: the runs' own records say how they ended
    ends = [_status(run_folder(config)) for config in grid.configs]
    if "interrupted" in (*statuses, *ends):
        return 130
    if grid.multirun:
        _report(list(dict.fromkeys(Path(config.output_dir) for config in grid.configs)), common)
    return 0 if code == 0 and all(end in FINISHED for end in (*statuses, *ends)) else 1


def _common_folder(configs: list[Config]) -> Path:
    """Where Hydra keeps its note of the sweep: output_dir, or what several have in common."""
    folders = [Path(config.output_dir).resolve() for config in configs]
    return next(p for p in (folders[0], *folders[0].parents) if all(folder.is_relative_to(p) for folder in folders))


def _status(folder: Path) -> str:
    """How a run ended, by its own record."""
    try:
        return str(read_summary(folder).get("status"))
    except UserError:
        return "failed"


def _report(output_dirs: list[Path], common: Path) -> None:
    """Draws the sweep's figure and prints its table; where several output_dirs are one sweep, in what they share."""
    from octnet.report import print_table, write_report  # matplotlib takes a second, too

    try:
        paths = write_report(output_dirs, None if len(output_dirs) == 1 else common)
        print_table(output_dirs)
    except UserError as error:  # the runs are what counts
        print(f"train.py: no report: {error}", file=sys.stderr)
        return
    for path in paths:
        print(path)


def groups_text() -> str:
    """For --help: each group and its files."""
    names = (*GROUPS, "hydra/launcher")
    files = {name: ", ".join(sorted(path.stem for path in (CONFIGS / name).glob("*.yaml"))) for name in names}
    return "\n".join(_entry(f"{name}=", text) for name, text in files.items())


def options_text(*, _root_: DictConfig) -> str:
    """For --help: each option with the value it has in the composed configuration, and its comment in options.py."""
    lines = []
    for field in dataclasses.fields(Config):
        value = getattr(Config(), field.name)
        if dataclasses.is_dataclass(value):
            comments = _comments(type(value))
            lines.append(
                "\n" + textwrap.fill(f"  {field.name}: {inspect.getdoc(type(value))}", WIDTH, subsequent_indent="  ")
            )
            keys = {f"{field.name}.{inner.name}": comments[inner.name] for inner in dataclasses.fields(value)}
        else:
            keys = {field.name: _comments(Config)[field.name]}
            lines.append("")
        for key, comment in keys.items():
            now: Any = OmegaConf.select(_root_, key)
            lines.append(_entry(f"{key}={shown(now)}", comment))
    return "\n".join(lines).replace("$", "$$")  # Hydra substitutes $NAMES in its help


def _entry(left: str, right: str) -> str:
    """A line of --help in two columns, folded."""
    start = f"  {left}".ljust(36)
    if len(start) > 36:
        start += "  "
    return textwrap.fill(right, WIDTH, initial_indent=start, subsequent_indent=" " * 36) if right else start.rstrip()


def _comments(options: type) -> dict[str, str]:
    """The end-of-line comments of a dataclass: what an option means is written once, where it is declared."""
    found = re.findall(r"^    (\w+): [^#\n]*(?:# (.*))?$", inspect.getsource(options), re.MULTILINE)
    return dict(found)


OmegaConf.register_new_resolver("octnet_groups", groups_text, replace=True)
OmegaConf.register_new_resolver("octnet_options", options_text, replace=True)
