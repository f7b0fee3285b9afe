"""Small samples for tests: drawn images with captions, tar shards, and a cell of milliseconds."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from assemblies import CoCaConfig, preset, with_field
from assemblies.interop import _cell_of, entries

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
SHAPES = ("square", "bar", "dot", "frame")

Member = tuple[str, bytes]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def draw(colour: str, shape: str, place: int) -> bytes:
    pixels = np.full((32, 32, 3), 255, dtype=np.uint8)
    x, y = 4 + 2 * (place % 5), 4 + 2 * (place // 5 % 5)
    height, width = {"square": (12, 12), "bar": (5, 18), "dot": (5, 5), "frame": (14, 14)}[shape]
    pixels[y : y + height, x : x + width] = COLOURS[colour]
    if shape == "frame":
        pixels[y + 3 : y + height - 3, x + 3 : x + width - 3] = 255
    return png(pixels)


def shapes_rows(count: int = 200) -> list[Member]:
    members: list[Member] = []
    for i in range(count):
        colour, shape = list(COLOURS)[i % 3], SHAPES[i // 3 % 4]
        caption = f"a {colour} {shape} number {i}"
        split = "val" if i % 10 == 8 else "test" if i % 10 == 9 else "train"
        facts = {"caption": caption, "captions": [caption, f"{colour} {shape} {i}"], "split": split}
        members.append((f"{i:06d}.png", draw(colour, shape, i)))
        members.append((f"{i:06d}.json", json.dumps(facts).encode()))
    return members


def write_shard(path: Path, members: Iterable[Member], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


SMALL = {
    "image.size": 32, "image.patch": 8, "image.depth": 1, "image.width": 32, "image.heads": 2,
    "text.depth": 1, "text.heads": 2,
    "multimodal.depth": 1, "multimodal.heads": 2, "width": 32, "embedding": 32,
    "vocabulary": 400, "context": 24,
}  # fmt: skip


def small(name: str = "grr", **changes: object) -> CoCaConfig:
    """Return a preset shrunk until a test takes milliseconds."""
    cell = preset(name)
    fewer = {"image.pooling": "cascade(queries=4)"} if "cascade" in cell.image.pooling else {}
    for path, value in {**SMALL, **fewer, **changes}.items():
        cell = with_field(cell, path, value)
    return cell


def foreign_tokenizer(path: Path, *marks: str) -> Path:
    """Write a tokenizer of words with marks of other names, at the end of its ids."""
    words = {w: i for i, w in enumerate(("!", "a", "red", "green", "blue", "square"))}
    vocabulary = {**words, **{m: len(words) + i for i, m in enumerate(marks)}, "[UNK]": 50}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(marks))
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(path))
    return path


def open_clip_state(patch: int, width: int, text: int) -> dict[str, torch.Tensor]:
    """Return a random state dict of open_clip's layout, one layer to a tower, without open_clip."""
    table = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (5, width),
        "text_decoder.text_projection": (text, 300),
        "visual.attn_pool.query": (9, text),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (4 * width, width),
        "text.transformer.resblocks.0.x": (),
        "text_decoder.resblocks.0.x": (),
        "visual.proj": (text, text),
        "text.positional_embedding": (13, text),
    }
    rough = {name: torch.empty(shape) for name, shape in table.items()}
    cell = _cell_of(rough, True, 64, 8)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        for entry in entries(cell)
        for name, shape in entry.theirs.items()
    }
