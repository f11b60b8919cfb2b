"""train.py as its users meet it: mistakes, what is started, exit codes, help."""

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octnet.cli import train
from octnet.complexity import check_model
from octnet.config import compose_grid
from octnet.options import Config, UserError
from octnet.run import run_folder
from octnet.runconfig import save_config

ROOT = Path(__file__).resolve().parent.parent


class World:
    """What stands in for data, networks and training: records what was started, and ends runs as told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int, int]] = []
        self.checked: list[tuple[Any, ...]] = []
        self.reported: list[Path] = []
        self.ends: dict[str, str] = {}  # by folder name; "done" otherwise

    def execute(self, config: Config, index: int, total: int) -> str:
        folder = run_folder(config)
        self.started.append((folder.name, index, total))
        status = self.ends.get(folder.name, "done")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps({"status": status}))
        return status

    def check_model(self, name: str, alpha: float, *rest: Any) -> None:
        self.checked.append((name, alpha, *rest))
        if alpha == 1:
            raise UserError("model.alpha=1: this network has no octave form at 1")

    def check_data(self, data: Any) -> int:
        if data.reader == "folder" and not Path(str(data.root)).is_dir():
            raise UserError(f"data.root={data.root}: there is no such folder")
        return 16

    def write_report(self, output_dirs: list[Path], destination: Path | None) -> list[Path]:
        self.reported += output_dirs
        return [(destination or output_dirs[0]) / "figure.png"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    world = World()
    parts: dict[str, dict[str, Callable[..., Any]]] = {
        "octnet.launch": {"execute": world.execute},
        "octnet.report": {"write_report": world.write_report, "print_table": lambda output_dirs: print("| table |")},
    }
    for name, functions in parts.items():
        module = types.ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("octnet.checks.check_model", world.check_model)
    monkeypatch.setattr("octnet.checks.check_data", world.check_data)
    monkeypatch.setattr("octnet.checks.count_train_images", lambda data: 1_281_167)
    monkeypatch.setattr("shutil.which", lambda name: None)  # also on a cluster
    monkeypatch.chdir(tmp_path)
    return world


MISTAKES = [
    ("recipe.epoch=3", "unknown key recipe.epoch: did you mean recipe.epochs?"),
    ("+recipe.epoch=3", "unknown key recipe.epoch: did you mean recipe.epochs?"),
    ("++recipe.epoch=3", "unknown key recipe.epoch: did you mean recipe.epochs?"),
    ("-m +model.alhpa=0,0.5", "unknown key model.alhpa: did you mean model.alpha?"),
    ("alpha=0", "unknown key alpha: did you mean model.alpha?"),
    ("recipes=paper", "unknown key recipes: did you mean recipe?"),
    ("recipe.lr=1", "unknown key recipe.lr: there is recipe.epochs, recipe.batch_size"),
    ("launch={gpu:1}", "unknown key launch.gpu: did you mean launch.gpus?"),
    ("model=oct_resnet5O", "there is no configs/model/oct_resnet5O.yaml; did you mean oct_resnet50?"),
    ("-m model=oct_resnet26,resnet26", "model=resnet26: there is no configs/model/resnet26.yaml"),
    ("experiment=ablatoin", "did you mean ablation?"),
    ("hydra/launcher=slrum", "did you mean slurm?"),
    ("hydra.launcher.partitionn=x", "hydra.launcher.partitionn"),
    ("recipe.epochs=abc", "recipe.epochs=abc: must be a whole number"),
    ("recipe.epochs=null", "recipe.epochs=null: must be a whole number"),
    ("data.mean=[a,b,c]", "data.mean=['a', 'b', 'c']: must be a list of numbers"),
    ("-m seed=0,1 model.alpha=0,7", "model.alpha=7.0: must be between 0 and 1"),
    ("model.alpha=0,0.25", "model.alpha=0,0.25: several values need -m: train.py -m model.alpha=0,0.25"),
    ("experiment=ablation", "need -m: train.py -m experiment=ablation"),
    ("model.alpha=", "model.alpha=: a value is missing"),
    ("foo", "foo: not understood; write key=value"),
    ("data.root='", "data.root=': not understood"),
    ("~model.alpha", "can't be removed"),
    ("+seed=3", "write seed=3"),
    ("-m seed=interval(0,1)", "separated by commas"),
    ("-m seed=0,0", "two runs of the sweep are the same: runs/shapes/oct_resnet_tiny-a0.25-s0"),
    ("-m recipe.learning_rate=.1,.2", "output_dir='runs/shapes/learning_rate${recipe.learning_rate}'"),
    ("-m model.kwargs.drop_rate=0,.2", "output_dir='runs/shapes/drop_rate${model.kwargs.drop_rate}'"),
    ("output_dir=runs/${recipe.lr}", "output_dir: Interpolation key 'recipe.lr' not found"),
    ("launch.gpus=32", "launch.gpus=32: this machine has "),
    ("-m hydra/launcher=submitit_local", "launch.gpus=null: with hydra/launcher=slurm, say how many"),
    ("hydra/launcher=slurm launch.gpus=1", "hydra/launcher=slurm: only sweeps go there; add -m"),
    ("-m hydra/launcher=slurm launch.gpus=1", "there is no sbatch on this machine"),
    ("-m model.alpha=0,1", "model.alpha=1: this network has no octave form at 1"),
    ("data=imagenet data.root=nowhere", "data.root=nowhere: there is no such folder"),
    ("--mutlirun", "--mutlirun: no such flag; did you mean --multirun?"),
    ("--cfg jbo", "invalid choice: 'jbo'"),
    ("--cfg job recipe.epoch=3", "unknown key recipe.epoch: did you mean recipe.epochs?"),
    ("--config-dir=x", "hydra.searchpath"),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES)
def test_a_mistake_is_one_line_before_anything_starts(
    command: str, message: str, world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train(command.split()) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("train.py: ")
    assert out == ""
    assert not world.started
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_a_file_is_named(world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("epochs: 3\nwarmup: 1\n")
    assert train([f"hydra.searchpath=[file://{tmp_path}]", "recipe=mine"]) == 2
    assert "unknown key recipe.warmup: did you mean recipe.warmup_epochs?" in capsys.readouterr().err
    (tmp_path / "recipe" / "mine.yaml").write_text("epochs: [3\n")
    assert train([f"hydra.searchpath=[file://{tmp_path}]", "recipe=mine"]) == 2
    err = capsys.readouterr().err
    assert "mine.yaml" in err
    assert err.count("\n") == 1


def test_another_config_in_a_folder_stops_the_whole_sweep(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = compose_grid(["seed=1"], multirun=False).configs[0]
    other.recipe.epochs = 33
    folder = tmp_path / "runs/shapes/oct_resnet_tiny-a0.25-s1"
    folder.mkdir(parents=True)
    save_config(other, folder / "config.yaml")
    assert train(["-m", "seed=0,1"]) == 2
    assert ": recipe.epochs (33, now 3); give them" in capsys.readouterr().err
    assert not world.started


def test_one_run(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["model.alpha=0.5", "seed=3"]) == 0
    assert world.started == [("oct_resnet_tiny-a0.5-s3", 0, 1)]
    assert not world.reported
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("[!.]*") if path.is_file())
    assert files == ["runs/shapes/oct_resnet_tiny-a0.5-s3/summary.json"], "nothing of Hydra's"
    assert capsys.readouterr().err == ""


def test_a_sweep_runs_every_combination_and_reports(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["model.alpha=0,0.25", "-m", "seed=range(0,2)", "output_dir=here"]) == 0
    names = [f"oct_resnet_tiny-a{alpha}-s{seed}" for alpha in ("0", "0.25") for seed in (0, 1)]
    assert world.started == [(name, index, 4) for index, name in enumerate(names)]
    assert world.reported == [Path("here")]
    assert capsys.readouterr().out.splitlines() == [
        f"4 runs, in {Path('here').resolve()}",
        "| table |",
        "here/figure.png",
    ]
    assert [call[:2] for call in world.checked] == [("oct_resnet_tiny", 0), ("oct_resnet_tiny", 0.25)], "once each"


def test_a_sweep_over_folders_is_noted_and_drawn_in_what_they_share(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(["-m", "recipe.learning_rate=.1,.2", "output_dir=it's/lr${recipe.learning_rate}"]) == 2
    assert train(["-m", "recipe.learning_rate=.1,.2", "output_dir='it\\'s/lr${recipe.learning_rate}'"]) == 0
    assert world.reported == [Path("it's/lr0.1"), Path("it's/lr0.2")]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "it's" / "figure.png")
    assert sorted(path.name for path in (tmp_path / "it's").iterdir()) == ["lr0.1", "lr0.2", "multirun.yaml"]


@pytest.mark.parametrize(
    ("ends", "code", "started"),
    [
        ({"oct_resnet_tiny-a0.25-s1": "diverged"}, 0, 2),
        ({"oct_resnet_tiny-a0.25-s0": "failed"}, 1, 2),
        ({"oct_resnet_tiny-a0.25-s0": "interrupted"}, 130, 1),
    ],
)
def test_exit_codes_of_a_sweep(ends: dict[str, str], code: int, started: int, world: World) -> None:
    world.ends = ends
    assert train(["-m", "seed=0,1"]) == code
    assert len(world.started) == started, "Ctrl-C stops the sweep; a failure doesn't"
    assert bool(world.reported) == (code != 130)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "-m model=oct_resnext50_32x4d data.image_size_px=224 model.alpha=0,0.125",
            ["0.125", "112", "32 groups"],
        ),
        ("data.image_size_px=30", ["data.image_size_px=30", "24 and 32"]),
        ("model.name=oct_resnet5O", ["model.name=oct_resnet5O", "oct_resnet50"]),
        ("model.kwargs.layer=[1,1]", ["model.kwargs", "layer"]),
    ],
)
def test_a_network_that_cannot_be_is_refused(
    command: str, words: list[str], world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("octnet.checks.check_model", check_model)  # the real one
    assert train(command.split()) == 2
    assert not world.started
    err = capsys.readouterr().err
    assert all(word in err for word in words)
    assert err.count("\n") == 1


def test_a_folder_taken_meanwhile_fails_its_run_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(config: Config, index: int, total: int) -> str:
        if config.seed == 0:
            raise UserError("in use")
        return world.execute(config, index, total)

    monkeypatch.setattr(sys.modules["octnet.launch"], "execute", execute)
    assert train(["-m", "seed=0,1"]) == 1
    assert [name for name, *_ in world.started] == ["oct_resnet_tiny-a0.25-s1"]


def test_exit_code_of_a_run_whose_record_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["octnet.launch"], "execute", lambda *args: "done")
    assert train([]) == 1


def test_ctrl_c_outside_a_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(data: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("octnet.checks.check_data", interrupt)
    assert train([]) == 130


def test_help_names_every_option_with_its_value_and_fits_a_terminal(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    from octnet.runconfig import flatten, schema

    assert train(["--help", "recipe=paper"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {key}=" in text for key in flatten(schema()))
    assert "recipe.epochs=120" in text
    assert "images a step" in text
    assert "experiment=ablation" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_program_itself(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "-m", "seed=0,1", "recipe.epoch=3"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "train.py: unknown key recipe.epoch: did you mean recipe.epochs?\n"
