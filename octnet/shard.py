"""A shard: one file of a pack, written whole or not at all; the same images and settings give the same bytes."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from octnet.options import UserError
from octnet.packed import CHECKSUM_BYTES, map_shard
from octnet.readers import read_image

CHROMA = "4:2:0"  # subsampling
ENCODER = f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"


@dataclass(frozen=True)
class Shard:
    """One file to write."""

    path: Path
    folder: str
    files: np.ndarray  # bytes, relative to the folder
    short_side_px: int
    quality: int

    def whole(self) -> tuple[int, str] | None:
        """Return the bytes and the checksum of the file if it was written before, or None."""
        try:
            content = map_shard(self.path, len(self.files))[0]
        except UserError:
            return None
        return len(content), content[-CHECKSUM_BYTES:].tobytes().hex()


def write_shard(shard: Shard, on_image: Callable[[], None]) -> None:
    """Write one file, whole or not at all; `on_image` is called after each image, and may raise."""
    part = shard.path.with_suffix(".part")
    checksum, ends = hashlib.sha256(), np.zeros(len(shard.files), "<u8")
    try:
        with open(part, "wb") as file:

            def write(content: bytes) -> None:
                file.write(content)
                checksum.update(content)

            for i, name in enumerate(shard.files):
                write(encode(os.path.join(shard.folder, os.fsdecode(name)), shard.short_side_px, shard.quality))
                ends[i] = file.tell()
                on_image()
            write(ends.tobytes())
            file.write(checksum.digest())
        os.replace(part, shard.path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def encode(path: str, short_side_px: int, quality: int) -> bytes:
    """Return an image file as a JPEG whose short side is at most `short_side_px`; UserError if it can't be read."""
    image = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    if min(image.size) > short_side_px:
        width, height = (int(short_side_px * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # the filter of validation's own resize
    file = BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=CHROMA)
    return file.getvalue()
