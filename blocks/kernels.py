"""The kernels of attention: softmax(q k^T / sqrt(e) + bias) v by one of several backends."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.errors import Unsupported

CUDA_BACKENDS = ("xformers", "flex")
BACKENDS = ("auto", "sdpa", *CUDA_BACKENDS, "reference")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend with queries [b h n e] to keys [b h m e] and values [b h m c]; returns [b h n c].

    With ``causal`` the queries stand at the last n of the m positions. ``bias`` is [h n m],
    or [b h n m] where it differs by example.
    ``reference`` is the formula as written. ``auto`` is torch's fused ``sdpa``, which calls the
    same kernels as ``xformers`` for dense and causal masks. ``xformers`` and ``flex`` need CUDA
    and raise `Unsupported` elsewhere.
    """
    if backend in CUDA_BACKENDS:
        require_cuda(backend, q.device)
    if backend == "xformers":
        return _xformers_attend(q, k, v, causal=causal, bias=bias)
    if backend == "flex":
        return flex_attend(q, k, v, causal=causal, bias=bias)
    if backend == "reference":
        return _reference_attend(q, k, v, causal=causal, bias=bias)
    assert backend in ("auto", "sdpa"), backend
    causal = causal and q.shape[-2] > 1  # the last token sees all: no mask when decoding
    if bias is None and (not causal or q.shape[-2] == k.shape[-2]):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    mask = scores_mask(q, k.shape[-2], causal=causal, bias=bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def require_cuda(backend: str, device: torch.device) -> None:
    """Refuse a backend on a device that it has no kernel for."""
    if device.type not in ("cuda", "meta"):
        raise Unsupported(
            f"attention backend {backend!r} needs CUDA, got {device.type}; use sdpa or auto"
        )


def scores_mask(q: Tensor, keys: int, *, causal: bool, bias: Tensor | None) -> Tensor | None:
    """Return what is added to the scores, [h n m] or [n m]: the bias, and -inf on the future."""
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
    scores = (q.float() @ k.float().transpose(-2, -1)) * q.shape[-1] ** -0.5  # [b h n m]
    mask = scores_mask(q, k.shape[-2], causal=causal, bias=bias)
    if mask is not None:
        scores = scores + mask.float()
    y: Tensor = scores.softmax(dim=-1) @ v.float()
    return y.to(q.dtype)


def _xformers_attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, bias: Tensor | None
) -> Tensor:
    if q.is_meta:  # only shapes are asked for
        return _reference_attend(q, k, v, causal=causal, bias=bias)
    ops = load_xformers()
    mask = xformers_mask(ops, q, k.shape[-2], causal=causal, bias=bias)
    arguments = (t.transpose(1, 2) for t in (q, k, v))  # xformers wants [b n h e]
    y: Tensor = ops.memory_efficient_attention(*arguments, attn_bias=mask)  # [b n h c]
    return torch.transpose(y, 1, 2)


def xformers_mask(ops: Any, q: Tensor, keys: int, *, causal: bool, bias: Tensor | None) -> Any:
    """Return xformers' own form of a mask: its causal class where that is all, else a tensor."""
    if bias is None and not causal:
        return None
    if bias is None:
        masks = ops.fmha.attn_bias
        square = q.shape[-2] == keys
        return masks.LowerTriangularMask() if square else masks.LowerTriangularFromBottomRightMask()
    dense = scores_mask(q, keys, causal=causal, bias=bias)
    assert dense is not None
    return dense.expand(q.shape[0], q.shape[1], -1, -1)


@functools.cache
def load_xformers() -> Any:
    """Import xformers.ops on first use, without its warning; `Unsupported` if absent."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        import xformers.ops
    except Exception as error:
        raise Unsupported(f"attention backend 'xformers' does not import: {error!r}") from error
    return xformers.ops


def flex_attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, bias: Tensor | None) -> Tensor:
    """Attend by torch's flex attention, compiled on CUDA, where it is worth it."""
    if q.is_meta:
        return _reference_attend(q, k, v, causal=causal, bias=bias)
    shift = k.shape[-2] - q.shape[-2]
    if bias is not None:
        bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if bias is not None:
            s = s + bias[b, h, i, j]
        return torch.where(j <= i + shift, s, -math.inf) if causal else s

    y: Tensor = _flex(q.is_cuda)(q, k, v, score_mod=score)
    return y


@functools.cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention
