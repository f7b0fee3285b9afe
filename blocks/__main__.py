"""`python -m blocks`: browse the library."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any

from blocks.errors import UsageError
from blocks.registry import Registry, load_registry
from blocks.spec import KINDS, BlockSpec


def describe(registry: Registry, spec: BlockSpec) -> dict[str, Any]:
    """Return what is known about a block as plain data."""
    return {
        "kind": spec.kind,
        "name": spec.name,
        "options": spec.options,
        "sweep": {k: list(v) for k, v in spec.sweep.items()},
        "plugin": registry.provider(spec.kind, spec.name),
        "source": spec.source,
        "summary": spec.summary,
    }


def show_list(registry: Registry, kind: str | None) -> str:
    """Return one line per block, aligned."""
    rows = [("block", "options", "plugin", "source", "summary")]
    for spec in registry:
        if kind in (None, spec.kind):
            options = ", ".join(f"{k}={v!r}" for k, v in spec.options.items()) or "-"
            provider = registry.provider(spec.kind, spec.name)
            rows.append((f"{spec.kind}/{spec.name}", options, provider, spec.source, spec.summary))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
        for row in rows
    )


def show_one(registry: Registry, spec: BlockSpec) -> str:
    """Return a paragraph about one block."""
    facts = describe(registry, spec)
    lines = [f"{spec.kind}/{spec.name}: {spec.summary}", "", inspect.getdoc(spec.factory) or "", ""]
    lines += [f"{key}: {facts[key]}" for key in ("options", "sweep", "plugin", "source")]
    return "\n".join(lines)


def find(registry: Registry, name: str) -> BlockSpec:
    """Return the block named ``kind/name``, or ``name`` where only one kind has it."""
    if "/" in name:
        kind, _, rest = name.partition("/")
        return registry.get(kind, rest)
    kinds = [kind for kind in KINDS if name in registry.names(kind)]
    if len(kinds) > 1:
        choices = " or ".join(f"{kind}/{name}" for kind in kinds)
        raise UsageError(f"{name!r} is a block of {len(kinds)} kinds; write {choices}")
    if not kinds:
        from blocks.errors import unknown

        raise unknown("block", name, {spec.name for spec in registry})
    return registry.get(kinds[0], name)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(
        prog="python -m blocks",
        description="Browse the block library.",
        epilog="example: python -m blocks show position/rope",
    )
    top.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE")
    commands = top.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="every block, with options, plugin and source")
    listing.add_argument("kind", nargs="?", choices=KINDS)
    listing.add_argument("--json", action="store_true", help="for a program to read")
    showing = commands.add_parser("show", help="one block: kind/name")
    showing.add_argument("name")
    showing.add_argument("--json", action="store_true", help="for a program to read")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        registry = load_registry(options.plugin)
        if options.command == "list":
            chosen = [s for s in registry if options.kind in (None, s.kind)]
            facts: Any = [describe(registry, spec) for spec in chosen]
            text = show_list(registry, options.kind)
        else:
            spec = find(registry, options.name)
            facts, text = describe(registry, spec), show_one(registry, spec)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(facts, indent=2) if options.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
