"""Reads plain data back into the types that it was written from, and says in words what is wrong.

Whatever lies in a study's directory may be damaged, another version's, or a stranger's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from blocks import UsageError


def from_json(kind: Any, text: str | bytes) -> Any:
    """Return JSON as a type; raises `UsageError` that names the field. Numbers are no texts."""
    try:
        # Strict, in the mode of JSON: a list may be a tuple, but "3" is not 3, nor is true 1.
        return adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise UsageError(first_problem(error)) from None


def from_plain(kind: Any, data: Any) -> Any:
    """Return plain data as a type: what `dataclasses.asdict` and a round trip made of a value."""
    try:
        return adapter(kind).validate_python(data)
    except ValidationError as error:
        raise UsageError(first_problem(error)) from None


def first_problem(error: ValidationError) -> str:
    """Return the first of a validation's problems in a line: where it is, and what."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
    words = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {words[0].lower()}{words[1:]}" if where else words


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return the reader of a type; making one takes some milliseconds."""
    return TypeAdapter(kind)
