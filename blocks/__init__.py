"""Interchangeable transformer blocks and the one way to add another.

A plugin needs `BlockSpec` and `hookimpl`, and, where it matters, `Site`, `Unsupported`,
`Positions`, `Pooled` and `KeyValues`. The library itself is asked through a `Registry`.

Names are imported when they are first used, so a command line that only prints its help does not
wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blocks.attention import KeyValues
    from blocks.errors import Unsupported, UsageError
    from blocks.hookspecs import hookimpl
    from blocks.kernels import attend
    from blocks.pooling import Pooled, Pooling
    from blocks.positions import Positions
    from blocks.projections import linear
    from blocks.registry import Registry, default_registry, load_registry
    from blocks.site import Site
    from blocks.spec import KINDS, BlockSpec, Kind, parse

__all__ = [
    "KINDS",
    "BlockSpec",
    "KeyValues",
    "Kind",
    "Pooled",
    "Pooling",
    "Positions",
    "Registry",
    "Site",
    "Unsupported",
    "UsageError",
    "attend",
    "default_registry",
    "hookimpl",
    "linear",
    "load_registry",
    "parse",
]

_NAMES_OF_MODULES = {
    "attention": "KeyValues",
    "errors": "Unsupported UsageError",
    "hookspecs": "hookimpl",
    "kernels": "attend",
    "pooling": "Pooled Pooling",
    "positions": "Positions",
    "projections": "linear",
    "registry": "Registry default_registry load_registry",
    "site": "Site",
    "spec": "KINDS BlockSpec Kind parse",
}
_MODULES = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names.split()}

if not TYPE_CHECKING:  # a type checker would take this for a promise of every name

    def __getattr__(name: str) -> object:
        """Import a public name from its module, once (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module 'blocks' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"blocks.{_MODULES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
