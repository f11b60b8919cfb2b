"""The data benchmark and the packing program, as a user starts them."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from octnet.databench import DECODERS, REFERENCE, measure, summarize

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str | Path) -> int:
    """Runs a script; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    return runpy.run_path(str(SCRIPTS / script))["main"]()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two JPEGs in colour, one grey, one CMYK and a PNG, in train/ and val/."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / "images" / split / "one").mkdir(parents=True)
        for name, mode in (("a.jpg", "RGB"), ("b.jpg", "RGB"), ("c.jpg", "L"), ("d.jpg", "CMYK"), ("e.png", "RGB")):
            image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
            image.convert(mode).save(tmp_path / "images" / split / "one" / name)
    return tmp_path / "images"


def test_every_case_is_measured_and_recorded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "pack_data.py", folder, tmp_path / "pack", "--short-side-px", "32", "--processes", "1") == 0
    assert run(monkeypatch, "pack_data.py", "--verify", tmp_path / "pack") == 0
    assert "10 images, 0.0 MB" in (shown := capsys.readouterr().out)
    assert "2 shards are as they were written" in shown
    file = tmp_path / "records.json"
    options = ("--image-size-px", "16", "--rounds", "3", "--json", file)
    assert run(monkeypatch, "benchmark.py", "data", "--root", folder, "--packed", tmp_path / "pack", *options) == 0
    records = {record["case"]: record for record in json.loads(file.read_text())}
    ours = ["our folder reader", "our packed reader"]
    assert list(records) == [*(f"decoding alone, {name}" for name in DECODERS), REFERENCE, *ours]
    shown = capsys.readouterr().out
    for name, record in records.items():
        assert name in shown
        assert 0 < record["slowest_round"] <= record["images_per_second"] <= record["fastest_round"]
        assert (record["images"], record["rounds"], record["image_size_px"]) == (3, 3, 16)  # what every decoder reads
        assert {"torch", "torchvision", "pillow", "simplejpeg"} <= set(record["versions"])
        assert {"device", "decoder", "resize", "git_commit"} <= set(record)
    assert records[REFERENCE]["ratio_to_reference"] == 1
    assert max(record["ratio_to_decoding"] for name, record in records.items() if "alone" in name) == 1


def test_rounds_are_interleaved_and_ratios_are_of_medians() -> None:
    calls: list[tuple[str, int, int]] = []
    names = [*(f"decoding alone, {name}" for name in DECODERS), REFERENCE]
    cases: dict[str, Callable[[int, int], object]] = {
        name: partial(lambda name, number, i: calls.append((name, number, i)), name) for name in names
    }
    rates = measure(cases, 2, 3)
    assert calls == [(name, number, i) for number in range(4) for name in names for i in range(2)]
    assert all(len(values) == 3 for values in rates.values())  # the first round warms up
    given = {name: [10.0 * k, 30.0 * k, 20.0 * k] for k, name in enumerate(names, 1)}
    for k, record in enumerate(summarize(given, 224, 2), 1):
        assert record["images_per_second"] == median(given[record["case"]]) == 20 * k
        assert record["ratio_to_reference"] == k / 4
        assert record["ratio_to_decoding"] == round(k / 3, 3)


def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for script, arguments, message in (
        ("benchmark.py", ("data", "--root", tmp_path / "image"), "--root=.*image: no such folder; there is images/"),
        ("benchmark.py", ("data", "--root", folder, "--packed", folder), "no pack.json there"),
        ("benchmark.py", ("data", "--root", folder, "--rounds", "0"), "--rounds 0: must be 1 or more"),
        ("benchmark.py", ("data", "--root", folder, "--json", tmp_path / "no" / "f"), "--json .*: there is no folder"),
        ("pack_data.py", (tmp_path / "image", tmp_path / "pack"), "SOURCE=.*image: no such folder"),
        ("pack_data.py", ("--verify", tmp_path / "pack"), "OUTPUT=.*pack: no such folder"),
    ):
        assert run(monkeypatch, script, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{script}: ")
        assert error.count("\n") == 1
        assert re.search(message, error)
