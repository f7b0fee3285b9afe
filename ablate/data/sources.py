"""Sources of image-caption pairs by URI, decoded once per machine into a memory-mapped cache.

``embedded:NAME`` is a set that ships with the package; ``webdataset:PATTERN`` reads your own
.tar or .tar.gz shards (a glob) with ``.jpg/.jpeg/.png/.webp`` beside ``.txt`` or ``.json``.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ablate.files import cache_directory, digest
from blocks import UsageError
from blocks.errors import unknown

SPLITS = ("train", "val", "test")
EMBEDDED = Path(__file__).parent / "embedded"
IMAGE_SUFFIXES = ("webp", "jpg", "jpeg", "png")
MAX_PIXELS = 64_000_000
MAX_SKIPPED = 0.01  # above this share of unusable pairs a source is refused
CACHE_VERSION = 1


class Row(NamedTuple):
    """One pair as it stands in a source."""

    key: str
    image: bytes
    captions: list[str]
    split: str | None
    problem: str = ""  # why the pair cannot be used, if it cannot


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A decoded set: images uint8 [n s s 3], captions, splits and caption groups.

    Pairs that share a caption are of one group: they are no negatives of each other, and stand in
    one split. ``fingerprint`` is a hash of the content; ``skipped`` counts pairs by reason.
    """

    uri: str
    images: np.ndarray[Any, np.dtype[np.uint8]]
    captions: list[list[str]]
    splits: list[str]
    groups: list[int]
    fingerprint: str
    skipped: dict[str, int]

    def indices(self, split: str) -> list[int]:
        """Return the rows of a split."""
        return [i for i, name in enumerate(self.splits) if name == split]


def embedded_names() -> list[str]:
    """Return the names of the sets that ship with the package."""
    return sorted(path.name.removesuffix("-64.tar.gz") for path in EMBEDDED.glob("*-64.tar.gz"))


def open_pairs(uri: str, size: int) -> Pairs:
    """Return the pairs of a source with images of ``size`` pixels, decoded at most once.

    Raises `UsageError` for an unknown source, a missing path, a corrupt shard or an empty set.
    """
    shards = find_shards(uri)
    contents = [hashlib.sha256(_read(shard)).hexdigest() for shard in shards]
    key = digest([CACHE_VERSION, contents, size])
    directory = cache_directory() / "decoded" / key[:32]
    if not (directory / "pairs.json").exists():
        _decode_into(directory, uri, shards, size)
    facts = json.loads((directory / "pairs.json").read_text(encoding="utf-8"))
    images = np.load(directory / "images.npy", mmap_mode="r", allow_pickle=False)
    return Pairs(uri=uri, images=images, **facts)


