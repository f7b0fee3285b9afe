"""`ablate data`: look at a set, or pack it into shards of small images."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ablate.data.overview import describe, summarise, write_sheet
from ablate.data.pack import PackedShard, pack
from ablate.data.pairs import decode_pairs
from ablate.data.sources import SCHEMES
from blocks import UsageError
from blocks.errors import Parser

DONE, REFUSED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    forms = ", ".join(scheme.form for scheme in SCHEMES.values())
    top = Parser(prog="ablate data", description=f"Sources of pairs: {forms}.")
    commands = top.add_subparsers(dest="command", required=True)
    look = commands.add_parser(
        "inspect",
        help="count a source's pairs, captions and problems",
        description="Count a source's pairs, captions and problems. Exit code 1: a study would "
        "refuse the source.",
        epilog="example: ablate data inspect embedded:icons --sheet icons.png",
    )
    look.add_argument("uri", metavar="URI")
    look.add_argument("--size", type=int, default=64, help="pixels of an image's side (default 64)")
    look.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet")
    look.add_argument("--json", action="store_true", help="print plain data for a program")
    write = commands.add_parser(
        "pack",
        help="resize a source into WebDataset shards",
        description="Resize a source into WebDataset shards. The same command again keeps those "
        "that are finished.",
        epilog="example: ablate data pack 'webdataset:/data/cc12m/{00000..01242}.tar' "
        "/data/cc12m-64 --size 64",
    )
    write.add_argument("uri", metavar="URI")
    write.add_argument("out", type=Path, metavar="OUT", help="a directory, new or half packed")
    write.add_argument("--size", type=int, required=True, help="pixels of an image's side")
    write.add_argument("--shard", type=int, default=1000, help="rows of a shard (default 1000)")
    return top


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        run = {"inspect": inspect_source, "pack": pack_source}[options.command]
        return run(options, console)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    except OSError as error:
        print(f"error: cannot write {error.filename!r}: {error.strerror}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if options.command == "pack" else ""
        print(f"stopped{goes_on}", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
