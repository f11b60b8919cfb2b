"""Every image file becomes the pixels that Pillow gives, whatever decodes it."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from octnet.decoding import decode
from octnet.options import UserError


def encoded(mode: str = "RGB", kind: str = "JPEG", **options: Any) -> bytes:
    """A noisy gradient of odd size."""
    y, x = np.mgrid[:61, :83]
    noise = np.random.default_rng(0).integers(0, 40, (61, 83, 3))
    pixels = np.stack([2 * x + y, 200 - 2 * x, 3 * y], 2) % 216 + noise
    file = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation of a camera held upright
    return exif


FILES = {
    "jpeg": encoded(),
    "full chroma": encoded(subsampling="4:4:4"),
    "half chroma": encoded(subsampling="4:2:2"),
    "progressive": encoded(progressive=True),
    "grey": encoded("L"),
    "rgb": encoded(keep_rgb=True),
    "cmyk": encoded("CMYK"),
    "rotated": encoded(exif=rotated()),
    "restarts": encoded(restart_marker_blocks=3),
    "bytes after the end": encoded() + b"more",
    "bytes between": encoded().replace(
        b"\xff\xda", b"garbage\xff\xda", 1
    ),  # Pillow reads over them, simplejpeg doesn't
    "png": encoded(kind="PNG"),
    "png with alpha": encoded("RGBA", "PNG"),
    "palette": encoded("P", "GIF"),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("as_array", [False, True])
def test_pixels_are_pillows(file: str, as_array: bool) -> None:
    data = FILES[file]
    expected = np.array(Image.open(BytesIO(data)).convert("RGB"))
    image = decode(np.frombuffer(data, np.uint8) if as_array else data, "")
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert image.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("data", [b"", b"text", FILES["jpeg"][:-300], FILES["jpeg"][:-2], FILES["png"][:-300]])
def test_what_pillow_refuses_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^a/b.jpg: cannot be read as an image: [^\n]+$"):
        decode(data, "a/b.jpg")
