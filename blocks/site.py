"""Where a block sits: everything a block may know about the slot that it fills."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Tower = Literal["image", "text", "multimodal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The slot that a block is built for.

    ``dim`` is the width d of the tokens that come in and go out. ``grid`` is ``(tokens,)`` for text
    and ``(rows, columns)`` for patches. ``hidden`` is the final inner width of an FFN. A context
    (cross-attention, pooling) has width ``context_dim``.
    """

    dim: int
    heads: int = 1
    grid: tuple[int, ...] = (1,)
    causal: bool = False
    hidden: int = 0
    context_dim: int | None = None
    tower: Tower = "text"
    layer: int = 0
    path: str = ""

    @property
    def tokens(self) -> int:
        """Return the number n of tokens that the grid holds."""
        return math.prod(self.grid)

    @property
    def head_dim(self) -> int:
        """Return the width e of one head."""
        return self.dim // self.heads
