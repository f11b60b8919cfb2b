"""MXNet's `.params` files, read without MXNet: named tensors, as `mx.nd.save` writes them.

    file   u64 0x112, u64 0, u64 n, n arrays, u64 n, n names
    array  u32 version, [i32 storage], u32 rank, i64 for each dimension, i32 device, i32 its number, i32 type, the numbers
    name   u64 length, that many bytes of UTF-8

Little-endian. MXNet 1.x writes versions 2 and 3 (numpy shapes); version 1 has no storage, and before it a record began with the
rank, its dimensions u32. (Layout: MXNet 1.9.1, which reads all four.)
"""

import math
import mmap
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octnet.options import UserError

HEAD = struct.pack("<QQ", 0x112, 0)
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_TYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}
_MAX_RANK = 8  # a rank above it is not a weight, and is how a random first word is recognised


def read_params(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.params` file, or of the one in a plain `.tar`, by their names in it.

    Nothing is unpacked to disk, and no more memory is taken than the file has bytes. Raises UserError for anything else.
    """
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise UserError(f"{path}: cannot be read: {error}") from error
    if content[257:262] == b"ustar":
        return _Cursor(f"{path}", content, *_member(path, len(content))).tensors()
    return _Cursor(f"{path}", content, 0, len(content)).tensors()


def is_params(path: Path) -> bool:
    """Whether a file has to be read as `.params`: all but what torch.save writes, a zip archive or a pickle."""
    try:
        with open(path, "rb") as file:
            return file.read(2) not in (b"PK", b"\x80\x02")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _member(path: Path, size: int) -> tuple[int, int]:
    """Where the one `.params` file of an archive begins and ends: a tar holds its files as they are."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [m for m in archive if m.isreg() and m.name.endswith(".params")]
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read as a tar archive: {error}") from error
    if len(members) != 1:
        names = ", ".join(repr(m.name) for m in members[:5]) or "none"
        raise UserError(f"{path}: an archive of one .params file is needed; this one holds {len(members)}: {names}")
    (member,) = members
    begin, end = member.offset_data, member.offset_data + member.size
    if member.issparse() or not 0 <= begin <= end <= size:
        raise UserError(f"{path}: the archive is damaged: it doesn't hold all of {member.name!r}")
    return begin, end


class _Cursor:
    """A place in the file, which moves on with what is read."""

    def __init__(self, path: str, content: mmap.mmap, begin: int, end: int) -> None:
        self.path, self.content, self.at, self.end = path, content, begin, end

    def error(self, reason: str) -> UserError:
        """The error to raise."""
        return UserError(f"{self.path}: not a .params file: {reason}")

    def skip(self, size: int, what: str) -> int:
        """Moves past `size` bytes that the file really has; returns where they begin."""
        if size > self.end - self.at:
            raise self.error(f"it ends in the middle of {what}")
        self.at += size
        return self.at - size

    def read(self, layout: str, what: str) -> tuple[Any, ...]:
        """Numbers of a struct layout."""
        return struct.unpack_from(f"<{layout}", self.content, self.skip(struct.calcsize(f"<{layout}"), what))

    def tensors(self) -> dict[str, Tensor]:
        """The whole file."""
        if self.content[self.at : self.at + len(HEAD)] != HEAD:
            raise self.error("it doesn't begin as MXNet writes them")
        self.skip(len(HEAD), "its head")
        (count,) = self.read("Q", "its head")
        arrays = [self.array(f"array {i + 1} of {count}") for i in self.counted(count)]
        (named,) = self.read("Q", "its names")
        if named != count:
            raise self.error(f"it has {count} arrays and {named} names")
        tensors: dict[str, Tensor] = {}
        for array in arrays:
            name = self.name()
            if name in tensors:
                raise self.error(f"two of its arrays are called {name!r}")
            tensors[name] = array
        if self.at != self.end:
            raise self.error(f"{self.end - self.at} bytes follow its end")
        return tensors

    def counted(self, count: int) -> Iterator[int]:
        """0, 1, … of a count that the rest of the file has room for, at 8 bytes and more each."""
        if count > (self.end - self.at) // 8:
            raise self.error(f"it announces {count} arrays, more than it has room for")
        return iter(range(count))

    def array(self, what: str) -> Tensor:
        """One array."""
        (version,) = self.read("I", what)
        if version in (_V2, _V3):
            (storage,) = self.read("i", what)
            if storage != 0:
                raise self.error(f"{what} is sparse (storage type {storage})")
        rank = version if version not in (_V1, _V2, _V3) else self.read("I", what)[0]
        if not 1 <= rank <= _MAX_RANK:
            raise self.error(f"{what} begins with {version:#x}, and has {rank} dimensions")
        shape = self.read(f"{rank}{'q' if version in (_V1, _V2, _V3) else 'I'}", what)
        if min(shape) < 1:
            raise self.error(f"{what} has the shape {shape}")
        _, _, code = self.read("iii", what)
        if code not in _TYPES:
            raise self.error(f"{what} has the unknown number type {code}")
        dtype, count = np.dtype(_TYPES[code]), math.prod(shape)
        begin = self.skip(count * dtype.itemsize, f"{what}, of shape {shape}")
        numbers = np.frombuffer(self.content, dtype, count, begin).reshape(shape)
        return torch.from_numpy(numbers.astype(dtype.newbyteorder("=")))  # a copy: aligned, and writable

    def name(self) -> str:
        """One name."""
        (length,) = self.read("Q", "its names")
        begin = self.skip(length, "its names")
        try:
            return self.content[begin : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.error("a name is not UTF-8") from error
