"""eval.py's command line on a real, small run."""

from pathlib import Path

import pytest

from octnet.evaluation import Target, compose, main
from octnet.run import read_summary, run_folder
from octnet.runconfig import save_config
from tests.small import small_config
from tests.test_engine import run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, and one that has no result yet."""
    folder = tmp_path_factory.mktemp("sweep")
    for alpha in (0.0, 0.5, 0.75):
        config = small_config(folder, epochs=1)
        config.model.alpha = alpha
        run_folder(config).mkdir()
        save_config(config, run_folder(config) / "config.yaml")
        if alpha < 0.75:
            run(config, run_folder(config))
    return folder


def table(text: str) -> list[list[str]]:
    """Rows of the printed table without the headers."""
    return [line.split() for line in text.splitlines() if line.strip()][1:]


def test_each_finished_run_of_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"checkpoint={sweep}", "launch.gpus=0"]) == 0
    out, err = capsys.readouterr()
    assert [row[:5] for row in table(out)] == [
        ["oct_resnet_tiny-a0-s0", "0.0", "shapes", "16", "48"],
        ["oct_resnet_tiny-a0.5-s0", "0.5", "shapes", "16", "48"],
    ]
    assert "oct_resnet_tiny-a0.75-s0 has no weights.safetensors yet" in err


def test_a_run_its_files_and_the_command_line_on_top(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep / "oct_resnet_tiny-a0.5-s0"
    results = []
    for target in (folder, folder / "weights.safetensors", folder / "checkpoints" / "last.pt"):
        assert main([f"checkpoint={target}", "launch.gpus=0"]) == 0
        results.append(table(capsys.readouterr().out)[0][1:])
    assert results[0] == results[1] == results[2]
    assert main([f"checkpoint={folder}", "launch.gpus=0", "data.image_size_px=32", "data.val_images=20"]) == 0
    out, err = capsys.readouterr()
    assert table(out)[0][3:5] == ["32", "20"]
    assert err == ""
    assert main([f"checkpoint={folder}", "launch.gpus=0", "model.alpha=0.25"]) == 0
    out, err = capsys.readouterr()
    assert table(out)[0][1] == "0.25"
    assert "warning" in err
    assert "another network" in err


def test_weights_without_a_run(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "weights.safetensors"
    alone.write_bytes((sweep / "oct_resnet_tiny-a0.5-s0" / "weights.safetensors").read_bytes())
    kwargs = "model.kwargs.channels=[4,8,8,8]"
    given = ["model=oct_resnet_tiny", "model.alpha=0.5", kwargs, "data.image_size_px=16", "data.val_images=48"]
    assert main([f"checkpoint={alone}", "launch.gpus=0", *given]) == 0
    top1 = table(capsys.readouterr().out)[0][6]
    assert main([f"checkpoint={sweep / 'oct_resnet_tiny-a0.5-s0'}", "launch.gpus=0"]) == 0
    assert table(capsys.readouterr().out)[0][6] == top1
    assert main([f"checkpoint={alone}", "launch.gpus=0"]) == 2
    assert "give model.name=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpont=x"], "unknown key checkpont: did you mean checkpoint?"),
        (["checkpoint=nowhere"], "checkpoint=nowhere: there is no such file or folder"),
        (["checkpoint={run}", "data.image_size=16"], "did you mean data.image_size_px?"),
        (["checkpoint={run}", "data.image_size_px=20"], "the nearest sizes that fit are 16 and 24"),
        (["checkpoint={run}", "data=imagefolder", "data.root=nowhere"], "data.root=nowhere: no such folder"),
        (["checkpoint={run}", "model.kwargs.channels=[4,4,4,4]"], "weights.safetensors: of another network"),
        (["checkpoint={run}", "launch.processes=2"], "eval.py uses one process"),
        (["checkpoint={unfinished}"], "has saved no weights yet"),
        (["checkpoint={run}", "model.alpha=0,0.5"], "one value a key"),
        (["-m", "checkpoint={run}"], "key=value and --help only"),
        (["checkpoint={run}", "eval=autors"], "there is no configs/eval/autors.yaml; did you mean authors?"),
    ],
)
def test_mistakes_are_one_line(
    sweep: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    folders = {"run": sweep / "oct_resnet_tiny-a0.5-s0", "unfinished": sweep / "oct_resnet_tiny-a0.75-s0"}
    assert main([text.format(**folders) for text in arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "mean", "std", "interpolation"),
    [
        ("oct_paper_resnet50", (124, 117, 104), 3 * (1 / 0.0167,), "bicubic"),
        ("paper_densenet121", (124, 117, 104), 3 * (1 / 0.0167,), "bicubic"),
        ("oct_paper_mobilenetv1_100", (123.68, 116.779, 103.939), (58.393, 57.12, 57.375), "bilinear"),
        ("oct_paper_resnet152e_se", (123.68, 116.779, 103.939), (58.393, 57.12, 57.375), "bilinear"),
    ],
)
def test_the_authors_protocol(
    name: str, mean: tuple[float, ...], std: tuple[float, ...], interpolation: str, tmp_path: Path
) -> None:
    """Their score.py: normalisation and interpolation of the network's family; the ordinary protocol is the default."""
    target = Target("weights", tmp_path / "weights.safetensors", None)
    alpha = 0.25 if name.startswith("oct_") else 0
    given = [f"model.name={name}", f"model.alpha={alpha}", "data=imagenet", "data.root=x", "launch.gpus=0"]
    data = compose(target, [*given, "eval=authors"]).data
    assert (data.val_resize, data.val_interpolation) == ("opencv", interpolation)
    assert (data.image_size_px, round(data.image_size_px / data.val_crop_ratio)) == (224, 256)
    assert [255 * value for value in data.mean] == pytest.approx(mean)
    assert [255 * value for value in data.std] == pytest.approx(std)
    ordinary = compose(target, given).data
    assert (ordinary.val_resize, ordinary.val_interpolation) == ("antialiased", "bilinear")
    assert ordinary.mean == pytest.approx([0.485, 0.456, 0.406])


def test_the_same_accuracy_as_the_run_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from octnet.launch import execute

    config = small_config(tmp_path, epochs=1)
    assert execute(config) == "done"
    capsys.readouterr()
    assert main([f"checkpoint={run_folder(config)}", "launch.gpus=0"]) == 0
    recorded = read_summary(run_folder(config))
    assert table(capsys.readouterr().out)[0][6:] == [f"{recorded['top1']:.2f}", f"{recorded['top5']:.2f}"]
