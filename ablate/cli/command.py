"""The command `ablate`: parses a command line, does what it says, and turns errors into words."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence

import shtab

from ablate.cli.arguments import COMMANDS
from blocks.errors import Parser, UsageError, unknown

DONE, BAD_USAGE, INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 done, 1 some of it failed, 2 bad usage, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    goes_on = ""
    try:
        options = parse(words)
        if COMMANDS[options.command].goes_on:
            goes_on = "; the same command goes on from here"
        handler = importlib.import_module(f"ablate.cli.{options.command}")
        return int(handler.main(options))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    except BrokenPipeError:  # the reader, `head` for one, has what it wants
        # Else Python flushes stdout once more as it exits, and prints the same error then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        from ablate.core.files import is_disk_error

        if not is_disk_error(error):
            raise
        print(f"error: {error}{goes_on}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print(f"stopped{goes_on}", file=sys.stderr)
        return INTERRUPTED


def start(*first: str) -> None:
    """Run this process's command line, behind some ``first`` words, and leave with its code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a batch system sends
    sys.exit(main([*first, *sys.argv[1:]]))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return a command line, parsed; raises `UsageError` for options that there are not."""
    top, parsers = make_parsers()
    # argparse names an unknown option and no near miss, so it is asked not to judge them.
    options, extra = top.parse_known_args(words)
    if extra:
        chosen = parsers[options.command]
        if not extra[0].startswith("-"):
            raise UsageError(f"unexpected {extra[0]!r} (see {chosen.prog} --help)")
        allowed = re.findall(r"--[a-z][\w-]*", chosen.format_help())
        raise unknown("option", extra[0].partition("=")[0], {*allowed})
    return options


def make_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of `ablate`, and those of its commands."""
    top = Parser(
        prog="ablate",
        description="Which transformer block helps an image-text model, by how much, and how sure "
        "can one be?",
        epilog="example: ablate run --grid full --seeds 5 (ablate COMMAND --help says more)",
    )
    shtab.add_argument_to(top, "--print-completion", help="print a shell's completion script")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in COMMANDS.items():
        parsers[name] = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"example: ablate {name} {command.example}",
        )
        command.declare(parsers[name])
    return top, parsers
