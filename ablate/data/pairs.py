"""Pairs of one set, decoded once per machine; order, splits and groups are of content alone.

Whatever the format, the same pairs give the same `Pairs`: rows are sorted by the hash of their
pixels, so neither file names nor the order of a listing have any say in what a batch holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ablate.core.files import digest
from ablate.data.cache import claim
from ablate.data.images import Pixels, Undecodable, decode_rows
from ablate.data.rows import Problems, Row, Source, same_words
from ablate.data.sources import open_source
from blocks import UsageError

MAX_SKIPPED = 0.01  # above this share of unusable pairs a source is refused
CACHE_VERSION = 2

Tick = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A decoded set: images uint8 [n s s 3], captions, splits and caption groups.

    Pairs that share a caption are of one group: they are no negatives of each other. No caption
    stands in two splits. ``fingerprint`` is a hash of the content; ``skipped`` counts pairs by
    reason, ``first_skipped`` names the first of each. ``weights`` (none: all 1) is how often an
    epoch of training shows a pair.
    """

    uri: str
    images: Pixels
    captions: list[list[str]]
    splits: list[str]
    groups: list[int]
    fingerprint: str
    skipped: dict[str, int]
    weights: list[int] = field(default_factory=list)
    first_skipped: dict[str, str] = field(default_factory=dict)

    def indices(self, split: str) -> list[int]:
        """Return the rows of a split; in training, a row as often as its weight says."""
        rows = [i for i, name in enumerate(self.splits) if name == split]
        if split != "train" or not self.weights:
            return rows
        return [i for i in rows for _ in range(self.weights[i])]


def open_pairs(uri: str, size: int, tick: Tick = lambda: None) -> Pairs:
    """Return the pairs of a source with images of ``size`` pixels, decoded at most once.

    ``tick`` is called for each row that is decoded. Raises `UsageError` for an unknown source, a
    missing path, a corrupt file, an empty set, or one with too many unusable pairs.
    """
    pairs = decode_pairs(uri, size, tick)
    refuse_poor(uri, len(pairs.captions), pairs.skipped, pairs.first_skipped)
    return pairs


def decode_pairs(uri: str, size: int, tick: Tick = lambda: None) -> Pairs:
    """Return the pairs that can be used, however many cannot."""
    if size < 1:
        raise UsageError(f"the size of images must be at least 1 pixel, got {size}")
    source = open_source(uri)
    key = digest([CACHE_VERSION, uri, source.stamps(), size])
    entry = claim(key[:32], partial(_decode_into, source=source, uri=uri, size=size, tick=tick))
    try:
        facts = json.loads((entry / "pairs.json").read_text(encoding="utf-8"))
        images = np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"decoded data {str(entry)!r} is damaged ({error}); delete it") from None
    return Pairs(uri=uri, images=images, **facts)


def refuse_poor(
    uri: str, usable: int, skipped: dict[str, int], first: dict[str, str] | None = None
) -> None:
    """Raise `UsageError` for a source of which too much cannot be used."""
    lost, limit = sum(skipped.values()), max_skipped()
    names = first or {}
    reasons = "; ".join(
        f"{count} x {reason}" + (f" (first: {names[reason]!r})" if reason in names else "")
        for reason, count in sorted(skipped.items())
    )
    if not usable:
        raise UsageError(f"data {uri!r} holds no usable pair ({reasons or 'no image at all'})")
    if lost > limit * (usable + lost):
        raise UsageError(
            f"data {uri!r}: {lost} of {usable + lost} pairs cannot be used ({reasons}); "
            f"at most {100 * limit:.4g}% may be skipped (COCA_BLOCKS_MAX_SKIPPED)"
        )


def max_skipped() -> float:
    """Return the share of pairs that may be unusable: COCA_BLOCKS_MAX_SKIPPED, or 1%."""
    limit = os.environ.get("COCA_BLOCKS_MAX_SKIPPED") or str(MAX_SKIPPED)
    try:
        share = float(limit)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise UsageError(f"COCA_BLOCKS_MAX_SKIPPED must be a share from 0 to 1, got {limit!r}")
    return share


