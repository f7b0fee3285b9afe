"""The one pluggy hook through which blocks enter, built-in and third-party alike."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from blocks.spec import BlockSpec

PROJECT = "coca_blocks"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_blocks() -> Sequence[BlockSpec]:  # type: ignore[empty-body]
    """Return the blocks that this plugin offers."""
