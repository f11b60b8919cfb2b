"""Where images come from: class folders, or arrays in memory (shapes, CIFAR-10)."""

import difflib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import IMG_EXTENSIONS

from octnet.decoding import Choose, decode, whole
from octnet.options import UserError


class Images(Protocol):
    """A split of a data set: `digest` identifies what is in it, `source` says for the records what is read."""

    classes: list[str]
    digest: str
    source: str

    def __len__(self) -> int: ...

    def load(self, index: int, choose: Choose = whole) -> tuple[Tensor, int]:
        """Return the chosen part of an image as it is stored, RGB uint8 (3, H, W), and its label."""


class ArrayImages:
    """Images in memory: uint8 (N, 3, H, W) and labels (N,)."""

    source = "memory"

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images))
        self.labels = labels
        self.classes = list(classes)
        self.digest = _digest(repr(self.classes).encode(), labels.astype("<i8").tobytes(), self.images.numpy().data)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, choose: Choose = whole) -> tuple[Tensor, int]:
        image = self.images[index]
        rows, columns = choose(*image.shape[1:])
        return image[:, rows, columns], int(self.labels[index])


class FolderImages:
    """Image files below root/split/<class>/; classes are numbered in the order of their names, as torchvision does."""

    source = "folder"

    def __init__(self, root: str, split: str, key: str = "data.root") -> None:
        """Find the files; UserError names what is wrong in the folder that the option `key` gave."""
        self.folder = os.path.join(root, split)
        self.classes, files, labels = scan(root, split, key)
        self.labels = np.array(labels, np.int64)
        self.files = np.array([os.fsencode(file) for file in files])  # one buffer: loader workers share its memory
        self.digest = _digest(repr(self.classes).encode(), *(os.fsencode(f"{file}\n") for file in files))

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int, choose: Choose = whole) -> tuple[Tensor, int]:
        path = os.path.join(self.folder, os.fsdecode(self.files[index]))
        return read_image(path, choose), int(self.labels[index])


def read_image(path: str, choose: Choose = whole) -> Tensor:
    """Return the chosen part of an image file, RGB uint8 (3, H, W); UserError names a file that can't be decoded."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return decode(data, path, choose)


def open_cifar10(root: str, train: bool) -> ArrayImages:
    """Return CIFAR-10's 50,000 or 10,000 images of 32 px; torchvision downloads it to `root` if it isn't there."""
    try:
        data = CIFAR10(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.root={root}: CIFAR-10 is not there and its download failed: {reason}") from error
    return ArrayImages(data.data.transpose(0, 3, 1, 2), np.array(data.targets, np.int64), data.classes)


def scan(root: str, split: str, key: str = "data.root") -> tuple[list[str], list[str], list[int]]:
    """Return the classes, files (relative to root/split) and labels of a split; UserError names what is wrong there."""
    key, folder = f"{key}={root}", Path(root, split)
    if not Path(root).is_dir():
        raise UserError(f"{key}: no such folder{_nearest(Path(root).name, Path(root).parent)}")
    if not folder.is_dir():
        expected = "expected train/<class>/*.jpg and val/<class>/*.jpg"
        raise UserError(f"{key}: no folder {split}/ there; {expected}{_nearest(split, Path(root))}")
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    stray = sorted(entry.name for entry in entries if entry.is_file() and _is_image(entry.name))
    if stray:
        raise UserError(f"{folder / stray[0]}: lies in no class folder; expected {split}/<class>/{stray[0]}")
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise UserError(f"{key}: no class folders in {split}/; expected {split}/<class>/*.jpg")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _image_files(folder, name)
        if not found:
            raise UserError(f"{folder / name}: no image in this class folder")
        files += found
        labels += [label] * len(found)
    return classes, files, labels


def check_same_classes(key: str, train: Sequence[str], val: Sequence[str]) -> None:
    """Raise UserError unless train/ and val/ have the same class folders."""
    differences = [
        f"{_some(only)} only in {split}/"
        for split, only in (("train", set(train) - set(val)), ("val", set(val) - set(train)))
        if only
    ]
    if differences:
        raise UserError(f"{key}: train/ and val/ differ in their classes: {', '.join(differences)}")


def _some(names: set[str], most: int = 5) -> str:
    listed = ", ".join(sorted(names)[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def _image_files(folder: Path, class_name: str) -> list[str]:
    """Return the files of a class, at any depth, relative to the split's folder; dot files are ignored."""
    found = []
    for parent, folders, names in os.walk(folder / class_name, followlinks=True, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = os.path.join(parent, name)
                if not _is_image(name):
                    raise UserError(f"{path}: not an image by its name; expected one of {' '.join(IMG_EXTENSIONS)}")
                found.append(path[len(str(folder)) + 1 :])
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}")  # os.walk by itself would skip the folder silently


def _nearest(name: str, folder: Path) -> str:
    """Return a hint at the folder whose name is most like `name`, or nothing."""
    if not folder.is_dir():
        return ""
    names = {entry.name.lower(): entry.name for entry in os.scandir(folder) if entry.is_dir()}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.45)  # .45: "val" and "validation"
    return f"; there is {names[close[0]]}/" if close else ""


def _digest(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
