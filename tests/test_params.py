"""Reading MXNet's files: what MXNet wrote and reads, and everything else refused in one line."""

import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from octnet.options import UserError
from octnet.params import is_params, read_params

FIXTURES = Path(__file__).parent / "published"
NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)
RECORDS = {  # one array in each version of the format; MXNet 1.9.1 reads all of them as NUMBERS
    "version 1": struct.pack("<IIqq", 0xF993FAC8, 2, 2, 3),
    "version 2": struct.pack("<IiIqq", 0xF993FAC9, 0, 2, 2, 3),
    "version 3": struct.pack("<IiIqq", 0xF993FACA, 0, 2, 2, 3),
    "before 1": struct.pack("<III", 2, 2, 3),
}


def record(head: bytes = RECORDS["version 2"], dtype: int = 0, data: bytes = NUMBERS.tobytes()) -> bytes:
    """An array: its version and shape, device (2: a GPU), number type, numbers."""
    return head + struct.pack("<iii", 2, 1, dtype) + data


def params(*records: bytes, names: tuple[bytes, ...] = (b"a",), count: int | None = None) -> bytes:
    """A whole file."""
    head = struct.pack("<QQQ", 0x112, 0, len(records) if count is None else count)
    tail = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return head + b"".join(records) + struct.pack("<Q", len(names)) + tail


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def archive(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))
    return path


def refusal(path: Path) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(UserError) as caught:
        read_params(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("head", RECORDS.values(), ids=RECORDS)
def test_every_version(head: bytes, tmp_path: Path) -> None:
    (tensor,) = read_params(write(tmp_path / "x.params", params(record(head)))).values()
    assert torch.equal(tensor, torch.from_numpy(NUMBERS))


def test_what_mxnet_wrote() -> None:
    """`mx.nd.save` with numpy's shapes: float32 and int64."""
    tensors = read_params(FIXTURES / "numpy_shape.params")
    assert list(tensors) == ["a", "b"]
    assert torch.equal(tensors["a"], torch.arange(6, dtype=torch.float32).view(2, 3))
    assert torch.equal(tensors["b"], torch.ones(4, dtype=torch.int64))


@pytest.mark.parametrize("code", range(7))
def test_number_types(code: int, tmp_path: Path) -> None:
    dtype = ("f4", "f8", "f2", "u1", "i4", "i1", "i8")[code]
    content = params(record(dtype=code, data=NUMBERS.astype(f"<{dtype}").tobytes()))
    (tensor,) = read_params(write(tmp_path / "x.params", content)).values()
    assert tensor.numpy().dtype == np.dtype(dtype)
    assert np.array_equal(tensor.numpy(), NUMBERS)


def test_file_in_an_archive(tmp_path: Path) -> None:
    """Whatever its name says; nothing is unpacked."""
    members = {"x/x-symbol.json": b"{}", "../../x-0000.params": params(record())}
    (tensor,) = read_params(archive(tmp_path / "x.tar", members)).values()
    assert torch.equal(tensor, torch.from_numpy(NUMBERS))
    assert os.listdir(tmp_path) == ["x.tar"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"\x12", "begin"),
        (params(record()).replace(b"\x12\x01", b"\x12\x02", 1), "begin"),
        (params(record()) + b"\0", "1 bytes follow"),
        (params(record(), names=()), "1 arrays and 0 names"),
        (params(record(), record(), names=(b"w", b"w")), "called 'w'"),
        (params(record(), names=(b"\xff",)), "UTF-8"),
        (params(record(), count=2**63), "9223372036854775808 arrays"),
        (params(record(), count=2), "array 2 of 2"),
        (params(record(struct.pack("<Ii", 0xF993FAC9, 1))), "sparse"),
        (params(record(struct.pack("<IiI", 0xF993FAC9, 0, 0))), "0 dimensions"),
        (params(record(struct.pack("<IiI", 0xF993FAC9, 0, 2**31))), "2147483648 dimensions"),
        (params(record(struct.pack("<I", 0xDEADBEEF))), "0xdeadbeef"),
        (params(record(struct.pack("<IiIqq", 0xF993FAC9, 0, 2, 2**40, 2**40))), "of shape (1099511627776"),
        (params(record(struct.pack("<IiIqq", 0xF993FAC9, 0, 2, -2, -3))), "(-2, -3)"),
        (params(record(struct.pack("<IiIqq", 0xF993FAC9, 0, 2, 0, 2**62))), "shape (0, "),
        (params(record(dtype=12)), "number type 12"),
        (params(record())[:-9] + struct.pack("<Q", 2**64 - 1) + b"a", "middle of its names"),
    ],
)
def test_refused(content: bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(write(tmp_path / "x.params", content))


def test_cut_off_anywhere(tmp_path: Path) -> None:
    content = params(record(), record(RECORDS["before 1"]), names=(b"a", b"bc"))
    for length in range(len(content)):
        refusal(write(tmp_path / "x.params", content[:length]))


@pytest.mark.parametrize(
    ("members", "kind", "words"),
    [
        ({"x.json": b"{}"}, tarfile.REGTYPE, "holds 0: none"),
        ({"a.params": b"", "b.params": b""}, tarfile.REGTYPE, "holds 2: 'a.params', 'b.params'"),
        ({"a.params": b""}, tarfile.SYMTYPE, "holds 0"),
        ({"a.params": b""}, tarfile.LNKTYPE, "holds 0"),
        ({"a.params": b"1" * 600}, tarfile.GNUTYPE_SPARSE, "damaged"),
        ({"a.params": b"1"}, tarfile.REGTYPE, "begin"),
    ],
)
def test_archive_refused(members: dict[str, bytes], kind: bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(archive(tmp_path / "x.tar", members, kind))


def test_cut_off_archive(tmp_path: Path) -> None:
    content = archive(
        tmp_path / "x.tar", {"x.params": params(record(data=bytes(24), head=RECORDS["version 2"]))}
    ).read_bytes()
    for length in (300, 512, 520, 600):
        refusal(write(tmp_path / "x.tar", content[:length]))


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "x.params", tmp_path):
        assert "cannot be read" in refusal(path)
        with pytest.raises(UserError, match="cannot be read"):
            is_params(path)


@pytest.mark.parametrize("packed", [False, True], ids=["params", "tar"])
def test_damaged_at_random(packed: bool, tmp_path: Path) -> None:
    """Read or refused, whatever is written over it, and never much memory: no other exception."""
    rng = np.random.default_rng(0)
    whole = params(record(), record(RECORDS["before 1"]), names=(b"a", b"bc"))
    if packed:
        whole = archive(tmp_path / "whole.tar", {"x.params": whole}).read_bytes()
    refused = 0
    for _ in range(300):
        content = np.frombuffer(whole, np.uint8).copy()
        at = rng.integers(0, min(len(content), 900), rng.integers(1, 5))
        content[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))], len(at))
        try:
            read_params(write(tmp_path / "x.params", content.tobytes()))
        except UserError:
            refused += 1
    assert refused > 100
