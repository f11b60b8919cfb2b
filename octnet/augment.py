"""What happens to an image between the reader and the network: crops, flips, colours, normalisation."""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from octnet.decoding import Choose, whole
from octnet.options import DataConfig

X = TypeVar("X")
Y = TypeVar("Y")

# for the records; validation images: data.val_resize and data.val_interpolation say it
RESIZE = "training: torch, bilinear, antialiased, uint8"

# Principal components of ImageNet's RGB values (0 to 255): Krizhevsky et al. 2012, the numbers that MXNet uses
PCA_SCALES = (55.46, 4.794, 1.148)
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))  # rows R, G, B


def lighting_noise(image: Tensor, std: float) -> Tensor:
    """Add Σ_j PCA_VECTORS[:, j] · PCA_SCALES[j] · N(0, std²) to the RGB of a whole uint8 image (3, H, W)."""
    shift = torch.tensor(PCA_VECTORS) @ (torch.tensor(PCA_SCALES) * torch.randn(3) * std)
    return (image + shift[:, None, None]).round_().clamp_(0, 255).to(torch.uint8)


def resize(image: Tensor, size: int) -> Tensor:
    """Return a uint8 image (3, H, W) as (3, size, size), as v2.Resize does with antialias."""
    image = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)  # channels last: torch has fast code for it
    return F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)[0]


def draw_crop(height: int, width: int) -> tuple[slice, slice]:
    """Return rows and columns of .08 to 1 of an image's area, aspect 3/4 to 4/3: as v2.RandomResizedCrop draws them."""
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(0.08, 1).item()
        aspect = math.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = (int(torch.randint(room + 1, (1,)).item()) for room in (height - h, width - w))
            return slice(top, top + h), slice(left, left + w)
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))  # the largest part that is allowed
    top, left = (height - h) // 2, (width - w) // 2
    return slice(top, top + h), slice(left, left + w)


def flip_half(image: Tensor) -> Tensor:
    """Return the image mirrored with probability 1/2; draws as v2.RandomHorizontalFlip does."""
    return image.flip(-1) if torch.rand(1).item() < 0.5 else image


def val_transform(config: DataConfig) -> v2.Compose:
    """Return: short side to ⌈image_size_px / val_crop_ratio⌉, then the centre; uint8 (3, H, W) to (3, S, S)."""
    size = config.image_size_px
    short_side = math.ceil(size / config.val_crop_ratio - 1e-9)  # 1e-9: a quotient that is whole but for rounding
    mode = config.val_interpolation
    if config.val_resize == "opencv":
        return v2.Compose([partial(opencv_centre, short_side=short_side, size=size, mode=mode)])
    return v2.Compose([v2.Resize(short_side, v2.InterpolationMode(mode), antialias=True), v2.CenterCrop(size)])


def opencv_centre(image: Tensor, short_side: int, size: int, mode: str) -> Tensor:
    """Return the resized centre (3, S, S) of a uint8 image (3, H, W) as MXNet's reader makes it, to a grey level.

    OpenCV interpolates without antialiasing; the long side is truncated, the crop's offset rounded down.
    """
    shape = [short_side * side // min(image.shape[1:]) for side in image.shape[1:]]
    # as float: torch's own bicubic kernel for uint8 has another coefficient than OpenCV's -0.75
    resized = F.interpolate(image[None].float(), shape, mode=mode)[0].round_().clamp_(0, 255).to(torch.uint8)
    top, left = ((side - size) // 2 for side in shape)
    return resized[:, top : top + size, left : left + size]


def train_part(config: DataConfig) -> Choose:
    """Return which part of a training image is needed, drawn before it is decoded."""
    return draw_crop if config.train_crop == "resized" else whole


def train_transform(config: DataConfig) -> v2.Compose:
    """Return what `train_part` leaves to do: uint8 (3, H, W) to a random (3, S, S); draws from torch's generator."""
    size = config.image_size_px
    crops: dict[str, Callable[[], list[Callable[[Tensor], Tensor]]]] = {
        "none": lambda: [val_transform(config)],
        "pad": lambda: [v2.Resize(size, antialias=True), v2.CenterCrop(size), v2.RandomCrop(size, padding=size // 8)],
        "resized": lambda: [partial(resize, size=size)],
    }
    steps = crops[config.train_crop]()
    if config.horizontal_flip:
        steps.append(flip_half)
    if config.color_jitter > 0:
        steps.append(v2.ColorJitter(*3 * [config.color_jitter]))
    if config.pca_noise > 0:
        steps.append(partial(lighting_noise, std=config.pca_noise))
    return v2.Compose(steps)


def apply_seeded(function: Callable[[X], Y], argument: X, seed: int) -> Y:
    """Return function(argument) with torch's CPU generator at `seed`, and leave that generator as it was."""
    state = torch.default_generator.get_state()  # not torch.manual_seed: that one also seeds the GPUs
    torch.default_generator.manual_seed(seed)
    try:
        return function(argument)
    finally:
        torch.default_generator.set_state(state)


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return (x / 255 − mean) / std of uint8 images (B, 3, H, W), on their device, computed in float32."""
    mean_255, std_255 = _on_device(tuple(mean), images.device), _on_device(tuple(std), images.device)
    return ((images - mean_255) / std_255).to(dtype)


@cache  # copying three numbers to a GPU waits for the GPU: once, not every step
def _on_device(rgb: tuple[float, ...], device: torch.device) -> Tensor:
    return 255 * torch.tensor(rgb, device=device).view(3, 1, 1)
