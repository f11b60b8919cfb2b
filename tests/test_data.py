"""Readers, checks and the stream: the same images whatever the processes, and every mistake named."""

import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, ImageFolder

from octnet.data import check_data, open_images, train_steps, val_batches
from octnet.decoding import Choose, whole
from octnet.options import DataConfig, UserError
from octnet.randomness import epoch_order, sample_seed, step_seed
from octnet.readers import ArrayImages

Batches = list[tuple[Tensor, Tensor]]


def small_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog", "emu"), images: int = 3) -> DataConfig:
    """Noise images of 20×24 px, `images` a class in train/, one less in val/."""
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("val", images - 1)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.{'png' if i else 'JPEG'}")
    return DataConfig(name="small", reader="folder", root=str(root), image_size_px=16)


@pytest.fixture
def folder(tmp_path: Path) -> DataConfig:
    return small_folder(tmp_path)


def varied(**options: Any) -> DataConfig:
    """Shapes with every augmentation."""
    return DataConfig(
        train_images=23,
        val_images=10,
        image_size_px=16,
        train_crop="resized",
        horizontal_flip=True,
        color_jitter=0.4,
        pca_noise=0.1,
        **options,
    )


def take(stream: Iterator[tuple[Tensor, Tensor]], count: int) -> Batches:
    return list(islice(stream, count))


def assert_same(first: Batches, second: Batches) -> None:
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


class Numbered:
    """Images that show their own index, to see where each goes."""

    def __init__(self, count: int) -> None:
        self.count, self.classes, self.digest, self.source = count, ["one"], "", ""

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, choose: Choose = whole) -> tuple[Tensor, int]:
        return torch.full((3, 16, 16), index % 256, dtype=torch.uint8), index


def indices(batches: Batches) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches]


# The stream


@pytest.mark.parametrize("workers", [1, 2])
def test_stream_is_the_same_with_any_number_of_workers(workers: int) -> None:
    images = open_images(varied(), train=True)
    before = torch.random.get_rng_state()
    expected = take(train_steps(images, varied(), 5, 8), 5)  # 2 steps an epoch: into the third
    assert_same(take(train_steps(images, varied(workers=workers), 5, 8), 5), expected)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert expected[0][0].is_contiguous(memory_format=torch.channels_last)
    assert (expected[0][0].dtype, expected[0][1].dtype) == (torch.uint8, torch.int64)
    assert not torch.equal(take(train_steps(images, varied(), 6, 8), 1)[0][0], expected[0][0])  # another seed


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 2), (2, 2)])
def test_processes_and_accumulation_share_the_same_global_batch(world: int, accumulation: int) -> None:
    config = varied()
    images = open_images(config, train=True)

    def pictures(batches: Batches) -> list[bytes]:
        return sorted(image.numpy().tobytes() for batch, _ in batches for image in batch)

    whole = take(train_steps(images, config, 1, 8), 4)
    parts = [
        take(train_steps(images, config, 1, 8, accumulation, rank, world), 4 * accumulation) for rank in range(world)
    ]
    for step in range(4):
        here = [batch for part in parts for batch in part[step * accumulation : (step + 1) * accumulation]]
        assert pictures(here) == pictures(whole[step : step + 1])


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (2, 3), (4, 1)])
def test_reversing_each_slice_pairs_what_reversing_the_batch_pairs(world: int, accumulation: int) -> None:
    images, config = Numbered(50), DataConfig(image_size_px=16)
    (batch,) = indices(take(train_steps(images, config, 0, 24), 1))
    expected = set(zip(batch, reversed(batch), strict=True))
    pairs: set[tuple[int, int]] = set()
    for rank in range(world):
        for part in indices(take(train_steps(images, config, 0, 24, accumulation, rank, world), accumulation)):
            pairs |= set(zip(part, reversed(part), strict=True))
    assert pairs == expected


@pytest.mark.parametrize("start", [(0, 1), (1, 0), (2, 1)])
def test_stream_from_a_step_is_the_tail_of_the_whole_stream(start: tuple[int, int]) -> None:
    config = varied()
    images = open_images(config, train=True)
    whole = take(train_steps(images, config, 3, 8, accumulation_steps=2), 14)
    skipped = 2 * (2 * start[0] + start[1])  # 2 steps an epoch, 2 items a step
    assert_same(take(train_steps(images, config, 3, 8, 2, start=start), 14 - skipped), whole[skipped:])


