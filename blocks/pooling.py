"""Pooling blocks: image tokens [b n c] -> `Pooled`, what captioning and contrasting look at."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blocks.attention import MultiHeadAttention
from blocks.errors import Unsupported
from blocks.hookspecs import hookimpl
from blocks.projections import linear
from blocks.site import Site
from blocks.spec import BlockSpec


class Pooled(NamedTuple):
    """What a pooler returns: tokens [b q d] to caption from and one vector [b d] to contrast."""

    tokens: Tensor
    vector: Tensor


class AttentionPooler(nn.Module):
    """Learned queries that attend to a context: one attention layer (arXiv 2205.01917)."""

    def __init__(self, site: Site, *, queries: int) -> None:
        super().__init__()
        if queries < 1:
            raise Unsupported(f"a pooler needs at least 1 query, got {queries}")
        self.queries = nn.Parameter(torch.empty(queries, site.dim))
        nn.init.trunc_normal_(self.queries, std=1.0)
        self.attention = MultiHeadAttention(site)

    def forward(self, context: Tensor) -> Tensor:
        """Map [b m c] -> [b q d]."""
        queries = self.queries.to(context.dtype).expand(context.shape[0], -1, -1)
        out: Tensor = self.attention(queries, context)
        return out


class Cascade(nn.Module):
    """Captioning queries on the image tokens, then one contrastive query on these.

    The default of all CoCa models (arXiv 2205.01917): ``queries`` captioning queries, 256 there.
    """

    def __init__(self, site: Site, *, queries: int = 256) -> None:
        super().__init__()
        self.captioning = AttentionPooler(site, queries=queries)
        self.contrastive = AttentionPooler(replace(site, context_dim=site.dim), queries=1)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b q d] and [b d]."""
        tokens = self.captioning(x)
        return Pooled(tokens, self.contrastive(tokens)[:, 0])


class Parallel(nn.Module):
    """Captioning queries and one contrastive query, both on the image tokens (arXiv 2205.01917)."""

    def __init__(self, site: Site, *, queries: int = 256) -> None:
        super().__init__()
        self.captioning = AttentionPooler(site, queries=queries)
        self.contrastive = AttentionPooler(site, queries=1)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b q d] and [b d]."""
        return Pooled(self.captioning(x), self.contrastive(x)[:, 0])


class Single(nn.Module):
    """One pooler for both tasks: its first query contrasts, the others caption (open_clip)."""

    def __init__(self, site: Site, *, queries: int = 256) -> None:
        super().__init__()
        if queries < 2:
            raise Unsupported(f"a single pooler needs at least 2 queries, got {queries}")
        self.pooler = AttentionPooler(site, queries=queries)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b q-1 d] and [b d]."""
        pooled = self.pooler(x)
        return Pooled(pooled[:, 1:], pooled[:, 0])


class Mean(nn.Module):
    """No queries: all image tokens, projected, caption; their mean contrasts."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.project = linear(_context_width(site), site.dim)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b n d] and [b d]."""
        tokens = self.project(x)
        return Pooled(tokens, tokens.mean(dim=1))


class Last(nn.Module):
    """No queries: all image tokens, projected, caption; the last one contrasts."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.project = linear(_context_width(site), site.dim)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b n d] and [b d]."""
        tokens = self.project(x)
        return Pooled(tokens, tokens[:, -1])


def _context_width(site: Site) -> int:
    return site.dim if site.context_dim is None else site.context_dim


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the built-in pooling."""
    return [
        BlockSpec(
            kind="pooling",
            name="cascade",
            factory=Cascade,
            summary="captioning queries, then one contrastive query on them",
            source="arXiv:2205.01917",
        ),
        BlockSpec(
            kind="pooling",
            name="parallel",
            factory=Parallel,
            summary="captioning queries and one contrastive query, side by side",
            source="arXiv:2205.01917",
        ),
        BlockSpec(
            kind="pooling",
            name="single",
            factory=Single,
            summary="one pooler: its first query contrasts, the others caption",
            source="open_clip",
        ),
        BlockSpec(
            kind="pooling",
            name="mean",
            factory=Mean,
            summary="all tokens caption, their mean contrasts",
            source="arXiv:1312.4400",
        ),
        BlockSpec(
            kind="pooling",
            name="last",
            factory=Last,
            summary="all tokens caption, the last one contrasts",
            source="coca-blocks",
        ),
    ]
