"""The embedded data set: synthetic images drawn by this program, whose classes need both frequencies.

A class is a coarse shape (low frequency) crossed with a fine texture inside it (high frequency, period 2 to 4 px).
An image is a function of (split, index) and its size; place, size, rotation, colours, contrasts and noise vary.
"""

import numpy as np

from octnet.randomness import SHAPES, random_words

SHAPE_NAMES = ("disc", "ring", "bar", "pillar")
TEXTURE_NAMES = ("horizontal", "vertical", "checker", "diagonal")
CLASSES = [f"{shape}-{texture}" for shape in SHAPE_NAMES for texture in TEXTURE_NAMES]
SMALLEST_PX = 16  # below, the shapes are no longer coarse
_DATA_SEED = 0  # not the run's seed: every run sees the same data set
_PARAMETERS = 24  # random numbers an image, before its noise


def draw_shapes(train: bool, count: int, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a split: images, uint8 (count, 3, size_px, size_px), and labels, int64 (count,), as many in each class."""
    labels = np.arange(count) % len(CLASSES)
    images = np.empty((count, 3, size_px, size_px), np.uint8)
    chunk = max(1, 2**19 // size_px**2)  # about 2 MB a float32 plane
    for start in range(0, count, chunk):
        part = slice(start, min(start + chunk, count))
        uniform, noise = _random(train, range(part.start, part.stop), size_px)
        images[part] = _draw(labels[part], uniform, noise)
    return images, labels


def _random(train: bool, indices: range, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers (n, _PARAMETERS), uniform in [0, 1), and noise (n, 3, size, size): triangular, variance 1."""
    pixels = 3 * size_px**2
    uniform = np.empty((len(indices), _PARAMETERS), np.float32)
    noise = np.empty((len(indices), 2, pixels), np.uint8)
    for row, index in enumerate(indices):
        words = random_words(SHAPES, _DATA_SEED, int(train), index, _PARAMETERS + -(-2 * pixels // 8))
        uniform[row] = (words[:_PARAMETERS] >> np.uint64(40)) * 2.0**-24
        noise[row] = words[_PARAMETERS:].astype("<u8").view(np.uint8)[: 2 * pixels].reshape(2, pixels)
    triangular = (noise.sum(axis=1, dtype=np.float32) - 255) / np.float32(255 / np.sqrt(6))
    return uniform, triangular.reshape(-1, 3, size_px, size_px)


def _draw(labels: np.ndarray, uniform: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return uint8 images (n, 3, S, S): background + mask · (contrast + texture) + noise."""
    size = noise.shape[-1]
    numbers = iter(uniform.T[:, :, None, None])  # each (n, 1, 1)

    def between(low: float, high: float) -> np.ndarray:
        return np.float32(low) + next(numbers) * np.float32(high - low)

    def color() -> np.ndarray:  # (n, 3, 1, 1), in −1 to 1
        return np.stack([between(-1, 1) for _ in range(3)], axis=1)

    radius = between(0.24, 0.36) * size
    x = np.arange(size, dtype=np.float32) - between(0.42, 0.58) * size
    y = np.arange(size, dtype=np.float32)[:, None] - between(0.42, 0.58) * size
    angle = between(-0.2, 0.2).astype(np.float64)  # float32's sine differs between CPUs, and so would the digest
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    u, v = (x * cos + y * sin) / radius, (y * cos - x * sin) / radius  # (n, S, S)
    mask = np.clip(0.5 - _distance(u, v, labels // 4) * radius, 0, 1)[:, None]  # (n, 1, S, S), soft over one pixel

    contrast = between(0.2, 0.4)[:, None] + 0.08 * color()
    slope = between(-0.15, 0.15) * x / size + between(-0.15, 0.15) * y / size
    amplitude = between(0.05, 0.12)[:, None] * (1 + 0.4 * color())
    texture = _texture(size, labels % 4, *(between(0, 1)[:, 0, 0] for _ in range(4)))[:, None]
    background = 0.38 + 0.15 * color() + slope[:, None]
    image = background + mask * (contrast + amplitude * texture) + 0.08 * noise
    return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)


def _distance(u: np.ndarray, v: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return how far outside its shape each point is, in radii; the four shapes have the area of the unit disc."""
    a, b = np.abs(u), np.abs(v)
    from_center = np.sqrt(u * u + v * v)
    long, short = np.float32(1.5), np.float32(np.pi / 6)
    distances = (
        from_center - 1,
        np.maximum(from_center - np.float32(1.25), np.float32(0.75) - from_center),
        np.maximum(a - long, b - short),
        np.maximum(a - short, b - long),
    )
    return np.choose(shape[:, None, None], distances)


def _texture(size: int, kind: np.ndarray, *chance: np.ndarray) -> np.ndarray:
    """Return textures of −1 and 1, (n, S, S), whose mean over 4×4 px is 0."""
    wide, mirrored, shift_x, shift_y = chance
    band = np.where((wide < 0.5) & (kind != 3), 1, 2)[:, None, None]  # a diagonal of 1 px would be the checker
    x = np.arange(size) + (4 * shift_x).astype(int)[:, None, None]
    y = np.arange(size)[:, None] + (4 * shift_y).astype(int)[:, None, None]
    x_mirrored = np.where(mirrored[:, None, None] < 0.5, x, 4 * size - x)
    column, row = x // band, y // band
    bands = np.choose(kind[:, None, None], (row, column, row + column, (x_mirrored + y) // band))
    return (1 - 2 * (bands % 2)).astype(np.float32)
