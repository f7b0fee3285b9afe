"""One pair as it stands in a source, and the rules that hold for the pairs of every format."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "restval": "train",  # Karpathy's name for what COCO's own validation set adds to training
    "validation": "val",
    "valid": "val",
    "dev": "val",
}
IMAGE_SUFFIXES = ("webp", "jpg", "jpeg", "png")
MAX_BYTES = 64 * 2**20  # of one image or text; more is an accident or an attack
MAX_WORDS, MAX_LETTERS = 1000, 10_000  # of one caption; more is a page, not a caption


class Row(NamedTuple):
    """One pair: its image as bytes or as the file to read them from, and what stands beside it."""

    key: str
    image: bytes | Path
    captions: list[str]
    split: str | None = None
    problem: str = ""  # why the pair cannot be used, if it cannot
    weight: int = 1  # how often an epoch of training shows it


@dataclass(frozen=True)
class Source:
    """Where rows come from: all files that decide them, and a way to go through them again."""

    files: Sequence[Path]
    read: Callable[[], Iterator[Row]]

    def rows(self) -> Iterator[Row]:
        """Iterate over the rows, each with its image's bytes or with a problem."""
        return map(with_bytes, self.read())

    def stamps(self) -> list[list[Any]]:
        """Return what tells, without reading them, whether any of the files has changed."""
        return [_stamp(path) for path in self.files]


@dataclass
class Problems:
    """Unusable pairs by reason: how many, and the key of the first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, key: str) -> None:
        """Count a pair that cannot be used."""
        self.counts[reason] += 1
        self.first.setdefault(reason, key.encode(errors="replace").decode())


def make_row(key: str, image: bytes | Path, captions: object, split: object = None) -> Row:
    """Return a pair with tidy captions, or with the reason why it cannot be used."""
    texts = captions if isinstance(captions, list) else [captions]
    texts = [caption for caption in texts if caption is not None]
    problem = next(filter(None, map(_caption_problem, texts)), "")
    words = [] if problem else [str(caption).split() for caption in texts]
    clean = [" ".join(text) for text in words if text]
    if not problem and not clean:
        problem = "no caption"
    if split in (None, ""):
        return Row(key, image, clean, None, problem)
    if not isinstance(split, str) or split not in SPLIT_NAMES:
        return Row(key, image, clean, None, problem or f"split is none of {', '.join(SPLIT_NAMES)}")
    return Row(key, image, clean, SPLIT_NAMES[split], problem)


def _caption_problem(caption: object) -> str:
    if not isinstance(caption, str):
        return "caption is not text"
    if len(caption) > MAX_LETTERS or len(caption.split()) > MAX_WORDS:
        return f"caption above {MAX_WORDS} words or {MAX_LETTERS} letters"
    try:
        caption.encode()
    except UnicodeEncodeError:  # bytes that were no UTF-8, or half of a surrogate pair in JSON
        return "text is not UTF-8"
    return ""


def file_row(key: str, directory: Path, name: object, captions: object, split: object) -> Row:
    """Return a pair whose image is a file, named by somebody else, in a directory of the user's."""
    path = inside(directory, name) if isinstance(name, str) else None
    if path is None:
        return Row(key, b"", [], problem="image path leads out of the images directory")
    return make_row(key, path, captions, split)


def inside(directory: Path, name: str) -> Path | None:
    """Return the path of a name in a directory, or None where the name could lead out of it."""
    parts = PureWindowsPath(name)  # knows both slashes and drives
    return None if parts.anchor or ".." in parts.parts or not parts.name else directory / name


def with_bytes(row: Row) -> Row:
    """Return the row with its image read."""
    if row.problem or isinstance(row.image, bytes):
        return row
    try:
        if not row.image.is_file():  # a pipe or a device would be read for ever
            return row._replace(image=b"", problem="image file is missing")
        if row.image.stat().st_size > MAX_BYTES:
            return row._replace(image=b"", problem=f"file above {MAX_BYTES >> 20} MiB")
        return row._replace(image=row.image.read_bytes())
    except OSError:
        return row._replace(image=b"", problem="image file cannot be read")


def _stamp(path: Path) -> list[Any]:
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return [str(path)]
    return [str(path.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def same_words(caption: str) -> str:
    """Return what two captions share when a model cannot tell them apart."""
    return unicodedata.normalize("NFKC", caption).casefold()
