"""A pack: a data set's images as JPEGs of one size, in shards that are mapped into memory instead of opened one by one.

<root>/pack.json            settings, classes, images of each class, bytes and SHA-256 of each shard
<root>/<split>/00000.shard  JPEGs end to end; where each ends, little-endian uint64 (n,); SHA-256 of all before
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from torch import Tensor

from octnet.decoding import Choose, decode, whole
from octnet.options import UserError

INDEX = "pack.json"
CHECKSUM_BYTES = 32
REPAIR = "run its pack_data.py command again"


@dataclass
class Split:
    """What a split's folder holds; without shards' facts until packing has ended."""

    images_per_class: list[int]
    images_per_shard: int  # the last shard may have fewer
    shard_bytes: list[int]
    shard_sha256: list[str]

    def images_in(self, shard: int) -> int:
        return min(self.images_per_shard, sum(self.images_per_class) - shard * self.images_per_shard)


@dataclass
class Pack:
    """pack.json."""

    settings: dict[str, Any]
    classes: list[str]
    splits: dict[str, Split]


class PackedImages:
    """A split of a pack: the images of the folder it was made from, in the same order."""

    def __init__(self, root: str, split: str, key: str = "data.root") -> None:
        """Open nothing yet but check every shard's size. Raises UserError naming the file that is missing or damaged."""
        pack = load_pack(root, key)
        self.split = pack.splits[split]
        self.paths = [shard_path(root, split, shard) for shard in range(len(self.split.shard_bytes))]
        self.classes = pack.classes
        self.class_ends = np.cumsum(self.split.images_per_class)
        self.digest = hashlib.sha256("\n".join([*self.classes, *self.split.shard_sha256]).encode()).hexdigest()[:16]
        self.source = "packed: " + ", ".join(f"{key} {pack.settings[key]}" for key in ("short_side_px", "quality"))
        self._shards: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        if not self.paths:
            raise UserError(f"{Path(root, INDEX)}: packing has not ended; {REPAIR}")
        for path, right in zip(self.paths, self.split.shard_bytes, strict=True):
            if not path.is_file() or path.stat().st_size != right:
                raise UserError(f"{path}: is missing or doesn't have its {right} bytes; {REPAIR}")

    def __len__(self) -> int:
        return int(self.class_ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}  # a loader process maps the shards itself

    def load(self, index: int, choose: Choose = whole) -> tuple[Tensor, int]:
        shard, position = divmod(index, self.split.images_per_shard)
        if shard not in self._shards:
            self._shards[shard] = map_shard(self.paths[shard], self.split.images_in(shard))
        content, ends = self._shards[shard]
        jpeg = content[ends[position - 1] if position else 0 : ends[position]]
        image = decode(jpeg, f"{self.paths[shard]}: image {position}", choose)
        return image, int(np.searchsorted(self.class_ends, index, side="right"))


def shard_path(root: str, split: str, shard: int) -> Path:
    return Path(root, split, f"{shard:05}.shard")


def map_shard(path: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a shard's content, uint8, and where its images end, uint64 (images,); UserError if it isn't whole."""
    try:
        content = np.memmap(path, np.uint8, "r").view(np.ndarray)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise UserError(f"{path}: cannot be mapped: {error}") from error
    ends_at = len(content) - CHECKSUM_BYTES - 8 * images
    ends = content[max(ends_at, 0) : -CHECKSUM_BYTES]
    if ends_at <= 0 or ends.view("<u8")[-1] != ends_at:
        raise UserError(f"{path}: is damaged; delete it and {REPAIR}")
    return content, ends.view("<u8")


def load_pack(root: str, key: str = "data.root") -> Pack:
    """Return what pack.json says. Raises UserError if it isn't there, naming the option `key`, or not as written."""
    path = Path(root, INDEX)
    if not path.is_file():
        what = "no pack.json there" if path.parent.is_dir() else "no such folder"
        raise UserError(f"{key}={root}: {what}; scripts/pack_data.py makes a pack of a folder of images")
    try:
        values = json.loads(path.read_bytes())
        if values.pop("sha256") != _checksum(values):
            raise ValueError
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is damaged; delete it and {REPAIR}") from error
    splits = {name: Split(**split) for name, split in values["splits"].items()}
    return Pack(values["settings"], values["classes"], splits)


def save_pack(pack: Pack, root: str) -> None:
    """Write pack.json with its own checksum, whole or not at all."""
    path = Path(root, INDEX)
    part = path.with_name(f"{INDEX}.part")
    values = asdict(pack)
    part.write_text(json.dumps({"sha256": _checksum(values)} | values, indent=1) + "\n")
    os.replace(part, path)


def verify_pack(root: str, progress: Progress) -> int:
    """Return the number of shards, all read and compared with their checksums; UserError names those that differ."""
    splits = load_pack(root, "OUTPUT").splits
    shards = [
        (shard_path(root, name, shard), split.images_in(shard), checksum)
        for name, split in splits.items()
        for shard, checksum in enumerate(split.shard_sha256)
    ]
    damaged = []
    for path, images, checksum in progress.track(shards, description="verifying"):
        content = map_shard(path, images)[0]
        if hashlib.sha256(content[:-CHECKSUM_BYTES].data).hexdigest() != checksum:
            damaged.append(str(path))
    if damaged:
        raise UserError(f"{', '.join(damaged)}: not as written, by the checksum; delete and {REPAIR}")
    return len(shards)


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
