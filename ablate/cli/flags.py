"""One declaration for a command line and for keyword arguments: a dataclass of flags.

Each field is a flag: its type says how it is read, its metadata what the help says. A function of
such a dataclass becomes a function of the dataclass's own keyword arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import shlex
import typing
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, ParamSpec, TypeVar

from blocks.errors import UsageError, unknown

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """How a field is given on a command line; only ``help`` has to be said."""

    help: str
    """What the flag does, for ``--help``."""

    metavar: str | None = None
    """What stands for the value in the help."""

    choices: tuple[str, ...] | None = None
    """The only values there are."""

    constant: str | None = None
    """The value of the flag given without one."""

    group: str = ""
    """The heading under which the help lists the flag."""

    read: Callable[[list[str]], Any] | None = None
    """Turns all values of a flag that may be repeated into the field's value."""

    separator: str = ""
    """What may stand between values given at once, where the flag takes several."""


def flag(default: Any, help: str, **details: Any) -> Any:
    """Return a dataclass field that is a flag; mappings and sequences are repeatable flags."""
    metadata = {"flag": Flag(help=help, **details)}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def add_flags(parser: argparse.ArgumentParser, declaration: type) -> None:
    """Add a declaration's flags to a parser; those that are not given leave no trace in it."""
    groups: dict[str, Any] = {}
    for field, details, kind in _flags(declaration):
        target: Any = parser
        if details.group:
            if details.group not in groups:
                groups[details.group] = parser.add_argument_group(details.group)
            target = groups[details.group]
        options: dict[str, Any] = {"help": details.help, "default": argparse.SUPPRESS}
        if kind is bool:
            optional = field.default is None
            options["action"] = argparse.BooleanOptionalAction if optional else "store_true"
        else:
            options |= {"metavar": details.metavar, "choices": details.choices}
            if details.read is not None:
                options["action"] = "append"
            elif kind in (int, float):
                options["type"] = kind
            if details.constant is not None:
                options |= {"nargs": "?", "const": details.constant}
        target.add_argument(spell(field.name), dest=field.name, **options)


def from_command_line(declaration: type[T], options: argparse.Namespace) -> T:
    """Return the declaration's value for a parsed command line; raises `UsageError`."""
    values: dict[str, Any] = {}
    for field, details, _ in _flags(declaration):
        if field.name in options:
            value = getattr(options, field.name)
            values[field.name] = details.read(value) if details.read else value
    return declaration(**values)


def to_command_line(value: Any) -> list[str]:
    """Return the words of a command line that mean a declaration's value."""
    words: list[str] = []
    for field, details, kind in _flags(type(value)):
        field_value = getattr(value, field.name)
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field_value != default and field_value is not None:
            words += _words(spell(field.name), field_value, kind, details)
    return words


def command(program: Sequence[str], value: Any) -> str:
    """Return the command that means a declaration's value, quoted for a shell."""
    return shlex.join([*program, *to_command_line(value)])


def spell(name: str) -> str:
    """Return the flag of a field."""
    return f"--{name.replace('_', '-')}"


def takes(declaration: Callable[P, T]) -> Callable[[Callable[[T], R]], Callable[P, R]]:
    """Make a function of a declaration one of the declaration's keyword arguments.

    Signature, types and completion in an editor are those of the dataclass.
    """
    assert isinstance(declaration, type)
    flags = _flags(declaration)

    def wrap(function: Callable[[T], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> R:
            require_types(
                declaration,
                inspect.signature(declaration).bind_partial(*arguments).arguments | keywords,
            )
            return function(declaration(*arguments, **keywords))

        arguments_in_words = "\n".join(
            f"    {field.name}: {details.help}" for field, details, _ in flags
        )
        call.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:\n{arguments_in_words}"
        signature = inspect.signature(declaration)
        returned = inspect.signature(function).return_annotation
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]  # as help() asks
            return_annotation=returned
        )
        return call

    return wrap


def require_types(declaration: type, keywords: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a keyword that there is not, or a value of another type."""
    from pydantic import TypeAdapter, ValidationError  # of no use to a command line

    hints = _hints(declaration)
    for name, value in keywords.items():
        if name not in hints:
            raise unknown("argument", name, hints)
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UsageError(f"{name}: {reason[0].lower()}{reason[1:]}, got {value!r}") from None


def _words(name: str, value: Any, kind: type, details: Flag) -> list[str]:
    """Return the words that give a flag its value."""
    if kind is bool:
        return [name if value else name.replace("--", "--no-", 1)]
    if value == details.constant:
        return [name]
    if isinstance(value, Mapping):
        texts = [f"{key}={_literal(item)}" for key, item in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        texts = [str(item) for item in value]
        texts = [details.separator.join(texts)] if details.separator else texts
    else:
        texts = [str(value)]
    # A value that looks like a flag has to be tied to its own.
    return [w for t in texts for w in ([f"{name}={t}"] if t.startswith("-") else [name, t])]


def _literal(value: Any) -> str:
    """Return a setting's value as the command line reads it back; texts may need quotes."""
    from ablate.cli.settings import parse_value

    return value if isinstance(value, str) and parse_value(value) == value else repr(value)


def _flags(declaration: type) -> list[tuple[dataclasses.Field[Any], Flag, type]]:
    """Return a declaration's fields with their flags and the type of what the flag takes."""
    hints = _hints(declaration)
    return [
        (field, field.metadata["flag"], _alternatives(hints[field.name])[0])
        for field in dataclasses.fields(declaration)
    ]


@functools.cache
def _hints(declaration: type) -> dict[str, Any]:
    return typing.get_type_hints(declaration)


def _alternatives(hint: Any) -> list[Any]:
    """Return the types of a union, as written, or the one type."""
    is_union = isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union
    return list(typing.get_args(hint)) if is_union else [hint]
