"""The data layer: checks, opens and streams the images of a run, the same whatever the number of processes."""

import difflib
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from octnet.augment import apply_seeded, train_part, train_transform, val_transform
from octnet.decoding import whole
from octnet.options import DataConfig, UserError
from octnet.packed import PackedImages
from octnet.randomness import epoch_order, sample_seed
from octnet.readers import ArrayImages, FolderImages, Images, check_same_classes, open_cifar10, scan
from octnet.shapes import CLASSES, SMALLEST_PX, draw_shapes

READERS = ("shapes", "folder", "packed", "cifar10")

Key = tuple[int, int]  # (epoch, index)
Batch = tuple[Tensor, Tensor]  # images uint8 (b, 3, S, S), channels last in memory; labels int64 (b,)


def check_data(config: DataConfig, train: bool = True) -> int:
    """Return the number of classes; UserError names what is wrong with the options or the folders.

    Decodes and downloads nothing. Without `train` (an evaluation), only the validation images have to be there.
    """
    if config.reader not in READERS:
        close = difflib.get_close_matches(config.reader, READERS, n=1, cutoff=0)
        raise UserError(f"data.reader={config.reader}: not one of {', '.join(READERS)}; nearest: {close[0]}")
    if config.reader == "shapes":
        if config.image_size_px < SMALLEST_PX:
            raise UserError(f"data.image_size_px={config.image_size_px}: shapes need at least {SMALLEST_PX}")
        return _agreed(config, len(CLASSES), "data.reader=shapes")
    root = _root(config)
    if config.reader == "cifar10":
        return _agreed(config, 10, "CIFAR-10")
    if config.reader == "packed":
        classes = PackedImages(root, "val").classes
        if train:
            PackedImages(root, "train")
    else:
        classes = scan(root, "val")[0]
        if train:
            check_same_classes(f"data.root={root}", scan(root, "train")[0], classes)
    return _agreed(config, len(classes), f"data.root={root}")


def count_train_images(config: DataConfig) -> int:
    """Return how many there will be, without opening them; after `check_data`."""
    if config.reader == "shapes":
        return config.train_images
    return 50_000 if config.reader == "cifar10" else len(open_images(config, train=True))


def open_images(config: DataConfig, train: bool) -> Images:
    """Open a split; CIFAR-10 is downloaded if it isn't there, so let one process open it before the others."""
    if config.reader == "shapes":
        count = config.train_images if train else config.val_images
        return ArrayImages(*draw_shapes(train, count, config.image_size_px), CLASSES)
    if config.reader == "cifar10":
        return open_cifar10(_root(config), train)
    reader = PackedImages if config.reader == "packed" else FolderImages
    return reader(_root(config), "train" if train else "val")


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of whole batches; the rest of an epoch's images is left out, other ones each epoch."""
    if not 1 <= batch_size <= images:
        raise UserError(f"recipe.batch_size={batch_size}: must be from 1 to the number of training images, {images}")
    return images // batch_size


def train_steps(
    images: Images,
    config: DataConfig,
    seed: int,
    batch_size: int,
    accumulation_steps: int = 1,
    rank: int = 0,
    world: int = 1,
    start: tuple[int, int] = (0, 0),
) -> Iterator[Batch]:
    """Return this process's endless stream of micro-batches from (epoch, step) on, `accumulation_steps` a step.

    Order and augmentation depend on (seed, epoch, index) alone. UserError where the batch can't be cut evenly.
    """
    slots = world * accumulation_steps
    steps = steps_per_epoch(len(images), batch_size)
    if batch_size % slots:
        raise UserError(
            f"recipe.batch_size={batch_size}: must be a multiple of recipe.accumulation_steps={accumulation_steps} "
            f"times the {world} training processes"
        )

    def keys() -> Iterator[list[Key]]:
        epoch, step = start
        while True:
            order = epoch_order(seed, epoch, len(images))
            for first in range(step * batch_size, steps * batch_size, batch_size):
                for slot in range(rank * accumulation_steps, (rank + 1) * accumulation_steps):
                    positions = first + slot_positions(batch_size, slots, slot)
                    yield [(epoch, int(index)) for index in order[positions]]
            epoch, step = epoch + 1, 0

    return _batches(Samples(images, config, seed), keys(), config.workers)


def val_batches(images: Images, config: DataConfig, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Return this process's share of all images, each once over all processes; the last batch may be short."""
    mine = range(rank, len(images), world)
    keys = ([(0, index) for index in mine[first : first + batch_size]] for first in range(0, len(mine), batch_size))
    return _batches(Samples(images, config, None), keys, config.workers)


def slot_positions(batch_size: int, slots: int, slot: int) -> np.ndarray:
    """Return the positions of the global batch that one forward pass of one process gets, (batch_size / slots,).

    One piece from the front and its mirror image from the back: reversing the local batch (mixup's partners) then
    pairs the same images as reversing the global batch, if each slot has an even number of them.
    """
    size = batch_size // slots
    front, back = size - size // 2, size // 2
    return np.r_[slot * front : (slot + 1) * front, batch_size - (slot + 1) * back : batch_size - slot * back]


class Samples(Dataset[tuple[Tensor, int]]):
    """(epoch, index) → (uint8 (3, S, S), label): training images varied by the seed, validation images without one."""

    def __init__(self, images: Images, config: DataConfig, seed: int | None) -> None:
        self.images, self.seed = images, seed
        self.choose = whole if seed is None else train_part(config)
        self.transform = val_transform(config) if seed is None else train_transform(config)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index = key[1]
        return self._load(index) if self.seed is None else apply_seeded(self._load, index, sample_seed(self.seed, *key))

    def _load(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images.load(index, self.choose)
        return self.transform(image), label


def _batches(samples: Samples, keys: Iterator[list[Key]], workers: int) -> Iterator[Batch]:
    """Load batches of keys in order; one loader for all of them, so workers persist and prefetch across epochs."""
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        samples,
        batch_sampler=keys,
        num_workers=workers,  # each with one thread, which is DataLoader's way
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: DataLoader would draw from the global one
        worker_init_fn=_outlive_ctrl_c,
    )
    try:
        for batch in loader:
            yield batch[0], batch[1]
    except UserError as error:  # from a worker, the message is a whole traceback
        error.__traceback__ = None  # it keeps the loader in a cycle, and collecting that takes 5 s a worker
        raise UserError(str(error).splitlines()[-1].removeprefix("octnet.options.UserError: ")) from None


def _collate(samples: list[tuple[Tensor, int]]) -> Batch:
    """Stack images as decoders and resizing leave them, channels last: one copy of memory, and networks like it."""
    images, labels = default_collate([(image.permute(1, 2, 0), label) for image, label in samples])
    return images.permute(0, 3, 1, 2), labels


def _outlive_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches a loader process too; the training process ends it, after its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _root(config: DataConfig) -> str:
    if config.root is None:
        raise UserError(f"data.root: not given; data.reader={config.reader} needs the folder of the data")
    return config.root


def _agreed(config: DataConfig, classes: int, where: str) -> int:
    if config.num_classes is not None and config.num_classes != classes:
        raise UserError(f"data.num_classes={config.num_classes}: {where} has {classes} classes")
    return classes
