"""Writes a source as WebDataset shards of small images: read once, kept and moved cheaply.

Images are stored without loss, so a pack opened at its own size is the source itself: the same
pixels, batches and fingerprint. A shard holds fixed rows of the source; a finished one is kept
when the same command runs again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from PIL import Image

from ablate.core.files import atomic, digest, read_json, write_json
from ablate.data.images import Undecodable, decode_rows
from ablate.data.pairs import refuse_poor
from ablate.data.rows import Problems, Row, with_bytes
from ablate.data.sources import open_source
from blocks import UsageError


@dataclass(frozen=True)
class PackedShard:
    """What became of some rows of the source."""

    path: Path
    pairs: int
    problems: Problems
    kept: bool  # it was there already


def pack(
    uri: str, out: Path, size: int, per_shard: int, watch: Callable[[PackedShard], None]
) -> list[PackedShard]:
    """Write a source into a directory as shards; ``watch`` hears of each.

    Raises `UsageError` for a directory that holds something else, and at the end for a source with
    too many unusable pairs.
    """
    if size < 1 or per_shard < 1:
        raise UsageError(f"--size and --shard must be at least 1, got {size} and {per_shard}")
    source = open_source(uri)
    files = digest(source.stamps())
    _claim_directory(out, {"uri": uri, "files": files, "size": size, "per_shard": per_shard})
    rows, done = source.read(), list[PackedShard]()
    for first in rows:  # of each shard
        chunk = chain([first], islice(rows, per_shard - 1))
        done.append(_pack_shard(out / f"{len(done):05d}.tar", chunk, size))
        watch(done[-1])
    total = Problems()
    for shard in done:
        total.counts.update(shard.problems.counts)
        total.first = {**shard.problems.first, **total.first}
    refuse_poor(uri, sum(shard.pairs for shard in done), dict(total.counts), total.first)
    return done


def _claim_directory(out: Path, order: dict[str, str | int]) -> None:
    """Mark a directory as this pack's; refuse one that holds anything else."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{str(out)!r} is a file; name a directory")
    content = read_json(out / "pack.json")
    if content is None and out.exists() and any(out.iterdir()):
        raise UsageError(f"directory {str(out)!r} is neither empty nor a pack; name another")
    if content is None:
        write_json(out / "pack.json", order)
    elif content != order:
        changed = next(name for name in order if content.get(name) != order[name])
        words = f"{changed}={content.get(changed)!r}, now {order[changed]!r}"
        if changed == "files":
            words = "the same files as they were before a change"
        raise UsageError(f"directory {str(out)!r} holds a pack of {words}; name another")


def _pack_shard(path: Path, rows: Iterable[Row], size: int) -> PackedShard:
    record = path.with_name(f"{path.stem}_stats.json")
    facts = read_json(record) if path.exists() else None
    if facts is not None:
        for _ in rows:  # on to the next shard, without decoding
            pass
        problems = Problems(Counter(facts["skipped"]), facts["first_skipped"])
        return PackedShard(path, facts["pairs"], problems, kept=True)
    problems, pairs = Problems(), 0
    with atomic(path) as temporary, tarfile.open(temporary, "w") as archive:
        for row, pixels in decode_rows(map(with_bytes, rows), size):
            if isinstance(pixels, Undecodable):
                problems.add(str(pixels), row.key)
                continue
            _add(archive, f"{path.stem}{pairs:06d}", Image.fromarray(pixels), row)
            pairs += 1
    facts = {"pairs": pairs, "skipped": problems.counts, "first_skipped": problems.first}
    write_json(record, facts)
    return PackedShard(path, pairs, problems, kept=False)


def _add(archive: tarfile.TarFile, key: str, image: Image.Image, row: Row) -> None:
    if row.weight != 1:
        raise UsageError("a pack has no weights: pack the parts of a mixture each by itself")
    encoded = io.BytesIO()
    # The least effort: 11% larger than with the most that Pillow takes by itself, 20 times faster.
    image.save(encoded, "webp", lossless=True, method=0, quality=20)
    facts = {"caption": row.captions[0], "captions": row.captions, "key": row.key}
    if row.split:
        facts["split"] = row.split
    members = {
        "webp": encoded.getvalue(),
        "txt": row.captions[0].encode(),
        "json": json.dumps(facts).encode(),
    }
    for suffix, content in members.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")  # dated 1970: the same pairs, the same bytes
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