def test_augmentation_varies_by_epoch_and_image() -> None:
    same = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), np.uint8).repeat(8, 0)
    images = ArrayImages(same, np.arange(8), ["one"])
    batches = take(train_steps(images, DataConfig(train_crop="resized"), 0, 8), 2)
    assert len({image.numpy().tobytes() for batch, _ in batches for image in batch}) == 16


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_files_are_channels_last(folder: DataConfig, workers: int) -> None:
    folder.workers = workers
    (batch,) = take(val_batches(open_images(folder, train=False), folder, 2), 1)
    assert batch[0].is_contiguous(
        memory_format=torch.channels_last
    )  # one memory format with and without workers: the same kernels, the same sums


def test_an_epoch_has_no_image_twice_and_every_epoch_another_order() -> None:
    images, config = Numbered(23), DataConfig(image_size_px=16)
    batches = indices(take(train_steps(images, config, 0, 5), 8))  # 4 steps an epoch, 3 images left out
    first, second = np.concatenate(batches[:4]), np.concatenate(batches[4:])
    assert len(set(first)) == len(set(second)) == 20
    assert first.tolist() != second.tolist()
    assert sorted(indices(take(train_steps(images, config, 0, 23), 1))[0]) == list(range(23))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 0), (2, 1)])
def test_validation_sees_each_image_once(world: int, workers: int) -> None:
    config = DataConfig(image_size_px=16, workers=workers)
    batches = [indices(list(val_batches(Numbered(23), config, 4, rank, world))) for rank in range(world)]
    assert sorted(index for part in batches for batch in part for index in batch) == list(range(23))
    assert max(len(batch) for part in batches for batch in part) == 4


def test_batches_that_cannot_be_cut_are_refused() -> None:
    images, config = Numbered(23), DataConfig()
    with pytest.raises(UserError, match=r"recipe\.batch_size=24: .* 23"):
        train_steps(images, config, 0, 24)
    with pytest.raises(UserError, match=r"recipe\.batch_size=10: .*recipe\.accumulation_steps=2.* 2 training"):
        train_steps(images, config, 0, 10, accumulation_steps=2, world=2)


def test_seeds_differ_by_purpose_and_by_each_argument() -> None:
    seeds = [
        f(seed, epoch, k) for f in (sample_seed, step_seed) for seed in (0, 1) for epoch in range(9) for k in range(99)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)  # what numpy.random.seed takes
    orders = {epoch_order(seed, epoch, 50).tobytes() for seed in (0, 1) for epoch in range(9)}
    assert len(orders) == 18
    assert sorted(epoch_order(7, 3, 1000)) == list(range(1000))
    with pytest.raises(UserError, match="seed=-1"):
        epoch_order(-1, 0, 5)


# Readers


def test_folder_is_read_as_torchvision_reads_it(folder: DataConfig) -> None:
    train = Path(str(folder.root), "train")
    expected = ImageFolder(str(train))
    (train / "cat" / ".DS_Store").write_text("")  # dot files are ignored
    (train / ".cache").mkdir()
    images = open_images(folder, train=True)
    assert len(images) == len(expected) == 9
    assert images.classes == expected.classes
    for index in range(9):
        image, label = images.load(index)
        picture, expected_label = expected[index]
        assert label == expected_label
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(picture))


def test_grey_and_transparent_files_are_read_as_rgb(folder: DataConfig) -> None:
    grey, clear = (Path(str(folder.root)) / "train" / "cat" / name for name in ("a.png", "b.png"))
    Image.new("L", (5, 4), 77).save(grey)
    Image.new("RGBA", (5, 4), (1, 2, 3, 4)).save(clear)
    images = open_images(folder, train=True)
    loaded = {
        tuple(images.load(i)[0][:, 0, 0].tolist()) for i in range(len(images)) if images.load(i)[0].shape == (3, 4, 5)
    }
    assert loaded == {(77, 77, 77), (1, 2, 3)}


