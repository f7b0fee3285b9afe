"""Pooling blocks: image tokens [b n c] -> `Pooled`, what captioning and contrasting look at."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blocks.attention import MultiHeadAttention
from blocks.errors import Unsupported
from blocks.hookspecs import hookimpl
from blocks.norms import LayerNorm
from blocks.projections import linear
from blocks.site import Site
from blocks.spec import BlockSpec


class Pooled(NamedTuple):
    """What a pooler returns: tokens [b q d] to caption from and one vector [b d] to contrast."""

    tokens: Tensor
    vector: Tensor


class Pooling(nn.Module):
    """A pooler that can give either half alone, so that a loss left out costs nothing.

    A subclass defines `forward`, and whichever half is cheaper by itself. Submodules that only one
    half needs are named, so that a model with one objective does without them.
    """

    for_tokens_only: tuple[str, ...] = ()
    for_vector_only: tuple[str, ...] = ()

    def tokens(self, x: Tensor) -> Tensor:
        """Map [b n c] to the captioning tokens [b q d]."""
        pooled: Pooled = self(x)
        return pooled.tokens

    def vector(self, x: Tensor) -> Tensor:
        """Map [b n c] to the contrastive vector [b d]."""
        pooled: Pooled = self(x)
        return pooled.vector


class AttentionPooler(nn.Module):
    """Learned queries that attend to a context: one attention layer (arXiv 2205.01917).

    ``normed`` normalises the queries and the output, as in open_clip.
    """

    def __init__(self, site: Site, *, queries: int, normed: bool = False) -> None:
        super().__init__()
        if queries < 1:
            raise Unsupported(f"a pooler needs at least 1 query, got {queries}")
        self.queries = nn.Parameter(torch.empty(queries, site.dim))
        nn.init.trunc_normal_(self.queries, std=1.0)
        self.attention = MultiHeadAttention(site)
        self.norm_queries = LayerNorm(site) if normed else nn.Identity()
        self.norm_output = LayerNorm(site) if normed else nn.Identity()

    def forward(self, context: Tensor) -> Tensor:
        """Map [b m c] -> [b q d]."""
        queries = self.norm_queries(self.queries).to(context.dtype)
        pooled = self.attention(queries.expand(context.shape[0], -1, -1), context)
        out: Tensor = self.norm_output(pooled)
        return out


class Cascade(Pooling):
    """Captioning queries on the image tokens, then one contrastive query on these.

    The default of all CoCa models (arXiv 2205.01917): ``queries`` captioning queries, 256 there.
    """

    for_vector_only = ("contrastive",)

    def __init__(self, site: Site, *, queries: int = 256) -> None:
        super().__init__()
        self.captioning = AttentionPooler(site, queries=queries)
        self.contrastive = AttentionPooler(replace(site, context_dim=site.dim), queries=1)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b q d] and [b d]."""
        tokens = self.tokens(x)
        return Pooled(tokens, self.contrastive(tokens)[:, 0])

    def tokens(self, x: Tensor) -> Tensor:
        """Map [b n c] to [b q d]."""
        out: Tensor = self.captioning(x)
        return out


class Parallel(Pooling):
    """Captioning queries and one contrastive query, both on the image tokens (arXiv 2205.01917)."""

    for_tokens_only, for_vector_only = ("captioning",), ("contrastive",)

    def __init__(self, site: Site, *, queries: int = 256) -> None:
        super().__init__()
        self.captioning = AttentionPooler(site, queries=queries)
        self.contrastive = AttentionPooler(site, queries=1)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b q d] and [b d]."""
        return Pooled(self.tokens(x), self.vector(x))

    def tokens(self, x: Tensor) -> Tensor:
        """Map [b n c] to [b q d]."""
        out: Tensor = self.captioning(x)
        return out

    def vector(self, x: Tensor) -> Tensor:
        """Map [b n c] to [b d]."""
        out: Tensor = self.contrastive(x)[:, 0]
        return out


class Single(Pooling):
    """One pooler for both tasks: its first query contrasts, the others caption (open_clip).

    ``normed`` adds layer norms on queries and output and ``heads`` sets the pooler's own number of
    heads (0: that of the multimodal tower), as open_clip's models have it.
    """

    def __init__(
        self, site: Site, *, queries: int = 256, normed: bool = False, heads: int = 0
    ) -> None:
        super().__init__()
        if queries < 2:
            raise Unsupported(f"a single pooler needs at least 2 queries, got {queries}")
        if heads < 0:
            raise Unsupported(f"heads must be at least 0, got {heads}")
        own = replace(site, heads=heads or site.heads)
        self.pooler = AttentionPooler(own, queries=queries, normed=normed)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b q-1 d] and [b d]."""
        pooled = self.pooler(x)
        return Pooled(pooled[:, 1:], pooled[:, 0])


class Mean(Pooling):
    """No queries: all image tokens, projected, caption; their mean contrasts."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.project = linear(_context_width(site), site.dim)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b n d] and [b d]."""
        tokens = self.tokens(x)
        return Pooled(tokens, tokens.mean(dim=1))

    def tokens(self, x: Tensor) -> Tensor:
        """Map [b n c] to [b n d]."""
        out: Tensor = self.project(x)
        return out

    def vector(self, x: Tensor) -> Tensor:
        """Map [b n c] to [b d]: the mean of projections is the projection of the mean."""
        out: Tensor = self.project(x.mean(dim=1))
        return out


class Last(Pooling):
    """No queries: all image tokens, projected, caption; the last one contrasts."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.project = linear(_context_width(site), site.dim)

    def forward(self, x: Tensor) -> Pooled:
        """Map [b n c] to [b n d] and [b d]."""
        tokens = self.tokens(x)
        return Pooled(tokens, tokens[:, -1])

    def tokens(self, x: Tensor) -> Tensor:
        """Map [b n c] to [b n d]."""
        out: Tensor = self.project(x)
        return out

    def vector(self, x: Tensor) -> Tensor:
        """Map [b n c] to [b d]."""
        out: Tensor = self.project(x[:, -1])
        return out


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
