"""A run small enough for a test: a narrow octave network on a few synthetic images."""

from pathlib import Path

from octnet.options import Config


def small_config(folder: Path, epochs: int = 2) -> Config:
    """64 images of 16 px, 4 steps an epoch."""
    config = Config(output_dir=str(folder))
    config.model.kwargs = {"channels": [4, 8, 8, 8]}
    config.data.train_images, config.data.val_images, config.data.image_size_px = 64, 48, 16
    config.data.train_crop, config.data.horizontal_flip = "pad", True
    config.recipe.epochs, config.recipe.batch_size, config.recipe.warmup_epochs = epochs, 16, 0.5
    config.launch.gpus = 0
    return config
