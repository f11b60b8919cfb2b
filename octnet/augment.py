"""What happens to an image between the reader and the network: crops, flips, colours, normalisation."""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from octnet.options import DataConfig

# Principal components of ImageNet's RGB values (0 to 255): Krizhevsky et al. 2012, the numbers that MXNet uses
PCA_SCALES = (55.46, 4.794, 1.148)
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))  # rows R, G, B


def lighting_noise(image: Tensor, std: float) -> Tensor:
    """Add Σ_j PCA_VECTORS[:, j] · PCA_SCALES[j] · N(0, std²) to the RGB of a whole uint8 image (3, H, W)."""
    shift = torch.tensor(PCA_VECTORS) @ (torch.tensor(PCA_SCALES) * torch.randn(3) * std)
    return (image + shift[:, None, None]).round_().clamp_(0, 255).to(torch.uint8)


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


def train_transform(config: DataConfig) -> v2.Compose:
    """Return the random transform of a training image, uint8 (3, H, W) to (3, S, S); draws from torch's generator."""
    size = config.image_size_px
    crops: dict[str, Callable[[], list[nn.Module]]] = {
        "none": lambda: [val_transform(config)],
        "pad": lambda: [v2.Resize(size, antialias=True), v2.CenterCrop(size), v2.RandomCrop(size, padding=size // 8)],
        "resized": lambda: [v2.RandomResizedCrop(size, antialias=True)],  # area 0.08 to 1, aspect 3/4 to 4/3
    }
    steps: list[Callable[[Tensor], Tensor]] = [*crops[config.train_crop]()]
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.color_jitter > 0:
        steps.append(v2.ColorJitter(*3 * [config.color_jitter]))
    if config.pca_noise > 0:
        steps.append(partial(lighting_noise, std=config.pca_noise))
    return v2.Compose(steps)


def apply_seeded(transform: Callable[[Tensor], Tensor], image: Tensor, seed: int) -> Tensor:
    """Return transform(image) with torch's CPU generator at `seed`, and leave that generator as it was."""
    state = torch.default_generator.get_state()  # not torch.manual_seed: that one also seeds the GPUs
    torch.default_generator.manual_seed(seed)
    try:
        return transform(image)
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
