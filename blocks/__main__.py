"""`python -m blocks`: browse the library, check blocks, and start a new one."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from blocks.errors import Parser, UsageError, unknown
from blocks.registry import Registry, load_registry
from blocks.scaffold import next_steps, write_plugin
from blocks.spec import KINDS, BlockSpec
from blocks.testing import Status, Verdict, checks

STATUSES: tuple[Status, ...] = get_args(Status)


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
        raise unknown("block", name, {spec.name for spec in registry})
    return registry.get(kinds[0], name)


def show_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return one line per block with counts, and one per failure."""
    lines = []
    for name in dict.fromkeys(v.block for v in verdicts):
        own = [v for v in verdicts if v.block == name]
        counts = {status: sum(v.status == status for v in own) for status in STATUSES}
        word = "FAILED" if counts["failed"] else "ok"
        rest = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
        lines.append(f"{name:<24} {word:<7} {rest}")
        lines += [f"  {v.case}: {v.check}: {v.message}" for v in own if v.status == "failed"]
        reasons = {(v.check, v.message) for v in own if v.status == "expected"}
        lines += [f"  expected: {check}: {why}" for check, why in sorted(reasons)]
    return "\n".join(lines)


def choose_specs(registry: Registry, options: argparse.Namespace) -> list[BlockSpec]:
    """Return the blocks to check: all of them, one by name, or those of a file or module."""
    if options.all:
        return list(registry)
    if options.name is None:
        raise UsageError("name a block, a plugin file or module, or --all")
    if options.name.endswith(".py") or ("/" in options.name and Path(options.name).exists()):
        return load_registry([options.name], entry_points=False).third_party()
    try:
        return [find(registry, options.name)]
    except UsageError:
        if importlib.util.find_spec(options.name.partition(".")[0]) is None:
            raise
    return load_registry([options.name], entry_points=False).third_party()


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="python -m blocks",
        description="Browse the block library, check blocks, start a new one.",
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
    checking = commands.add_parser("check", help="does a block keep the contract?")
    checking.add_argument("name", nargs="?", metavar="NAME|FILE|MODULE")
    checking.add_argument("--all", action="store_true", help="every known block")
    checking.add_argument("--json", action="store_true", help="for a program to read")
    starting = commands.add_parser("new", help="write a complete plugin folder")
    starting.add_argument("kind", choices=KINDS)
    starting.add_argument("name")
    starting.add_argument("directory", metavar="DIR")
    starting.set_defaults(json=False)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 if a check failed, 2 for bad usage."""
    options = parser().parse_args(arguments)
    code = 0
    try:
        problems: list[UsageError] = []
        registry = load_registry(options.plugin, problems=problems)
        for problem in problems:  # the other plugins are there all the same
            print(f"error: {problem}", file=sys.stderr)
            code = 2
        if options.command == "list":
            chosen = [s for s in registry if options.kind in (None, s.kind)]
            facts: Any = [describe(registry, spec) for spec in chosen]
            text = show_list(registry, options.kind)
        elif options.command == "show":
            spec = find(registry, options.name)
            facts, text = describe(registry, spec), show_one(registry, spec)
        elif options.command == "new":
            written = write_plugin(options.kind, options.name, Path(options.directory), registry)
            facts, text = None, next_steps(options.name, written)
        else:
            verdicts = [check.verdict() for check in checks(choose_specs(registry, options))]
            facts, text = [asdict(v) for v in verdicts], show_verdicts(verdicts)
            code = max(code, int(any(v.status == "failed" for v in verdicts)))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(facts, indent=2) if options.json else text)
    return code


if __name__ == "__main__":
    sys.exit(main())
