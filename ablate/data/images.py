"""Turns an image file's bytes into pixels, whatever the mode, and however hostile the file."""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ablate.data.rows import Row

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # others run more code (EPS starts Ghostscript)
MAX_PIXELS = 64_000_000
MAX_THREADS = 8  # each may hold a picture of MAX_PIXELS


class Undecodable(ValueError):  # noqa: N818  (a verdict on a picture, shown as its reason)
    """Raised with the reason why there are no pixels to be had."""


def decode_rows(rows: Iterable[Row], size: int) -> Iterator[tuple[Row, Pixels | Undecodable]]:
    """Iterate over rows in their order, each with its pixels or with why it has none.

    Threads decode ahead of what is asked for: Pillow lets go of the GIL.
    """
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    ahead: deque[tuple[Row, Future[Pixels | Undecodable]]] = deque()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # Pillow's doubts about a file: it decodes or not
        for row in rows:
            ahead.append((row, pool.submit(_decode_row, row, size)))
            if len(ahead) > 2 * threads:
                first, pixels = ahead.popleft()
                yield first, pixels.result()
        for first, pixels in ahead:
            yield first, pixels.result()


def _decode_row(row: Row, size: int) -> Pixels | Undecodable:
    if row.problem:
        return Undecodable(row.problem)
    assert isinstance(row.image, bytes), row.key
    try:
        return decode(row.image, size)
    except Undecodable as reason:
        return reason


def decode(image: bytes, size: int) -> Pixels:
    """Return RGB pixels [s s 3]: upright, on white, cropped to the middle square, resized.

    The first frame of an animation; 16 bits are cut to 8. Raises `Undecodable`.
    """
    try:
        return _decode(image, size)
    except Undecodable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
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
