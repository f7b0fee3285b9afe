"""Attention blocks: [b n d] attends to itself or to a context [b m c]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.errors import Unsupported, choose
from blocks.hookspecs import hookimpl
from blocks.kernels import BACKENDS, attend
from blocks.positions import Positions
from blocks.projections import linear
from blocks.site import Site
from blocks.spec import BlockSpec

QK_NORM_EPS = 1e-6
BACKEND_IS_NO_RESULT = {"option_acts(backend)": "a backend changes the kernel, not the result"}


class KeyValues:
    """Keys and values [b h m e] of tokens seen before, for decoding token by token."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]

    def all(self) -> tuple[Tensor, Tensor]:
        """Return what has been seen."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; returns all."""
        if len(self):
            old_keys, old_values = self.all()
            keys = torch.cat([old_keys, keys], dim=-2)
            values = torch.cat([old_values, values], dim=-2)
        self.keys, self.values = keys, values
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Keep these rows [r] of the batch, in this order."""
        if len(self):
            self.keys, self.values = (t[rows] for t in self.all())


class GroupedQueryAttention(nn.Module):
    """Scaled dot-product attention in which heads share keys and values (arXiv 2305.13245).

    ``kv_heads`` heads of keys and values serve all query heads. ``qk_norm`` gives queries and keys
    unit root mean square per head, times a gain (arXiv 2302.05442, 2309.14322). ``gate`` multiplies
    the heads' output by a sigmoid of the input (arXiv 2505.06708). ``backend`` chooses the kernel,
    see `blocks.kernels.attend`.
    """

    def __init__(
        self,
        site: Site,
        *,
        kv_heads: int = 2,
        bias: bool = True,
        qk_norm: bool = False,
        gate: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if site.dim % site.heads:
            raise Unsupported(f"width {site.dim} must be divisible by the {site.heads} heads")
        if not 1 <= kv_heads <= site.heads or site.heads % kv_heads:
            raise Unsupported(f"kv_heads must divide the {site.heads} heads, got {kv_heads}")
        self.heads, self.kv_heads, self.head_dim = site.heads, kv_heads, site.head_dim
        self.causal, self.backend = site.causal, choose("attention backend", backend, BACKENDS)
        context = site.dim if site.context_dim is None else site.context_dim
        # Drawn in this order, options leave what they do not touch as it is for the same seed.
        self.query = linear(site.dim, site.dim, bias=bias)
        self.leave = linear(site.dim, site.dim, bias=bias)
        self.key_value = linear(context, 2 * kv_heads * site.head_dim, bias=bias)
        self.gate = linear(site.dim, site.dim) if gate else None
        self.query_gain = nn.Parameter(torch.ones(site.head_dim)) if qk_norm else None
        self.key_gain = nn.Parameter(torch.ones(site.head_dim)) if qk_norm else None

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
        q = _unit_rms(split_heads(self.query(x), self.heads), self.query_gain)  # [b h n e]
        if context is not None and cache is not None and len(cache):
            k, v = cache.all()
        else:
            k, v = self._keys_values(x if context is None else context)
            if positions is not None:
                assert context is None, "positions are for self-attention"
                q, k = positions.rotate(q, k, offset=len(cache) if cache is not None else 0)
            if cache is not None:
                k, v = cache.extend(k, v)
        bias = None if positions is None else positions.bias(q.shape[-2], k.shape[-2])
        y = attend(q, k, v, causal=self.causal, bias=bias, backend=self.backend)  # [b h n e]
        merged = y.transpose(1, 2).flatten(2)  # [b n d]
        if self.gate is not None:
            merged = merged * torch.sigmoid(self.gate(x))
        out: Tensor = self.leave(merged)
        return out

    def _keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [b h m e], shared ones repeated: positions may differ by head."""
        k, v = (split_heads(t, self.kv_heads) for t in self.key_value(source).chunk(2, dim=-1))
        k = _unit_rms(k, self.key_gain)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        return k, v


class MultiHeadAttention(GroupedQueryAttention):
    """Scaled dot-product attention over several heads (arXiv 1706.03762).

    Each head has keys and values of its own. ``qk_norm`` gives queries and keys unit root mean
    square per head, times a gain (arXiv 2302.05442, 2309.14322). ``gate`` multiplies the heads'
    output by a sigmoid of the input (arXiv 2505.06708). ``backend`` chooses the kernel.
    """

    def __init__(
        self,
        site: Site,
        *,
        bias: bool = True,
        qk_norm: bool = False,
        gate: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            site, kv_heads=site.heads, bias=bias, qk_norm=qk_norm, gate=gate, backend=backend
        )


class MultiQueryAttention(GroupedQueryAttention):
    """Attention whose heads all share one head of keys and values (arXiv 1911.02150)."""

    def __init__(self, site: Site, *, bias: bool = True, backend: str = "auto") -> None:
        super().__init__(site, kv_heads=1, bias=bias, backend=backend)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Map [b n d] -> [b h n e]."""
    b, n, d = x.shape
    return x.reshape(b, n, heads, d // heads).transpose(1, 2)


def _unit_rms(x: Tensor, gain: Tensor | None) -> Tensor:
    """Normalise [b h n e] over e, if there is a gain."""
    if gain is None:
        return x
    return F.rms_norm(x.float(), x.shape[-1:], gain.float(), QK_NORM_EPS).to(x.dtype)


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
            sweep={"qk_norm": (True,), "gate": (True,)},
            expected_failures=BACKEND_IS_NO_RESULT,
        ),
        BlockSpec(
            kind="attention",
            name="gqa",
            factory=GroupedQueryAttention,
            summary="heads share keys and values in groups",
            source="arXiv:2305.13245",
            expected_failures=BACKEND_IS_NO_RESULT,
        ),
        BlockSpec(
            kind="attention",
            name="mqa",
            factory=MultiQueryAttention,
            summary="all heads share one head of keys and values",
            source="arXiv:1911.02150",
            expected_failures=BACKEND_IS_NO_RESULT,
        ),
    ]