def _decode_into(directory: Path, *, source: Source, uri: str, size: int, tick: Tick) -> None:
    """Decode all rows to the disk as they come, then put them into their order."""
    problems, rows, hashes = Problems(), list[Row](), list[str]()
    unsorted = directory / "unsorted"
    with unsorted.open("wb") as file:
        for row, pixels in decode_rows(source.rows(), size):
            tick()
            if isinstance(pixels, Undecodable):
                problems.add(str(pixels), row.key)
                continue
            file.write(pixels.tobytes())
            rows.append(row._replace(image=b""))
            hashes.append(hashlib.sha256(pixels.tobytes()).hexdigest())
    order, facts = settle(rows, hashes, problems)
    if not order:
        refuse_poor(uri, 0, facts["skipped"], facts["first_skipped"])
    _write_in_order(directory / "images.npy", unsorted, order, size)
    unsorted.unlink()
    (directory / "pairs.json").write_text(json.dumps(facts), encoding="utf-8")


def settle(
    rows: Sequence[Row], hashes: Sequence[str], problems: Problems
) -> tuple[list[int], dict[str, Any]]:
    """Return the order of the rows that stay, and everything about them but their pixels."""
    splits = assign_splits(rows)
    captions = part_captions([row.captions for row in rows], splits)
    for row, remaining in zip(rows, captions, strict=True):
        if not remaining:
            problems.add("all its captions also stand in a held-out split", row.key)
    items = sorted(
        (hashes[i], captions[i], splits[i], rows[i].weight, i)
        for i in range(len(rows))
        if captions[i]
    )
    facts = {
        "captions": [item[1] for item in items],
        "splits": [item[2] for item in items],
        "weights": [item[3] for item in items],
        "groups": group_by_caption([item[1] for item in items]),
        "fingerprint": digest([item[:4] for item in items]),
        "skipped": dict(sorted(problems.counts.items())),
        "first_skipped": problems.first,
    }
    return [item[4] for item in items], facts


def _write_in_order(path: Path, unsorted: Path, order: Sequence[int], size: int) -> None:
    """Copy image by image: a map of either file would fill the memory, and fail as SIGBUS."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(order), size, size, 3)}
    length = size * size * 3
    with unsorted.open("rb") as source, path.open("wb") as target:
        np.lib.format.write_array_header_1_0(target, header)
        for place in order:
            source.seek(place * length)
            target.write(source.read(length))


def group_by_caption(captions: Sequence[Sequence[str]]) -> list[int]:
    """Return a group number per pair; pairs that share a caption, ignoring case, share it."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for first, *rest in captions:
        for other in rest:
            parent[find(same_words(other))] = find(same_words(first))
    numbers: dict[str, int] = {}
    return [numbers.setdefault(find(same_words(first)), len(numbers)) for first, *_ in captions]


def assign_splits(rows: Sequence[Row]) -> list[str]:
    """Return the split of each row: as given, else by a hash of its group (90/5/5).

    The group's smallest caption is hashed: it depends on no order, and keeps a group together.
    """
    groups = group_by_caption([row.captions for row in rows])
    smallest: dict[int, str] = {}
    for row, group in zip(rows, groups, strict=True):
        words = min(map(same_words, row.captions))
        smallest[group] = min(words, smallest.get(group, words))
    return [
        row.split or _hashed_split(smallest[group]) for row, group in zip(rows, groups, strict=True)
    ]


def _hashed_split(words: str) -> str:
    bucket = int(hashlib.sha256(words.encode()).hexdigest(), 16) % 20
    return "val" if bucket == 0 else "test" if bucket == 1 else "train"


def part_captions(captions: Sequence[list[str]], splits: Sequence[str]) -> list[list[str]]:
    """Return the captions without those that also stand in a more strictly held-out split.

    Published splits do share captions ('A man riding a wave on a surfboard.'): what is tested on is
    kept, and training does without it.
    """
    held: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for texts, split in zip(captions, splits, strict=True):
        held[split].update(map(same_words, texts))
    taken = {"train": held["val"] | held["test"], "val": held["test"], "test": set[str]()}
    return [
        [text for text in texts if same_words(text) not in taken[split]]
        for texts, split in zip(captions, splits, strict=True)
    ]
