"""Packing a folder and reading the pack: Pillow's own re-encoding is the oracle, the folder gives order and labels."""

import hashlib
import pickle
from collections.abc import Callable
from concurrent.futures import CancelledError
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress

import octnet.packing
from octnet.data import check_data, count_train_images, open_images, train_steps
from octnet.options import DataConfig, UserError
from octnet.packed import PackedImages, verify_pack
from octnet.packing import pack_folder
from octnet.shard import Shard, write_shard

SHORT_SIDE, QUALITY = 30, 85
SIZES = ((48, 36), (36, 61), (30, 90), (20, 25), (64, 64))  # width, height; one isn't larger than SHORT_SIDE


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(octnet.packing, "FEWEST_IMAGES", 4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """3 classes; 11 training images in 3 shards, 5 for validation in 2; JPEG, PNG and CMYK."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (5, 2, 4)), ("val", (2, 2, 1))):
        for name, count in zip(("cat", "dog", "emu"), counts, strict=True):
            (tmp_path / "source" / split / name).mkdir(parents=True)
            for i in range(count):
                width, height = SIZES[i]
                image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
                file = tmp_path / "source" / split / name / f"{i}.{'png' if i == 1 else 'jpg'}"
                (image.convert("CMYK") if i == 2 else image).save(file)
    return tmp_path / "source"


def pack(
    source: Path,
    output: Path,
    processes: int = 1,
    short_side_px: int = SHORT_SIDE,
    quality: int = QUALITY,
    progress: Progress | None = None,
) -> None:
    pack_folder(str(source), str(output), short_side_px, quality, processes, progress or Progress(disable=True))


def config(root: Path, reader: str = "packed", **options: Any) -> DataConfig:
    return DataConfig(reader=reader, root=str(root), image_size_px=16, train_crop="resized", **options)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def reencoded(path: Path) -> np.ndarray:
    """What Pillow makes of a file: resized with its bilinear filter, saved, opened."""
    image = Image.open(path).convert("RGB")
    short = min(image.size)
    if short > SHORT_SIDE:
        size = (image.width * SHORT_SIDE // short, image.height * SHORT_SIDE // short)
        image = image.resize(size, Image.Resampling.BILINEAR)
    file = BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=2)
    return np.array(Image.open(file))


@pytest.mark.parametrize("train", [True, False])
def test_a_pack_has_the_folders_images_reencoded_in_its_order(source: Path, tmp_path: Path, train: bool) -> None:
    pack(source, tmp_path / "pack")
    folder = open_images(config(source, "folder"), train)
    packed = open_images(config(tmp_path / "pack"), train)
    assert len(packed) == len(folder) == (11 if train else 5)
    assert packed.classes == folder.classes
    files = sorted((source / ("train" if train else "val")).rglob("*.*"))
    for index, file in enumerate(files):
        image, label = packed.load(index)
        assert label == folder.load(index)[1]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), reencoded(file))


def test_any_number_of_processes_and_a_moved_source_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "one")
    moved = source.rename(tmp_path / "moved")
    pack(moved, tmp_path / "two", processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 3 + 2 + 1


def test_an_interrupted_pack_is_continued_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    class Interrupted(Progress):
        def update(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    pack(source, tmp_path / "whole")
    output = tmp_path / "broken off"
    with pytest.raises(KeyboardInterrupt):
        pack(source, output, progress=Interrupted(disable=True))
    assert not list(output.rglob("*.part"))
    shard = output / "train" / "00001.shard"
    shard.unlink(missing_ok=True)  # the images are so few that all were written before the interruption was felt
    shard.with_suffix(".part").write_bytes(b"left by a process that was killed")
    with pytest.raises(UserError, match=r"pack.json: packing has not ended; run its pack_data.py command again"):
        PackedImages(str(output), "val")
    pack(source, output)
    assert contents(output) == contents(tmp_path / "whole")


def test_a_shard_is_written_whole_or_not_at_all(source: Path, tmp_path: Path) -> None:
    calls = 0

    def stop_at_third() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise CancelledError

    files = np.array([f"{i}.jpg".encode() for i in (0, 2, 3, 4)])
    shard = Shard(tmp_path / "00000.shard", str(source / "train" / "cat"), files, SHORT_SIDE, QUALITY)
    with pytest.raises(CancelledError):
        write_shard(shard, stop_at_third)
    assert not list(tmp_path.glob("00000*"))
    assert shard.whole() is None
    write_shard(shard, lambda: None)
    content = (tmp_path / "00000.shard").read_bytes()
    assert shard.whole() == (len(content), hashlib.sha256(content[:-32]).hexdigest())


def test_finished_shards_are_kept_and_damaged_ones_made_again(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "pack"
    pack(source, output)
    whole = contents(output)
    kept, missing, cut = (output / "train" / f"0000{i}.shard" for i in range(3))
    made = kept.stat().st_mtime_ns
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-50])
    pack(source, output)
    assert contents(output) == whole
    assert kept.stat().st_mtime_ns == made


def test_a_corrupt_image_is_named_and_the_other_shards_are_written(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "whole")
    bad = source / "train" / "cat" / "0.jpg"
    good = bad.read_bytes()
    bad.write_bytes(good[:-100])
    with pytest.raises(UserError, match=rf"^{bad}: cannot be read as an image: .*; put a good file in its place"):
        pack(source, tmp_path / "pack")
    assert len(list((tmp_path / "pack").rglob("*.shard"))) == 4
    bad.write_bytes(good)
    pack(source, tmp_path / "pack")
    assert contents(tmp_path / "pack") == contents(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_keeps_what_is_written(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "pack"
    pack(source, output)
    (output / "val" / "00001.shard").unlink()
    (output / "val" / "00001.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"^OUTPUT={output}: cannot be written: No space left on device; [^\n]*kept$"):
        pack(source, output)
    assert len(list(output.rglob("*.shard"))) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [((31, QUALITY), "short_side_px 30, now 31"), ((SHORT_SIDE, 86), "quality 85, now 86")],
)
def test_other_settings_for_the_same_output_are_refused(
    source: Path, tmp_path: Path, changed: tuple[int, int], message: str
) -> None:
    pack(source, tmp_path / "pack")
    before = contents(tmp_path / "pack")
    with pytest.raises(UserError, match=rf"holds a pack with {message}; give another OUTPUT"):
        pack(source, tmp_path / "pack", 1, *changed)
    (source / "val" / "emu" / "0.jpg").rename(source / "val" / "emu" / "1.jpg")
    with pytest.raises(UserError, match="files_digest"):
        pack(source, tmp_path / "pack")
    assert contents(tmp_path / "pack") == before


def test_folders_that_cannot_be_packed_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^SOURCE=.*sourc: no such folder; there is source/"):
        pack(tmp_path / "sourc", tmp_path / "pack")
    with pytest.raises(UserError, match=r"holds train and no pack.json; give a new or empty folder"):
        pack(source, source)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"OUTPUT=.*file: cannot be written: File exists"):
        pack(source, tmp_path / "file")
    (source / "val" / "emu").rename(source / "val" / "gnu")
    with pytest.raises(UserError, match=r"SOURCE=.*emu only in train/"):
        pack(source, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


# Reading


def test_a_run_sees_a_pack_as_any_data(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "pack")
    assert check_data(config(tmp_path / "pack")) == 3
    assert count_train_images(config(tmp_path / "pack")) == 11
    images = open_images(config(tmp_path / "pack"), train=True)
    assert images.source == "packed: short_side_px 30, quality 85"
    pack(source, tmp_path / "worse", quality=20)
    assert open_images(config(tmp_path / "worse"), train=True).digest != images.digest
    with pytest.raises(UserError, match=r"data.root=.*source: no pack.json there; scripts/pack_data.py"):
        check_data(config(source))
    with pytest.raises(UserError, match=r"data.root=.*nowhere: no such folder"):
        check_data(config(tmp_path / "nowhere"))


def test_loader_processes_see_the_same_batches(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "pack")
    images = open_images(config(tmp_path / "pack"), train=True)
    images.load(0)  # what is open here is not what they use
    here, there = (
        list(islice(train_steps(images, config(tmp_path / "pack", workers=workers), 3, 4), 4)) for workers in (0, 2)
    )
    for (pixels, labels), (other_pixels, other_labels) in zip(here, there, strict=True):
        assert torch.equal(pixels, other_pixels)
        assert torch.equal(labels, other_labels)


def test_an_open_pack_is_sent_to_a_process_without_its_images(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "pack")
    images = PackedImages(str(tmp_path / "pack"), "train")
    expected = [images.load(i)[0] for i in range(len(images))]
    sent = pickle.dumps(images)
    assert len(sent) < min(len(content) for name, content in contents(tmp_path / "pack").items() if "train" in name)
    assert all(torch.equal(pickle.loads(sent).load(i)[0], image) for i, image in enumerate(expected))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_missing_or_truncated_shard_is_named_before_anything_starts(
    source: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    pack(source, tmp_path / "pack")
    shard = tmp_path / "pack" / "train" / "00001.shard"
    damage(shard)
    with pytest.raises(UserError, match=rf"^{shard}: is missing or doesn't have its \d+ bytes"):
        check_data(config(tmp_path / "pack"))
    assert check_data(config(tmp_path / "pack"), train=False) == 3


def test_a_changed_byte_is_found(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "pack")
    assert verify_pack(str(tmp_path / "pack"), Progress(disable=True)) == 5
    shard = tmp_path / "pack" / "val" / "00000.shard"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{shard}: not as written, by the checksum"):
        verify_pack(str(tmp_path / "pack"), Progress(disable=True))


def test_a_damaged_image_or_index_is_named(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "pack")
    shard, index = tmp_path / "pack" / "val" / "00000.shard", tmp_path / "pack" / "pack.json"
    content = shard.read_bytes()
    shard.write_bytes(bytes(500) + content[500:])
    with pytest.raises(UserError, match=rf"^{shard}: image 0: cannot be read as an image"):
        open_images(config(tmp_path / "pack"), train=False).load(0)
    shard.write_bytes(content[:-40] + bytes(8) + content[-32:])
    with pytest.raises(UserError, match=rf"^{shard}: is damaged"):
        open_images(config(tmp_path / "pack"), train=False).load(0)
    index.write_text(index.read_text().replace('"dog"', '"dig"'))
    with pytest.raises(UserError, match=rf"^{index}: is damaged"):
        check_data(config(tmp_path / "pack"))
