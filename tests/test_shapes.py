"""The embedded data: balanced, a function of the index, shape in the low frequencies and texture in the high ones."""

import numpy as np
import pytest

from octnet.shapes import CLASSES, draw_shapes


def nearest_class(features: np.ndarray, labels: np.ndarray) -> float:
    """The share of the second half that least squares on the first half classifies correctly."""
    features = np.c_[features.reshape(len(features), -1), np.ones(len(features))]
    half = len(features) // 2
    ridge = features[:half].T @ features[:half] + 1e-3 * half * np.eye(features.shape[1])
    weights = np.linalg.solve(ridge, features[:half].T @ np.eye(4)[labels[:half]])
    return float(((features[half:] @ weights).argmax(1) == labels[half:]).mean())


def frequencies(size: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low-pass 8×8 images, power spectra of what is left, and labels, of 4096 images in standard units."""
    images, labels = draw_shapes(True, 4096, size)
    grey = images.mean(1) / 255
    low = grey.reshape(-1, 8, size // 8, 8, size // 8).mean((2, 4))
    high = grey - low.repeat(size // 8, 1).repeat(size // 8, 2)
    power = np.log(np.abs(np.fft.rfft2(high)) ** 2 + 1e-6)
    low -= low.mean((1, 2), keepdims=True)
    return 10 * low, power, labels


def test_each_class_has_as_many_images() -> None:
    labels = draw_shapes(True, 160, 16)[1]
    assert len(CLASSES) == len(set(CLASSES)) == 16
    assert np.bincount(labels, minlength=16).tolist() == [10] * 16
    assert set(np.bincount(draw_shapes(False, 40, 16)[1], minlength=16)) == {2, 3}


@pytest.mark.parametrize("size", [16, 33, 96])
def test_an_image_is_a_function_of_split_and_index(size: int) -> None:
    images, labels = draw_shapes(True, 160, size)
    again, _ = draw_shapes(True, 90, size)
    assert images.shape == (160, 3, size, size)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert np.array_equal(images[:90], again)
    assert len({image.tobytes() for image in images}) == 160
    assert not np.array_equal(draw_shapes(False, 90, size)[0], again)


def test_texture_is_only_in_the_high_frequencies() -> None:
    low, power, labels = frequencies()
    assert nearest_class(low, labels % 4) < 0.35  # chance is 0.25
    assert nearest_class(power, labels % 4) > 0.6


def test_shape_is_in_the_low_frequencies() -> None:
    low, _, labels = frequencies()
    assert nearest_class(low, labels // 4) > 0.8
