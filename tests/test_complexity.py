"""What the table of costs shows, and what a network that can't be is refused with."""

import csv
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octnet.complexity import check_model
from octnet.options import UserError

SCRIPT = Path(__file__).parent.parent / "scripts" / "complexity.py"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *args], capture_output=True, text=True, check=False)


def test_table_and_csv(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    done = run("oct_mobilenetv1_100", "oct_resnext50_32x4d", "--alpha", "0", "0.125", "0.5", "--csv", str(path))
    assert done.returncode == 0, done.stderr
    assert "318.17" in done.stdout  # the authors' 318,167,680
    assert "55.9" in done.stdout  # … of 568,740,352
    assert "oct_resnext50_32x4d at α = 0.125 can't be built: " in done.stdout
    with path.open() as file:
        rows = {(row["model"], row["alpha"]): row for row in csv.DictReader(file)}
    assert rows["oct_mobilenetv1_100", "0.5"]["macs"] == "318167680"
    assert len(rows) == 5


def test_a_misspelt_name_is_one_line() -> None:
    done = run("oct_resnet5O")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "oct_resnet50" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("oct_resnet_tiny", 0.25, {}, 10, 30), ["data.image_size_px=30", "'layer2.0.conv2'", "15×15", "24 and 32"]),
        (("oct_resnet_tiny", 0.25, {"chanels": [1]}, 10, 32), ["model.kwargs", "chanels"]),
        (("oct_resnet_tiny", 0.25, {"alpha": 0.5}, 10, 32), ["model.kwargs.alpha", "model.alpha"]),
        (("oct_resnext50_32x4d", 0.125, {"layers": [1, 1, 1, 1]}, 10, 64), ["'layer1.0.conv2'", "32 groups", "0.125"]),
        (("resnet50", 0.5, {}, 10, 64), ["model.name=oct_resnet50"]),
        (("oct_resnett_tiny", 0.5, {}, 10, 64), ["oct_resnet_tiny"]),
    ],
)
def test_refused(arguments: tuple[str, float, dict[str, Any], int, int], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_model(*arguments)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_comparison_with_the_authors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script says 0 for their counts, and finds one that is off by one."""
    header, *rows = (SCRIPT.parent.parent / "octnet" / "official_macs.csv").read_text().splitlines()
    chosen = [row for row in rows if row.startswith("paper_mobilenetv1_100,0.5,")]
    assert len(chosen) == 1
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--paper"])
    for text, code, verdict in ((chosen[0], 0, "0 of 1"), (chosen[0].replace("318167680", "318167681"), 1, "1 of 1")):
        (tmp_path / "official_macs.csv").write_text(f"{header}\n{text}\n")
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert stop.value.code == code
        assert f"{verdict} rows differ" in capsys.readouterr().out