def test_digest_tells_data_sets_apart(folder: DataConfig) -> None:
    first = open_images(folder, train=True).digest
    assert open_images(folder, train=True).digest == first
    assert open_images(folder, train=False).digest != first
    Path(str(folder.root), "train", "cat", "1.png").rename(Path(str(folder.root), "train", "dog", "other.png"))
    assert open_images(folder, train=True).digest != first
    shapes = {open_images(varied(), train=True).digest, open_images(DataConfig(train_images=23), train=True).digest}
    assert len(shapes) == 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_an_unreadable_image_is_named_in_one_line(folder: DataConfig, damage: str, workers: int) -> None:
    bad = Path(str(folder.root)) / "val" / "dog" / "0.JPEG"
    content = {"truncated": bad.read_bytes()[:-200], "text": b"not an image", "empty": b""}[damage]
    bad.write_bytes(content)
    folder.workers = workers
    with pytest.raises(UserError) as error:
        list(val_batches(open_images(folder, train=False), folder, 2))
    assert str(error.value).startswith(f"{bad}: cannot be read as an image: ")
    assert "\n" not in str(error.value)


def test_cifar10_is_read_as_it_is_distributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)  # a row: 1024 red, 1024 green, 1024 blue
    (tmp_path / "cifar-10-batches-py").mkdir()
    contents = {"data_batch_1": {"data": pixels, "labels": [1, 0, 1, 0]}, "batches.meta": {"label_names": ["a", "b"]}}
    for name, content in contents.items():
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    images = open_images(DataConfig(reader="cifar10", root=str(tmp_path)), train=True)
    assert (len(images), images.classes) == (4, ["a", "b"])
    image, label = images.load(2)
    assert label == 1
    assert image[1, 3, 5] == pixels[2, 1024 + 3 * 32 + 5]


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: CIFAR10) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", fail)
    config = DataConfig(reader="cifar10", root=str(tmp_path))
    assert check_data(config) == 10
    with pytest.raises(UserError, match=r"data\.root=.*CIFAR-10 .*no route to host"):
        open_images(config, train=True)


# Checks before a run


def test_good_data_pass(folder: DataConfig) -> None:
    assert check_data(folder) == 3
    assert check_data(DataConfig()) == 16
    assert check_data(DataConfig(num_classes=16)) == 16


def refused(config: DataConfig, *parts: str) -> None:
    """check_data names every part, in one line."""
    with pytest.raises(UserError) as error:
        check_data(config)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_missing_folders_are_named_with_the_nearest(folder: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "val").rename(tmp_path / "validation")
    refused(folder, f"data.root={tmp_path}", "no folder val/", "val/<class>/*.jpg", "there is validation/")
    refused(folder_with(folder, f"{tmp_path}x"), f"data.root={tmp_path}x: no such folder", f"there is {tmp_path.name}/")
    refused(folder_with(folder, None), "data.root: not given")
    refused(DataConfig(reader="cifar10"), "data.root: not given")


def folder_with(config: DataConfig, root: str | None) -> DataConfig:
    return DataConfig(reader=config.reader, root=root)


def test_evaluation_needs_no_training_images(folder: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "train").rename(tmp_path / ".gone")
    assert check_data(folder, train=False) == 3
    refused(folder, "no folder train/")


def test_different_classes_are_named(folder: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "val" / "emu").rename(tmp_path / "val" / "gnu")
    refused(folder, "emu only in train/", "gnu only in val/")


def test_wrong_number_of_classes_is_named(folder: DataConfig) -> None:
    folder.num_classes = 4
    refused(folder, "data.num_classes=4", "3 classes")
    refused(DataConfig(num_classes=10), "data.num_classes=10", "16 classes")
    refused(DataConfig(reader="cifar10", root="x", num_classes=11), "data.num_classes=11", "10 classes")


def test_files_out_of_place_are_named(folder: DataConfig, tmp_path: Path) -> None:
    notes = tmp_path / "train" / "cat" / "notes.txt"
    notes.write_text("")
    refused(folder, f"{notes}: not an image by its name")
    notes.rename(tmp_path / "train" / "stray.jpg")
    refused(folder, f"{tmp_path / 'train' / 'stray.jpg'}", "no class folder")
    (tmp_path / "train" / "stray.jpg").unlink()
    for file in (tmp_path / "val" / "dog").iterdir():
        file.unlink()
    refused(folder, f"{tmp_path / 'val' / 'dog'}: no image")


def test_unknown_reader_and_tiny_shapes_are_named() -> None:
    refused(DataConfig(reader="foldr"), "data.reader=foldr", "nearest: folder")
    refused(DataConfig(image_size_px=8), "data.image_size_px=8", "at least 16")


def test_array_images_keep_their_memory() -> None:
    pixels = np.zeros((2, 3, 4, 4), np.uint8)
    assert ArrayImages(pixels, np.array([0, 1]), ["a", "b"]).images.data_ptr() == pixels.ctypes.data
