"""Encoded images to pixels: simplejpeg (libjpeg-turbo) where it gives Pillow's pixels, Pillow everywhere else."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from octnet.options import UserError

Encoded = bytes | np.ndarray  # a file's content; an array is uint8 (n,)
Choose = Callable[
    [int, int], tuple[slice, slice]
]  # height and width of an image → the rows and columns that are wanted

AS_PILLOW = ("YCbCr", "Gray", "RGB")  # CMYK isn't: simplejpeg rounds it differently
CUTTABLE = ("444", "422", "420", "Gray")  # blocks of at most 16 rows
FRAME, END = b"\xff\xc0", b"\xff\xd9"
OTHER_FRAMES_AND_SCANS = (0xC1, 0xC2, 0xDA)


def whole(height: int, width: int) -> tuple[slice, slice]:
    """All of an image."""
    return slice(0, height), slice(0, width)


def decode(data: Encoded, name: str, choose: Choose = whole) -> Tensor:
    """Return the chosen part of an image as RGB uint8 (3, H, W), channels last in memory; EXIF isn't applied.

    Raises UserError, beginning with `name`, for an image that can't be decoded.
    """
    pixels, part = None, None
    try:
        height, width, colorspace, chroma = simplejpeg.decode_jpeg_header(data)
        if colorspace in AS_PILLOW:
            part = choose(height, width)
            cut = _cut(data, part[0].stop) if part[0].stop < height and chroma in CUTTABLE else None
            pixels = simplejpeg.decode_jpeg(data if cut is None else cut, strict=cut is None)
    except ValueError:  # other formats than JPEG, and whatever is damaged: Pillow decides
        pass
    if pixels is None:
        pixels = _decode_with_pillow(data, name)
    rows, columns = choose(*pixels.shape[:2]) if part is None else part
    return torch.from_numpy(np.ascontiguousarray(pixels[rows, columns])).permute(2, 0, 1)


def _cut(jpeg: Encoded, rows: int) -> bytearray | None:
    """Return a JPEG that says it is lower, so that decoding stops there; None if it isn't baseline or has no end.

    Its last blocks' chroma has nothing below to be interpolated with: one row of blocks more than wanted is kept.
    """
    if bytes(jpeg[-2:]) != END:  # decoded as far as it goes, and refused
        return None
    content, at = bytearray(jpeg), 2
    while content[at : at + 2] != FRAME:
        segment = content[at : at + 4]  # 0xFF, kind, length from here
        if len(segment) < 4 or segment[0] != 0xFF or segment[1] in OTHER_FRAMES_AND_SCANS:
            return None
        at += 2 + int.from_bytes(segment[2:], "big")
    height = int.from_bytes(content[at + 5 : at + 7], "big")
    content[at + 5 : at + 7] = min(height, rows // 16 * 16 + 32).to_bytes(2, "big")
    return content


def _decode_with_pillow(data: Encoded, name: str) -> np.ndarray:
    try:
        with Image.open(BytesIO(bytes(data))) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, ValueError, struct.error
        raise UserError(f"{name}: cannot be read as an image: {error or type(error).__name__}") from error