def find_shards(uri: str) -> list[Path]:
    """Return the files that a URI names, sorted."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in ("embedded", "webdataset"):
        raise UsageError(
            f"cannot read data {uri!r}; write embedded:NAME ({', '.join(embedded_names())}) "
            "or webdataset:PATTERN, such as webdataset:/data/cc12m/*.tar"
        )
    if scheme == "embedded":
        if rest not in embedded_names():
            raise unknown("embedded data set", rest, embedded_names())
        return [EMBEDDED / f"{rest}-64.tar.gz"]
    if not rest:
        raise UsageError("data 'webdataset:' names no file; write webdataset:/data/*.tar")
    found = sorted(Path(name) for name in glob.glob(str(Path(rest).expanduser())))
    if not found:
        raise UsageError(f"no file matches {rest!r} (data {uri!r})")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read data file {str(path)!r}: {error.strerror}") from None


def read_rows(shard: Path) -> Iterator[Row]:
    """Iterate over the pairs of a shard; names inside are labels and never touch the disk."""
    sample: dict[str, bytes] = {}
    current = None
    try:
        with tarfile.open(fileobj=io.BytesIO(_read(shard)), mode="r:*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                stem, _, suffix = member.name.rpartition(".")
                if stem != current and sample:
                    yield _row(current or "", sample)
                    sample = {}
                current = stem
                file = archive.extractfile(member)
                assert file is not None, member.name
                sample[suffix.lower()] = file.read()
            _require_end(archive)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = str(error).partition("\n")[0].rstrip(":") or repr(error)
        raise UsageError(f"shard {str(shard)!r} is corrupt: {reason}") from None
    if sample:
        yield _row(current or "", sample)


def _require_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive without its end mark: tarfile takes one that was cut short for whole."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends in the middle (no end-of-archive mark)")


def _row(key: str, sample: dict[str, bytes]) -> Row:
    image = next((sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample), b"")
    try:
        facts = json.loads(sample["json"]) if "json" in sample else {}
        text = sample.get("txt", b"").decode("utf-8")
    except UnicodeDecodeError:
        return Row(key, image, [], None, "text is not UTF-8")
    except ValueError:
        return Row(key, image, [], None, "JSON cannot be read")
    if not isinstance(facts, dict):
        return Row(key, image, [], None, "JSON is no object")
    given = facts.get("captions") or facts.get("caption") or text
    captions = given if isinstance(given, list) else [given]
    if not all(isinstance(caption, str) for caption in captions):
        return Row(key, image, [], None, "caption is not text")
    clean = [" ".join(caption.split()) for caption in captions if caption.strip()]
    split, problem = facts.get("split"), ""
    if not image:
        problem = "no image beside the caption (members of a pair must be neighbours)"
    elif not clean:
        problem = "no caption"
    elif split not in (None, *SPLITS):
        problem = f"split is none of {', '.join(SPLITS)}"
    return Row(key, image, clean, split, problem)


def decode(image: bytes, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return RGB pixels [s s 3] on white, the longer side cropped; raises ValueError or OSError."""
    with Image.open(io.BytesIO(image)) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError("too many pixels")
        upright = ImageOps.exif_transpose(opened)
        rgba = upright.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    rgb = Image.alpha_composite(white, rgba).convert("RGB")
    if rgb.size != (size, size):
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def _decode_into(directory: Path, uri: str, shards: list[Path], size: int) -> None:
    """Decode all shards into a new cache entry; a second writer at the same time does no harm."""
    rows, pixels, skipped = [], [], Counter[str]()
    for row in (row for shard in shards for row in read_rows(shard)):
        if row.problem:
            skipped[row.problem] += 1
            continue
        try:
            pixels.append(decode(row.image, size))
        except (OSError, ValueError, Image.DecompressionBombError):
            skipped["image cannot be decoded"] += 1
            continue
        rows.append(row)
    _refuse_poor(uri, len(rows), skipped)
    images = np.stack(pixels)
    groups = group_by_caption([row.captions for row in rows])
    splits = assign_splits(rows, groups)
    facts: dict[str, Any] = {
        "captions": [row.captions for row in rows],
        "splits": splits,
        "groups": groups,
        "skipped": dict(sorted(skipped.items())),
    }
    content = hashlib.sha256(images.tobytes())
    content.update(digest([facts["captions"], splits]).encode())
    facts["fingerprint"] = content.hexdigest()
    _store(directory, images, facts)


def _refuse_poor(uri: str, usable: int, skipped: Counter[str]) -> None:
    lost = sum(skipped.values())
    reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(skipped.items()))
    if not usable:
        raise UsageError(f"data {uri!r} holds no usable pair ({reasons or 'no image at all'})")
    if lost > MAX_SKIPPED * (usable + lost):
        raise UsageError(
            f"data {uri!r}: {lost} of {usable + lost} pairs cannot be used ({reasons}); "
            f"at most {MAX_SKIPPED:.0%} may be skipped"
        )


def _store(directory: Path, images: np.ndarray[Any, Any], facts: dict[str, Any]) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent))
    try:
        np.save(temporary / "images.npy", images, allow_pickle=False)
        (temporary / "pairs.json").write_text(json.dumps(facts), encoding="utf-8")
        os.replace(temporary, directory)
    except OSError:
        if not (directory / "pairs.json").exists():
            raise
    finally:  # another process was first: its entry is the same
        shutil.rmtree(temporary, ignore_errors=True)


def group_by_caption(captions: list[list[str]]) -> list[int]:
    """Return a group number per pair; pairs that share a caption, ignoring case, share it."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for first, *rest in captions:
        for other in rest:
            parent[find(other.casefold())] = find(first.casefold())
    numbers: dict[str, int] = {}
    return [numbers.setdefault(find(first.casefold()), len(numbers)) for first, *_ in captions]


def assign_splits(rows: list[Row], groups: list[int]) -> list[str]:
    """Return the split of each row: as given, else by a hash of the caption (90/5/5).

    A group never spans splits: a set whose own splits share a caption is refused.
    """
    chosen: dict[int, str] = {}
    for row, group in zip(rows, groups, strict=True):
        if row.split and chosen.setdefault(group, row.split) != row.split:
            raise UsageError(
                f"caption {row.captions[0]!r} stands in the splits {chosen[group]!r} and "
                f"{row.split!r}; results on held-out data would be flattered"
            )
    for row, group in zip(rows, groups, strict=True):
        if group not in chosen:
            bucket = int(hashlib.sha256(row.captions[0].casefold().encode()).hexdigest(), 16) % 20
            chosen[group] = "val" if bucket == 0 else "test" if bucket == 1 else "train"
    return [chosen[group] for group in groups]
