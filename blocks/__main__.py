"""`python -m blocks`: browse the library, check blocks, and start a new one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blocks.errors import Parser, UsageError
from blocks.spec import KINDS


def add_arguments(top: argparse.ArgumentParser) -> None:
    """Add the commands to a parser: `ablate blocks` has the same ones."""
    top.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE")
    commands = top.add_subparsers(dest="task", required=True, metavar="COMMAND")

    def add(name: str, words: str, example: str) -> argparse.ArgumentParser:
        epilog = f"example: {top.prog} {name} {example}"
        added = commands.add_parser(name, help=words, description=words, epilog=epilog)
        if name != "new":
            added.add_argument("--json", action="store_true", help="for a program to read")
        return added

    listing = add("list", "every block, with options, plugin and source", "norm")
    listing.add_argument("kind", nargs="?", choices=KINDS)
    add("show", "one block: kind/name", "position/rope").add_argument("name")
    checking = add("check", "does a block keep the contract?", "my_norm.py")
    checking.add_argument("name", nargs="?", metavar="NAME|FILE|MODULE")
    checking.add_argument("--all", action="store_true", help="every known block")
    starting = add("new", "write a complete plugin folder", "norm my_norm plugins/my_norm")
    starting.add_argument("kind", choices=KINDS)
    starting.add_argument("name")
    starting.add_argument("directory", metavar="DIR")
    starting.set_defaults(json=False)


def run(options: argparse.Namespace) -> int:
    """Do what the command line says; returns 0, 1 if a check failed, 2 if a plugin is broken."""
    # Imported here: they need torch, which the help of the commands does not.
    from blocks import catalogue
    from blocks.registry import load_registry
    from blocks.scaffold import next_steps, write_plugin
    from blocks.testing import checks

    problems: list[UsageError] = []
    registry = load_registry(options.plugin, problems=problems)
    for problem in problems:  # the other plugins are there all the same
        print(f"error: {problem}", file=sys.stderr)
    code = 2 if problems else 0
    if options.task == "list":
        chosen = [spec for spec in registry if options.kind in (None, spec.kind)]
        facts: Any = [catalogue.describe(registry, spec) for spec in chosen]
        text = catalogue.show_list(registry, options.kind)
    elif options.task == "show":
        spec = catalogue.find(registry, options.name)
        facts, text = catalogue.describe(registry, spec), catalogue.show_one(registry, spec)
    elif options.task == "new":
        written = write_plugin(options.kind, options.name, Path(options.directory), registry)
        facts, text = None, next_steps(options.name, written)
    else:
        verdicts = [check.verdict() for check in checks(catalogue.choose_specs(registry, options))]
        facts, text = [asdict(v) for v in verdicts], catalogue.show_verdicts(verdicts)
        code = max(code, int(any(v.status == "failed" for v in verdicts)))
    print(json.dumps(facts, indent=2) if options.json else text)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 if a check failed, 2 for bad usage."""
    top = Parser(
        prog="python -m blocks",
        description="Browse the block library, check blocks, start a new one.",
        epilog="example: python -m blocks show position/rope",
    )
    add_arguments(top)
    try:
        return run(top.parse_args(arguments))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
