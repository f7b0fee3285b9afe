"""`ablate data`: look at a set, or pack it into shards of small images."""

from __future__ import annotations

import argparse
import json
import sys
import time

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ablate.data.overview import describe, summarise, write_sheet
from ablate.data.pack import PackedShard, pack
from ablate.data.pairs import decode_pairs
from blocks import UsageError

DONE, REFUSED = 0, 1


def inspect_source(options: argparse.Namespace, console: Console) -> int:
    """Print what a source holds."""
    with _bar(console) as bar:
        task = bar.add_task("decoding", unit="pairs")
        pairs = decode_pairs(options.uri, options.size, lambda: bar.advance(task))
    facts = summarise(pairs)
    print(json.dumps(facts, indent=2) if options.json else describe(facts))
    if options.sheet:
        write_sheet(pairs, options.sheet)
        print(f"contact sheet: {options.sheet}", file=sys.stderr)
    return REFUSED if facts["refused"] else DONE


def pack_source(options: argparse.Namespace, console: Console) -> int:
    """Write a source as shards, and say how far it is."""
    began, new = time.monotonic(), 0
    with _bar(console) as bar:
        task = bar.add_task("packing", unit="shards")

        def watch(shard: PackedShard) -> None:
            nonlocal new
            new += 0 if shard.kept else shard.pairs
            lost = sum(shard.problems.counts.values())
            speed = "kept" if shard.kept else f"{new / (time.monotonic() - began):,.0f} pairs/s"
            words = f"{shard.path.name}: {shard.pairs:,} pairs, {lost} skipped ({speed})"
            bar.update(task, advance=1, description=words)
            if not console.is_terminal:
                console.print(words, highlight=False, markup=False, soft_wrap=True)

        shards = pack(options.uri, options.out, options.size, options.shard, watch)
    total, kept = sum(shard.pairs for shard in shards), sum(shard.kept for shard in shards)
    print(f"{total:,} pairs in {len(shards)} shards, of which {kept} were there already")
    print(f"read them with: webdataset:{options.out}/*.tar")
    return DONE


def _bar(console: Console) -> Progress:
    """Return a progress bar that is shown on a terminal only."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:,.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def main(options: argparse.Namespace) -> int:
    """Look at a source or pack it; return 0, or 1 where a study would refuse the source."""
    task = {"inspect": inspect_source, "pack": pack_source}[options.task]
    try:
        return task(options, Console(stderr=True))
    except OSError as error:
        raise UsageError(f"cannot write {error.filename!r}: {error.strerror}") from None
