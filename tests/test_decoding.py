"""Every image file becomes the pixels that Pillow gives, whatever decodes it."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from octnet.decoding import decode, whole
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


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("bottom", [1, 15, 16, 31, 40, 61])
def test_a_part_is_cut_from_the_same_pixels(file: str, bottom: int) -> None:
    sizes = []

    def choose(height: int, width: int) -> tuple[slice, slice]:
        sizes.append((height, width))
        return slice(bottom // 2, bottom), slice(7, 70)

    image = decode(FILES[file], "", choose)
    expected = np.array(Image.open(BytesIO(FILES[file])).convert("RGB"))[bottom // 2 : bottom, 7:70]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert image.permute(1, 2, 0).is_contiguous()
    assert sizes == [(61, 83)]  # once: it draws random numbers


@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_part_at_the_top_is_decoded_without_the_rest(chroma: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def watched(data: bytes, **options: Any) -> np.ndarray:
        decoded.append(pixels := decode_jpeg(data, **options))
        return pixels

    decode_jpeg = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", watched)
    y = np.arange(300)[:, None, None] % 256 * np.ones((1, 40, 3))
    file = BytesIO()
    Image.fromarray(y.astype(np.uint8)).save(file, "JPEG", subsampling=chroma)
    decode(file.getvalue(), "", lambda height, width: (slice(0, 50), slice(0, width)))
    assert [pixels.shape for pixels in decoded] == [(80, 40, 3)]


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("data", [b"", b"text", FILES["jpeg"][:-300], FILES["jpeg"][:-2], FILES["png"][:-300]])
def test_what_pillow_refuses_is_refused_in_one_line(data: bytes, part: bool) -> None:
    with pytest.raises(UserError, match=r"^a/b.jpg: cannot be read as an image: [^\n]+$"):
        decode(data, "a/b.jpg", (lambda height, width: (slice(0, 3), slice(0, 3))) if part else whole)
