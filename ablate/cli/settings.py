"""Values as texts: `FIELD=VALUE` settings, names between commas, numbers of seeds, stages."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from blocks.errors import UsageError


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Return ``field=value`` texts as a mapping; values are Python literals, else text."""
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {text!r}: write FIELD=VALUE, as in --set lr=0.002")
        if name in settings:
            raise UsageError(f"--set {name!r} is given twice")
        settings[name] = parse_value(value)
    return settings


def parse_value(text: str) -> Any:
    """Return a Python literal, a number such as inf, or else the text itself."""
    for read in (ast.literal_eval, float):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def split_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Return names given with commas between them; those in parentheses belong to a name."""
    names = [name.strip() for text in texts for name in re.split(r",(?![^()]*\))", text)]
    return tuple(name for name in names if name)


def parse_looks(texts: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of seeds that ``3,5,8`` means."""
    text = ",".join(texts)
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--looks {text!r}: write numbers of seeds, as in 3,5,8") from None
