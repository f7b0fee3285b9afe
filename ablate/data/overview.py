"""Looks at a set before anything is trained on it: counts, captions, problems, a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ablate.core.files import atomic
from ablate.data.pairs import Pairs, max_skipped
from ablate.data.rows import SPLITS, same_words

COLUMNS, SHEET_ROWS = 6, 4
PICTURE, LINE, LINES, MARGIN = 128, 12, 3, 8


def summarise(pairs: Pairs) -> dict[str, Any]:
    """Return what there is to know about a set, as plain data."""
    lost, usable = sum(pairs.skipped.values()), len(pairs.captions)
    return {
        "uri": pairs.uri,
        "fingerprint": pairs.fingerprint,
        "pairs": usable,
        "splits": {split: pairs.splits.count(split) for split in SPLITS},
        "train_draws_per_epoch": len(pairs.indices("train")),
        "image_size": pairs.images.shape[1],
        "captions": _caption_facts(pairs),
        "skipped": pairs.skipped,
        "first_skipped": pairs.first_skipped,
        "skipped_share": lost / (usable + lost),
        "refused": lost > max_skipped() * (usable + lost),
    }


def _caption_facts(pairs: Pairs) -> dict[str, Any]:
    texts = [text for captions in pairs.captions for text in captions]
    words = [len(text.split()) for text in texts]
    counts = [len(captions) for captions in pairs.captions]
    sizes = np.bincount(pairs.groups)
    return {
        "number": len(texts),
        "distinct": len(set(map(same_words, texts))),
        "per_pair": {
            "least": min(counts),
            "mean": len(texts) / len(counts),
            "most": max(counts),
        },
        "words": {
            "median": float(np.median(words)),
            "p95": float(np.percentile(words, 95)),
            "most": max(words),
        },
        "distinct_words": len({word for text in texts for word in same_words(text).split()}),
        "pairs_that_share_a_caption": int(sizes[sizes > 1].sum()),
        "largest_group": int(sizes.max()),
    }


def describe(facts: dict[str, Any]) -> str:
    """Return what `summarise` found, in words."""
    captions, words = facts["captions"], facts["captions"]["words"]
    splits = ", ".join(f"{name} {count:,}" for name, count in facts["splits"].items())
    each = captions["per_pair"]
    lines = [
        f"{facts['uri']}: {facts['pairs']:,} pairs ({splits})",
        f"captions: {captions['number']:,}, of which {captions['distinct']:,} distinct; per pair "
        f"{each['least']} to {each['most']}, mean {each['mean']:.2f}",
        f"words: median {words['median']:g}, 95% within {words['p95']:g}, most {words['most']}; "
        f"{captions['distinct_words']:,} distinct",
        f"pairs that share a caption with another: {captions['pairs_that_share_a_caption']:,} "
        f"(largest group {captions['largest_group']:,})",
        f"fingerprint at {facts['image_size']} pixels: {facts['fingerprint']}",
    ]
    if facts["train_draws_per_epoch"] != facts["splits"]["train"]:
        lines.insert(1, f"an epoch of training draws {facts['train_draws_per_epoch']:,} pairs")
    for reason, count in facts["skipped"].items():
        first = facts["first_skipped"][reason]
        lines.append(f"skipped: {count:,} x {reason} (first: {first!r})")
    if facts["refused"]:
        lines.append(
            f"a study would refuse this set: {facts['skipped_share']:.1%} of its pairs cannot be "
            f"used, and at most {100 * max_skipped():.4g}% may (COCA_BLOCKS_MAX_SKIPPED)"
        )
    return "\n".join(lines)


def write_sheet(pairs: Pairs, path: Path) -> None:
    """Write a picture of pairs from all over the set, each with its split and first caption."""
    total = min(COLUMNS * SHEET_ROWS, len(pairs.captions))
    chosen = np.linspace(0, len(pairs.captions) - 1, total).round().astype(int).tolist()
    width, height = PICTURE + MARGIN, PICTURE + (LINES + 1) * LINE + MARGIN
    rows = -(-total // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width + MARGIN, rows * height + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 2)
    for place, i in enumerate(chosen):
        x, y = MARGIN + place % COLUMNS * width, MARGIN + place // COLUMNS * height
        picture = Image.fromarray(pairs.images[i]).resize(
            (PICTURE, PICTURE), Image.Resampling.LANCZOS
        )
        sheet.paste(picture, (x, y))
        pen.text((x, y + PICTURE), pairs.splits[i], "grey", font)
        for number, line in enumerate(_wrapped(pairs.captions[i][0], font), start=1):
            pen.text((x, y + PICTURE + number * LINE), line, "black", font)
    with atomic(path) as temporary:
        sheet.save(temporary, "png")


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Return the first lines of a text, each as wide as a picture at most."""
    lines = [""]
    for word in (word[:20] for word in text.split()):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= PICTURE:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [line for line in lines if line]
    return (
        lines[:LINES] if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1]} ..."]
    )
