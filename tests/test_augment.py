"""Transforms against Pillow, NumPy and torchvision's float pipeline."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from octnet.augment import apply_seeded, lighting_noise, normalize, train_part, train_transform, val_transform
from octnet.options import DataConfig


def photo(height: int, width: int) -> Tensor:
    """A smooth colour image with some texture, uint8 (3, height, width)."""
    y, x = np.mgrid[:height, :width]
    planes = [127 + 100 * np.sin(x / 5 + c) * np.cos(y / 7 - c) + 20 * ((x + y) % 2) for c in range(3)]
    return torch.from_numpy(np.stack(planes).clip(0, 255).astype(np.uint8))


def training(config: DataConfig) -> Callable[[Tensor], Tensor]:
    """All that training does to an image: the part it takes, and the rest."""
    choose, transform = train_part(config), train_transform(config)

    def apply(image: Tensor) -> Tensor:
        rows, columns = choose(*image.shape[1:])
        return transform(image[:, rows, columns])

    return apply


def config(**options: Any) -> DataConfig:
    return DataConfig(**options)


@pytest.mark.parametrize(("height", "width"), [(50, 40), (64, 200), (30, 30)])
def test_validation_image_is_pillows_resize_and_the_centre(height: int, width: int) -> None:
    image = photo(height, width)
    short = 32  # 28 / 0.875
    size = (max(short, short * width // height), max(short, short * height // width))
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - 28) / 2), round((size[1] - 28) / 2)
    expected = np.array(resized.crop((left, top, left + 28, top + 28)), np.int64).transpose(2, 0, 1)
    got = val_transform(config(image_size_px=28, val_crop_ratio=0.875))(image)
    assert got.dtype == torch.uint8
    assert np.abs(got.numpy().astype(np.int64) - expected).max() <= 1


def test_validation_image_of_the_right_size_is_untouched() -> None:
    image = photo(32, 32)
    assert torch.equal(val_transform(config(image_size_px=32))(image), image)
    assert torch.equal(training(config(image_size_px=32))(image), image)  # train_crop=none


def test_pad_and_flip_give_every_crop_of_the_padded_image() -> None:
    image = photo(16, 16)
    padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)))
    crops = {}
    for top in range(5):
        for left in range(5):
            crop = padded[:, top : top + 16, left : left + 16]
            crops[crop.tobytes()] = (top, left, False)
            crops[crop[:, :, ::-1].tobytes()] = (top, left, True)
    transform = training(config(image_size_px=16, train_crop="pad", horizontal_flip=True))
    seen = {crops[apply_seeded(transform, image, seed).numpy().tobytes()] for seed in range(400)}
    assert len(seen) == 50


def test_resized_crop_keeps_area_and_aspect_in_their_ranges() -> None:
    y, x = np.mgrid[:250, :250].astype(np.uint8)
    image = torch.from_numpy(np.stack([x, y, x]))  # red is x, green is y
    transform = training(config(image_size_px=25, train_crop="resized"))
    areas, aspects = [], []
    for seed in range(200):
        crop = apply_seeded(transform, image, seed).float()
        width, height = ((crop[c].max() - crop[c].min()).item() * 25 / 24 for c in (0, 1))  # centres of 25 pixels
        areas.append(width * height / 250**2)
        aspects.append(width / height)
    assert 0.06 < min(areas) < 0.2
    assert 0.8 < max(areas) < 1.04
    assert 0.7 < min(aspects) < 0.85
    assert 1.2 < max(aspects) < 1.43


@pytest.mark.parametrize(("height", "width"), [(90, 120), (20, 300), (12, 9)])
@pytest.mark.parametrize("memory", ["channels last", "planes"])
def test_resized_crop_and_flip_are_torchvisions_to_the_bit(height: int, width: int, memory: str) -> None:
    image = photo(height, width)
    given = image if memory == "planes" else image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    ours = training(config(image_size_px=32, train_crop="resized", horizontal_flip=True))
    theirs = v2.Compose([v2.RandomResizedCrop(32, antialias=True), v2.RandomHorizontalFlip()])
    for seed in range(20):
        assert torch.equal(apply_seeded(ours, given, seed), apply_seeded(theirs, image, seed))


def test_color_jitter_scales_brightness_and_pulls_channels_apart() -> None:
    transform = training(config(image_size_px=4, color_jitter=0.4))
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)  # contrast and saturation can't change it
    levels = [apply_seeded(transform, grey, seed)[0, 0, 0].item() for seed in range(200)]
    assert 59 <= min(levels) < 65
    assert 135 < max(levels) <= 140
    red = torch.tensor([150, 100, 100], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).contiguous()
    differences = {
        int(out[0, 0, 0]) - int(out[1, 0, 0]) for out in (apply_seeded(transform, red, s) for s in range(99))
    }
    assert min(differences) < 40
    assert max(differences) > 60


def test_lighting_noise_is_the_papers_formula() -> None:
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    image = photo(8, 8)
    for seed in range(20):
        alpha = 0.5 * torch.randn(3, generator=torch.Generator().manual_seed(seed)).double().numpy()
        shift = sum(vectors[:, j] * scale * alpha[j] for j, scale in enumerate((55.46, 4.794, 1.148)))
        expected = np.clip(np.rint(image.numpy() + shift[:, None, None]), 0, 255)
        got = apply_seeded(lambda x: lighting_noise(x, 0.5), image, seed)
        assert got.dtype == torch.uint8
        assert np.array_equal(got.numpy(), expected)


def test_seeded_augmentation_leaves_the_generator_alone() -> None:
    transform = training(
        config(image_size_px=16, train_crop="resized", horizontal_flip=True, color_jitter=0.4, pca_noise=0.1)
    )
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = apply_seeded(transform, photo(20, 20), 11)
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(apply_seeded(transform, photo(20, 20), 11), first)
    assert not torch.equal(apply_seeded(transform, photo(20, 20), 12), first)


def test_normalize_is_torchvisions() -> None:
    image, mean, std = photo(9, 7), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])(
        image.permute(1, 2, 0).numpy()
    )
    torch.testing.assert_close(normalize(image[None], mean, std)[0], expected, atol=1e-5, rtol=0)
    assert normalize(image[None], mean, std, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(75, 100), (101, 64), (301, 223)])
def test_the_authors_evaluation_resizes_as_opencv(height: int, width: int, mode: str) -> None:
    """To a grey level, on noise that antialiasing would blur; the long side truncated, the crop's offset rounded down."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    short = 64  # 56 / 0.875
    size = (short, int(short * height / width)) if width < height else (int(short * width / height), short)
    resized = cv2.resize(pixels, size, interpolation={"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[mode])
    left, top = (size[0] - 56) // 2, (size[1] - 56) // 2
    expected = resized[top : top + 56, left : left + 56].transpose(2, 0, 1).astype(np.int64)
    transform = val_transform(
        config(image_size_px=56, val_crop_ratio=0.875, val_resize="opencv", val_interpolation=mode)
    )
    got = transform(torch.from_numpy(pixels).permute(2, 0, 1))
    assert got.dtype == torch.uint8
    assert np.abs(got.numpy().astype(np.int64) - expected).max() <= 1
