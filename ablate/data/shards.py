"""Reads pairs that are files beside each other: members of tar shards, or a directory's files."""

from __future__ import annotations

import json
import lzma
import os
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ablate.data.rows import IMAGE_SUFFIXES, MAX_BYTES, Row, Source, inside, make_row, with_bytes
from blocks import UsageError

TEXT_SUFFIXES = ("txt", "json")


def open_shards(shards: Sequence[Path]) -> Source:
    """Return the pairs of tar or tar.gz shards, as img2dataset writes them."""
    return Source(shards, lambda: (row for shard in shards for row in read_shard(shard)))


def read_shard(shard: Path) -> Iterator[Row]:
    """Iterate over the pairs of a shard; nothing inside is ever run or written to the disk."""
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:*") as archive:
            yield from (sample.row() for sample in _samples(archive))
            _require_end(archive)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(":") or repr(error)
        raise UsageError(f"shard {str(shard)!r} is corrupt: {reason}") from None


@dataclass
class _Sample:
    """The members of one key that stand beside each other."""

    key: str
    problem: str
    members: dict[str, bytes | Path] = field(default_factory=dict)

    def row(self) -> Row:
        if self.problem:
            return Row(self.key, b"", [], problem=self.problem)
        return member_row(self.key, self.members)


def _samples(archive: tarfile.TarFile) -> Iterator[_Sample]:
    sample, seen = None, set[str]()
    for member in archive:
        stem, _, suffix = member.name.rpartition(".")
        suffix, problem = suffix.lower(), _member_problem(member)
        if member.isdir() or not (problem or suffix in IMAGE_SUFFIXES + TEXT_SUFFIXES):
            continue
        if sample is None or stem != sample.key or suffix in sample.members:
            if sample is not None:
                yield sample
            sample = _Sample(stem, "key stands twice" if stem in seen else "")
            seen.add(stem)
        sample.problem = sample.problem or problem
        if not problem:
            file = archive.extractfile(member)
            assert file is not None, member.name
            sample.members[suffix] = file.read()
    if sample is not None:
        yield sample


def _member_problem(member: tarfile.TarInfo) -> str:
    if not member.isreg():
        return "member is a link or a device"
    if inside(Path(), member.name) is None:
        return "member's name leads out of the archive"
    return f"file above {MAX_BYTES >> 20} MiB" if member.size > MAX_BYTES else ""


def _require_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive without its end mark: tarfile takes one that was cut short for whole."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends in the middle (no end-of-archive mark)")


def open_folder(directory: Path) -> Source:
    """Return the pairs of a directory and all below it: an image beside its .txt or .json."""
    by_key: dict[str, dict[str, Path]] = defaultdict(dict)
    for place, _, names in os.walk(directory, onerror=_refuse):
        for name in names:
            stem, _, suffix = name.rpartition(".")
            if stem and suffix.lower() in IMAGE_SUFFIXES + TEXT_SUFFIXES:
                path = Path(place, name)
                by_key[str(path.with_name(stem).relative_to(directory))][suffix.lower()] = path
    # A .json alone is no pair: img2dataset writes its statistics so.
    pairs = {key: by_key[key] for key in sorted(by_key) if set(by_key[key]) != {"json"}}
    files = [path for members in pairs.values() for path in members.values()]
    return Source(files, lambda: (_folder_row(key, members) for key, members in pairs.items()))


def _refuse(error: OSError) -> None:
    raise UsageError(f"cannot read directory {error.filename!r}: {error.strerror}")


def _folder_row(key: str, members: Mapping[str, Path]) -> Row:
    read: dict[str, bytes | Path] = dict(members)
    for suffix in TEXT_SUFFIXES:
        if suffix in members:
            row = with_bytes(Row(key, members[suffix], []))
            if row.problem:
                return row._replace(problem=row.problem.replace("image", "caption"))
            read[suffix] = row.image
    return member_row(key, read)


def member_row(key: str, members: Mapping[str, bytes | Path]) -> Row:
    """Return the pair that an image and the .txt and .json of its name are."""
    images = [members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members]
    text, facts = members.get("txt", b""), members.get("json", b"{}")
    assert isinstance(text, bytes), key
    assert isinstance(facts, bytes), key
    if len(images) != 1:
        few = "no image beside the caption (members of a pair must be neighbours)"
        return Row(key, b"", [], problem="two images of one name" if images else few)
    try:
        said, content = text.decode("utf-8-sig"), json.loads(facts)
    except UnicodeDecodeError:
        return Row(key, b"", [], problem="text is not UTF-8")
    except (ValueError, RecursionError):
        return Row(key, b"", [], problem="JSON cannot be read")
    if not isinstance(content, dict):
        return Row(key, b"", [], problem="JSON is no object")
    captions = content.get("captions") or content.get("caption") or said
    return make_row(key, images[0], captions, content.get("split"))
