"""Turns an image file's bytes into pixels, whatever the mode, and however hostile the file."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # others run more code (EPS starts Ghostscript)
MAX_PIXELS = 64_000_000


class Undecodable(ValueError):  # noqa: N818  (a verdict on a picture, shown as its reason)
    """Raised with the reason why there are no pixels to be had."""


def decode(image: bytes, size: int) -> Pixels:
    """Return RGB pixels [s s 3]: upright, on white, cropped to the middle square, resized.

    The first frame of an animation; 16 bits are cut to 8. Raises `Undecodable`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's doubts about a file: it decodes or not
            return _decode(image, size)
    except Undecodable:
        raise
    except Image.DecompressionBombError:
        raise Undecodable("image has too many pixels") from None
    except Exception:  # on hostile bytes Pillow's parsers raise nearly anything
        raise Undecodable("image cannot be decoded") from None


def _decode(image: bytes, size: int) -> Pixels:
    with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise Undecodable("image has too many pixels")
        opened.draft("RGB", (2 * size, 2 * size))  # a JPEG far too large is decoded at a fraction
        opened.load()
        rgb = _rgb_on_white(ImageOps.exif_transpose(opened))
    if rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def _rgb_on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        grey = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
