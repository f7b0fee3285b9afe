"""Errors that a user can act on: each says what is wrong, what was given and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake in a name, an option or a file; command lines print it and exit with 2."""


class Unsupported(UsageError):  # noqa: N818  (raise Unsupported(...) reads well)
    """Raised by a block that cannot serve a site; the reason is shown where its cell is skipped."""


def unknown(what: str, got: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that does not exist, with the nearest name that does."""
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UsageError(f"no {what} named {got!r}{hint} (known: {', '.join(names) or 'none'})")
