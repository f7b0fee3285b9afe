"""What a plugin hands over (`BlockSpec`) and how a block is named everywhere (its spelling).

A spelling is ``name`` or ``name(option=value, ...)`` with Python literals, for example
``rope(theta=10000.0)``. The factory's signature is the schema: keyword-only options with defaults.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from blocks.errors import UsageError, unknown
from blocks.site import Site

if TYPE_CHECKING:  # names and options are known without torch, which takes a second to import
    from torch import nn

Kind = Literal["norm", "ffn", "position", "attention", "pooling"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Option = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpec:
    """One block as a plugin offers it.

    ``factory(site, **options)`` builds it, ``source`` is the paper (arXiv id) or code it comes
    from, and ``sweep`` names option values worth trying in a grid. ``expected_failures`` gives the
    reason why a check of `blocks.testing` does not hold. A bad spec raises `UsageError`.
    """

    kind: Kind
    name: str
    factory: Callable[..., nn.Module]
    summary: str
    source: str
    sweep: Mapping[str, tuple[Option, ...]] = field(default_factory=dict)
    expected_failures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a spec that could only fail later, inside a grid."""
        where = f"block {self.kind}/{self.name}"
        if self.kind not in KINDS:
            raise unknown("kind", self.kind, KINDS)
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise UsageError(f"{where}: a name is lower-case letters, digits and '_'")
        if not callable(self.factory):
            raise UsageError(f"{where}: factory {self.factory!r} is not callable")
        allowed = self.options
        for option, values in self.sweep.items():
            if option not in allowed:
                raise _no_option(where, [option], allowed)
            if isinstance(values, str) or not isinstance(values, tuple | list):
                raise UsageError(f"{where}: sweep of {option!r} must be a tuple of values")
            for value in values:
                _check_option(where, option, value, allowed[option])

    @property
    def options(self) -> dict[str, Option]:
        """Return the options and their defaults, read from the factory's signature."""
        parameters = list(inspect.signature(self.factory).parameters.values())
        options: dict[str, Option] = {}
        for parameter in parameters[1:]:
            if (
                parameter.kind is parameter.VAR_KEYWORD
                or parameter.kind is parameter.VAR_POSITIONAL
            ):
                raise UsageError(f"block {self.kind}/{self.name}: options must be named, not *args")
            if parameter.default is parameter.empty:
                raise UsageError(
                    f"block {self.kind}/{self.name}: option {parameter.name!r} needs a default"
                )
            if not isinstance(parameter.default, bool | int | float | str | None):
                raise UsageError(
                    f"block {self.kind}/{self.name}: option {parameter.name!r} has a default of "
                    f"type {type(parameter.default).__name__}; allowed: bool, int, float, str"
                )
            options[parameter.name] = parameter.default
        return options

    def complete(self, given: Mapping[str, Option]) -> dict[str, Option]:
        """Return all options with the given values; unknown names and wrong types raise."""
        where, allowed = f"{self.kind}/{self.name}", self.options
        if extra := sorted(set(given) - set(allowed)):
            raise _no_option(where, extra, allowed)
        checked = {k: _check_option(where, k, v, allowed[k]) for k, v in given.items()}
        return {**allowed, **checked}

    def spell(self, given: Mapping[str, Option]) -> str:
        """Return the normal spelling: options sorted, defaults dropped, numbers in one form."""
        defaults = self.options
        kept = {k: v for k, v in self.complete(given).items() if v != defaults[k]}
        inner = ", ".join(f"{k}={kept[k]!r}" for k in sorted(kept))
        return f"{self.name}({inner})" if inner else self.name

    def spellings(self) -> list[str]:
        """Return the block with its defaults, then with each swept value in turn."""
        swept = [self.spell({option: v}) for option in self.sweep for v in self.sweep[option]]
        return list(dict.fromkeys([self.spell({}), *swept]))

    def build(self, site: Site, given: Mapping[str, Option]) -> nn.Module:
        """Build the block for a site; `Unsupported` says why a site cannot be served."""
        return self.factory(site, **self.complete(given))


def parse(spelling: str) -> tuple[str, dict[str, Option]]:
    """Split a spelling into its name and options; raises `UsageError` when it is malformed."""
    problem = UsageError(
        f"cannot read block {spelling!r}; write name or name(option=value), as in rope(theta=100.0)"
    )
    try:
        node = ast.parse(spelling.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise problem from None
    if isinstance(node, ast.Name):
        return node.id, {}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise problem
    options: dict[str, Option] = {}
    for keyword in node.keywords:
        try:
            value = ast.literal_eval(keyword.value)
        except ValueError:
            raise problem from None
        if keyword.arg is None or keyword.arg in options:
            raise problem
        options[keyword.arg] = value
    return node.func.id, options


def _check_option(where: str, name: str, value: Option, default: Option) -> Option:
    """Return the value in the default's type, or say which type it should have had."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is None and isinstance(value, bool | int | float | str | None):
        return value
    if type(value) is not type(default):
        raise UsageError(
            f"{where}: option {name}={value!r} is {type(value).__name__}, "
            f"must be {type(default).__name__} (default {default!r})"
        )
    return value


def _no_option(where: str, extra: list[str], allowed: Mapping[str, Option]) -> UsageError:
    return UsageError(f"{where}: {unknown('option', extra[0], allowed)}")
