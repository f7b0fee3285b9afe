"""Differential attention: the difference of two attention maps cancels what both attend to."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks import BlockSpec, KeyValues, Positions, Site, Unsupported, attend, hookimpl, linear


class DifferentialAttention(nn.Module):
    """(softmax(q1 k1) - lambda softmax(q2 k2)) v, normed per head (arXiv 2410.05258).

    Two neighbouring heads make one differential head with values of twice the width, so that
    parameters and head width stay those of multi-head attention. ``initial`` is lambda at the
    start; 0 asks for the paper's value, which grows with the layer.
    """

    def __init__(self, site: Site, *, initial: float = 0.0, bias: bool = False) -> None:
        super().__init__()
        if site.heads % 2 or site.dim % site.heads:
            raise Unsupported(
                f"differential attention needs an even number of heads that divides the width, "
                f"got {site.heads} heads and width {site.dim}"
            )
        if not 0 <= initial < 1:
            raise Unsupported(f"initial must be at least 0 and below 1, got {initial}")
        self.heads, self.causal = site.heads, site.causal
        self.initial = initial or 0.8 - 0.6 * math.exp(-0.3 * site.layer)
        context = site.dim if site.context_dim is None else site.context_dim
        self.query = linear(site.dim, site.dim, bias=bias)
        self.key_value = linear(context, 2 * site.dim, bias=bias)
        self.leave = linear(site.dim, site.dim, bias=bias)
        self.lambdas = nn.Parameter(0.1 * torch.randn(4, site.head_dim))
        self.gain = nn.Parameter(torch.ones(2 * site.head_dim))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        positions: Positions | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Map [b n d], with context [b m c] for cross-attention, to [b n d].

        With a cache, x are the tokens that follow those in it; a context is looked at once.
        """
        q = _split(self.query(x), self.heads)  # [b h n e]
        if context is not None and cache is not None and len(cache):
            k, v = cache.all()
        else:
            key, value = self.key_value(x if context is None else context).chunk(2, dim=-1)
            k, v = _split(key, self.heads), _split(value, self.heads // 2)
            if positions is not None:
                q, k = positions.rotate(q, k, offset=len(cache) if cache is not None else 0)
            if cache is not None:
                k, v = cache.extend(k, v)
        v = v.repeat_interleave(2, dim=1)  # [b h m 2e]
        bias = None if positions is None else positions.bias(q.shape[-2], k.shape[-2])
        y = attend(q, k, v, causal=self.causal, bias=bias)  # [b h n 2e]
        first, second = y[:, 0::2], y[:, 1::2]
        q1, k1, q2, k2 = self.lambdas.float()
        amount = (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.initial
        mixed = F.rms_norm((first - amount * second).float(), self.gain.shape, self.gain.float())
        merged = (1 - self.initial) * mixed.transpose(1, 2).flatten(2)
        out: Tensor = self.leave(merged.to(x.dtype))
        return out


def _split(x: Tensor, heads: int) -> Tensor:
    b, n, d = x.shape
    return x.reshape(b, n, heads, d // heads).transpose(1, 2)


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the attention."""
    return [
        BlockSpec(
            kind="attention",
            name="differential",
            factory=DifferentialAttention,
            summary="the difference of two attention maps",
            source="arXiv:2410.05258",
            sweep={"initial": (0.5,)},
        )
    ]
