"""A command's flags as keyword arguments, so that Python and the command line are one thing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ablate.cli.options import parse_value
from blocks import UsageError
from blocks.errors import unknown


def command_line(parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> list[str]:
    """Return the command line that says the same as keyword arguments named like the flags.

    ``seeds=6``, ``plan=True``, ``plugin=["a.py"]``, ``set={"lr": 0.002}``; None is the default.
    """
    flags = parser._option_string_actions  # argparse has no public list
    found: list[str] = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if flag not in flags or name == "help":
            known = (f.removeprefix("--").replace("-", "_") for f in flags if f.startswith("--"))
            raise unknown("argument", name, set(known) - {"help"})
        is_many = isinstance(value, (list, tuple, Mapping))
        if is_many and not isinstance(flags[flag].default, list):  # as repeatable flags have
            raise UsageError(f"{name} takes one value, got {value!r}")
        if flags[flag].nargs == 0 and not isinstance(value, (bool, type(None))):
            raise UsageError(f"{name} is True or False, got {value!r}")
        found += _spelled(flag, value, flags)
    return found


def _spelled(flag: str, value: Any, flags: Mapping[str, argparse.Action]) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        no = flag.replace("--", "--no-", 1)
        return [flag] if value else [no] * (no in flags)
    if isinstance(value, Mapping):
        return [f"{flag}={name}={_literal(one)}" for name, one in value.items()]
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [f"{flag}={one}" for one in values]


def _literal(value: Any) -> str:
    """Return a setting as `ablate.cli.options.parse_value` reads it back; texts may need quotes."""
    return value if isinstance(value, str) and parse_value(value) == value else repr(value)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; raises `UsageError` where the command would leave the process."""

    def refuse(message: str) -> NoReturn:
        raise UsageError(message)

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(arguments)
