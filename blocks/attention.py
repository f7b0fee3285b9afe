"""Attention blocks: [b n d] attends to itself or to a context [b m c]."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.errors import Unsupported
from blocks.hookspecs import hookimpl
from blocks.linear import linear
from blocks.positions import Positions
from blocks.site import Site
from blocks.spec import BlockSpec

BACKENDS = ("auto", "sdpa", "xformers", "reference")


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention over several heads (arXiv 1706.03762).

    ``backend`` chooses the kernel: ``sdpa`` is torch's fused one, ``reference`` the plain formula,
    ``xformers`` needs CUDA, and ``auto`` is sdpa, which calls the same kernels as xformers for the
    dense and causal cases that occur here.
    """

    def __init__(self, site: Site, *, bias: bool = True, backend: str = "auto") -> None:
        super().__init__()
        if site.dim % site.heads:
            raise Unsupported(f"width {site.dim} must be divisible by the {site.heads} heads")
        if backend not in BACKENDS:
            raise Unsupported(f"no attention backend {backend!r} (known: {', '.join(BACKENDS)})")
        self.heads, self.causal, self.backend = site.heads, site.causal, backend
        context = site.dim if site.context_dim is None else site.context_dim
        self.query = linear(site.dim, site.dim, bias=bias)
        self.key_value = linear(context, 2 * site.dim, bias=bias)
        self.leave = linear(site.dim, site.dim, bias=bias)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, positions: Positions | None = None
    ) -> Tensor:
        """Map [b n d], with context [b m c] for cross-attention, to [b n d]."""
        source = x if context is None else context
        q = self._heads(self.query(x))  # [b h n e]
        k, v = (self._heads(half) for half in self.key_value(source).chunk(2, dim=-1))  # [b h m e]
        bias = None
        if positions is not None:
            assert context is None, "positions are for self-attention"
            q, k = positions.rotate(q, k)
            bias = positions.bias(q.shape[-2], k.shape[-2])
        y = attend(q, k, v, causal=self.causal, bias=bias, backend=self.backend)  # [b h n e]
        out: Tensor = self.leave(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        return x.reshape(b, n, self.heads, d // self.heads).transpose(1, 2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend with queries [b h n e] to keys and values [b h m e]; returns [b h n e].

    With ``causal`` the queries stand at the last n of the m positions. ``bias`` is [h n m].
    """
    if backend == "xformers":
        return _xformers_attend(q, k, v, causal=causal, bias=bias)
    if backend == "reference":
        return _reference_attend(q, k, v, causal=causal, bias=bias)
    n, m = q.shape[-2], k.shape[-2]
    if bias is None and (not causal or n == m):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    mask = scores_mask(q, m, causal=causal, bias=bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def scores_mask(q: Tensor, keys: int, *, causal: bool, bias: Tensor | None) -> Tensor | None:
    """Return what is added to the scores [h n m] or [n m]: the bias, and -inf on the future."""
    queries = q.shape[-2]
    mask = None if bias is None else bias.to(q.dtype)
    if causal:
        future = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
        future = future.triu(keys - queries + 1)
        zero = torch.zeros(queries, keys, dtype=q.dtype, device=q.device) if mask is None else mask
        mask = zero.masked_fill(future, -math.inf)
    return mask


def _reference_attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, bias: Tensor | None
) -> Tensor:
    """Compute softmax(q k^T / sqrt(e) + mask) v as written; the other backends must equal it."""
    scores = (q.float() @ k.float().transpose(-2, -1)) * q.shape[-1] ** -0.5  # [b h n m]
    mask = scores_mask(q, k.shape[-2], causal=causal, bias=bias)
    if mask is not None:
        scores = scores + mask.float()
    y: Tensor = scores.softmax(dim=-1) @ v.float()
    return y.to(q.dtype)


def _xformers_attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, bias: Tensor | None
) -> Tensor:
    if not q.is_cuda:
        raise Unsupported(f"attention backend 'xformers' needs CUDA, got {q.device.type}; use sdpa")
    ops = load_xformers()
    mask: Any = None
    if bias is not None or (causal and q.shape[-2] != k.shape[-2]):
        dense = scores_mask(q, k.shape[-2], causal=causal, bias=bias)
        assert dense is not None
        mask = dense.expand(q.shape[0], q.shape[1], -1, -1).contiguous()
    elif causal:
        mask = ops.LowerTriangularMask()
    arguments = (t.transpose(1, 2) for t in (q, k, v))  # xformers wants [b n h e]
    y: Tensor = ops.memory_efficient_attention(*arguments, attn_bias=mask)  # [b n h e]
    return torch.transpose(y, 1, 2)


@functools.cache
def load_xformers() -> Any:
    """Import xformers.ops on first use, without its warning; `Unsupported` if absent."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        import xformers.ops
    except Exception as error:
        raise Unsupported(f"attention backend 'xformers' does not import: {error!r}") from error
    return xformers.ops


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the built-in attention."""
    return [
        BlockSpec(
            kind="attention",
            name="mha",
            factory=MultiHeadAttention,
            summary="multi-head attention",
            source="arXiv:1706.03762",
        ),
    ]
