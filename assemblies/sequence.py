"""What towers add to a block's positions: tokens without a place, and masked keys.

Both stand in for a `Positions` where attention looks at one; they are no modules of their own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks import Positions


class Placed:
    """A block's positions in a sequence that ends with tokens that have no place on the grid.

    The class token of a ViT is one: it is not turned, and no bias acts on it.
    """

    def __init__(self, inner: Positions, placeless: int) -> None:
        self.inner, self.placeless = inner, placeless

    def rotate(self, q: Tensor, k: Tensor, *, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Turn the queries and keys [b h n e] that have a place."""
        n = q.shape[-2] - self.placeless
        turned = self.inner.rotate(q[..., :n, :], k[..., :n, :], offset=offset)
        q = torch.cat([turned[0], q[..., n:, :]], dim=-2)
        return q, torch.cat([turned[1], k[..., n:, :]], dim=-2)

    def bias(self, queries: int, keys: int) -> Tensor | None:
        """Return the scores' bias [h n m], 0 from and to tokens without a place."""
        extra = self.placeless
        bias = self.inner.bias(queries - extra, keys - extra)
        return None if bias is None else F.pad(bias, (0, extra, 0, extra))


class Masked:
    """A block's positions in sequences some of whose keys must not be seen."""

    def __init__(self, inner: Positions, visible: Tensor) -> None:
        self.inner, self.visible = inner, visible  # [b m]

    def rotate(self, q: Tensor, k: Tensor, *, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Turn queries and keys [b h n e]."""
        return self.inner.rotate(q, k, offset=offset)

    def bias(self, queries: int, keys: int) -> Tensor:
        """Return the scores' bias [b h n m], -inf at keys that must not be seen."""
        mask = torch.zeros_like(self.visible, dtype=torch.float32)
        mask = mask.masked_fill(~self.visible, -math.inf)[:, None, None, :]  # [b 1 1 m]
        bias = self.inner.bias(queries, keys)
        mask = mask.expand(-1, -1, queries, -1)
        return mask if bias is None else mask + bias


def visible_keys(lengths: Tensor, keys: int, *, legacy: bool) -> Tensor:
    """Return which keys [b m] of captions of given lengths [b] are seen, CLS being the last one.

    ``legacy`` is open_clip's mask, in which CLS is counted as the first key: it is shifted by one.
    """
    places = torch.arange(keys, device=lengths.device)
    if legacy:
        return (places == 0) | (places - 1 < lengths[:, None])
    return (places < lengths[:, None]) | (places == keys - 1)
