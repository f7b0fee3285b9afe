"""Interchangeable transformer blocks and the one way to add another.

A plugin needs `BlockSpec` and `hookimpl`, and, where it matters, `Site`, `Unsupported`,
`Positions`, `Pooled` and `KeyValues`. The library itself is asked through a `Registry`.
"""

from __future__ import annotations

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
