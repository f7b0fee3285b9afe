"""Errors that a user can act on: each says what is wrong, what was given and what is allowed."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Iterable
from typing import NoReturn

MANY = 20  # names that an error lists; beyond, the near miss has to do


class UsageError(ValueError):
    """A mistake in a name, an option or a file; command lines print it and exit with 2."""


class Unsupported(UsageError):  # noqa: N818  (raise Unsupported(...) reads well)
    """Raised by a block that cannot serve a site; the reason is shown where its cell is skipped."""


def unknown(what: str, got: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that does not exist, with the nearest name that does."""
    names = sorted(known)
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(got.lower(), list(lowered), n=1)
    hint = f"; did you mean {lowered[near[0]]!r}?" if near else ""
    if near and len(names) > MANY:
        return UsageError(f"no {what} named {got!r}{hint} ({len(names)} are known)")
    return UsageError(f"no {what} named {got!r}{hint} (known: {', '.join(names) or 'none'})")


def require_positive(name: str, value: float) -> float:
    """Return a block's option if it is a finite number above 0, else refuse it."""
    if not 0 < value < math.inf:
        raise Unsupported(f"{name} must be above 0, got {value}")
    return value


def choose(name: str, value: str, allowed: Iterable[str]) -> str:
    """Return a block's option if it is one of those allowed, else refuse it with the near miss."""
    choices = list(allowed)
    if value not in choices:
        raise Unsupported(str(unknown(name, value, choices)))
    return value


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are one line and exit code 2, like all others."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and leave."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")
