"""Encoded images to pixels: simplejpeg (libjpeg-turbo) where it gives Pillow's pixels, Pillow everywhere else."""

from io import BytesIO

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from octnet.options import UserError

Encoded = bytes | np.ndarray  # a file's content; an array is uint8 (n,)

AS_PILLOW = ("YCbCr", "Gray", "RGB")  # CMYK isn't: simplejpeg rounds it differently


def decode(data: Encoded, name: str) -> Tensor:
    """Return an encoded image as RGB uint8 (3, H, W), channels last in memory; EXIF's orientation isn't applied.

    Raises UserError, beginning with `name`, for one that can't be decoded to its end.
    """
    pixels = _decode_jpeg(data)
    if pixels is None:
        try:
            with Image.open(BytesIO(bytes(data))) as image:
                pixels = np.array(image.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, ValueError, struct.error
            raise UserError(f"{name}: cannot be read as an image: {error or type(error).__name__}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_jpeg(data: Encoded) -> np.ndarray | None:
    """Return the pixels (H, W, 3), or None for what Pillow has to decide: other formats, CMYK, anything damaged."""
    try:
        colorspace = simplejpeg.decode_jpeg_header(data)[2]
        return simplejpeg.decode_jpeg(data) if colorspace in AS_PILLOW else None
    except ValueError:
        return None
