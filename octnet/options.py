"""Every option of a training run and of an evaluation: declared once, with type, default and unit."""

from dataclasses import dataclass, field
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave: its message is one line that names the key, file or layer and what would be right."""


@dataclass
class ModelConfig:
    """Which network: a timm name (`oct_…` for the octave networks), its α, and where its weights start."""

    name: str = "oct_resnet_tiny"
    alpha: float = 0.25  # ratio of low-frequency channels, 0 to 1; a network without `oct_` takes 0 only
    kwargs: dict[str, Any] = field(default_factory=dict)  # passed to timm.create_model
    weights: str | None = None  # starting weights: .safetensors or .pth; null: random


@dataclass
class DataConfig:
    """Which images, at what size, and how training images are varied."""

    name: str = "shapes"  # how reports call this data set
    reader: str = (
        "shapes"  # shapes, folder (root/train, root/val, a folder a class), packed (pack_data.py's) or cifar10
    )
    root: str | None = None  # folder of the data; not used by `shapes`
    train_images: int = 4096  # `shapes` only
    val_images: int = 1024  # `shapes` only
    num_classes: int | None = None  # null: as many as the data has; a number must agree with the data
    image_size_px: int = 32
    train_crop: str = "none"  # none (as validation), pad (by an eighth, then random) or resized (area 0.08 to 1)
    horizontal_flip: bool = False  # with probability 1/2
    color_jitter: float = 0.0  # brightness, contrast, saturation factors, each from 1 ± this, in random order
    pca_noise: float = 0.0  # standard deviation of AlexNet's lighting noise
    val_crop_ratio: float = 1.0  # image_size_px / short side after the resize; a centre crop follows
    val_resize: str = (
        "antialiased"  # antialiased, or opencv: without it, and crops rounded down (the authors' evaluation)
    )
    val_interpolation: str = "bilinear"  # bilinear, bicubic, or network: its own
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # RGB in 0 to 1; []: the network's own
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])  # as mean
    workers: int = 0  # loader processes for each training process


@dataclass
class RecipeConfig:
    """How the network is trained: SGD with Nesterov momentum, linear warm-up from 0 and cosine to 0, by iteration."""

    epochs: int = 8
    batch_size: int = 128  # images a step, over all processes and accumulation steps
    accumulation_steps: int = 1  # forward-backward passes a step
    learning_rate: float = 0.1  # at the end of the warm-up
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_vectors: bool = True  # weight decay also on parameters of one dimension: biases, batch norms
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0  # Beta(a, a), one λ a step; 0: no mixup
    ema_decay: float | None = None  # exponential moving average of the weights, by step; null: none
    precision: str = "float32"  # float32, bfloat16 or float16 (autocast; float16 with loss scaling)
    channels_last: bool = True
    compile: bool = False  # torch.compile
    deterministic: bool = True  # on GPUs: deterministic kernels only


@dataclass
class LaunchConfig:
    """Where a run runs."""

    gpus: int | None = None  # GPUs for a run; null: one if there is one; 0: CPU
    processes: int | None = None  # training processes; null: one a GPU, or one


@dataclass
class WandbConfig:
    """Weights & Biases: off unless asked for."""

    mode: str = "disabled"  # disabled, offline or online
    project: str = "octnet"
    entity: str | None = None


@dataclass
class Config:
    """One training run. A sweep is several of them in one `output_dir`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = 0  # of the initial weights, the order of the images and every augmentation
    output_dir: str = "runs/shapes"  # the sweep: holds a folder a run
