from __future__ import annotations

import math

import pytest
import torch

from blocks import Site, Unsupported, default_registry
from blocks.attention import attend, load_xformers, scores_mask


def qkv(n: int = 6, m: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, n, 8), torch.randn(2, 3, m, 8), torch.randn(2, 3, m, 8)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("n", [6, 2])
def test_backends_equal_the_plain_formula(causal: bool, with_bias: bool, n: int) -> None:
    q, k, v = qkv(n)
    bias = torch.randn(3, n, 6) if with_bias else None
    expected = attend(q, k, v, causal=causal, bias=bias, backend="reference")
    for backend in ("auto", "sdpa"):
        got = attend(q, k, v, causal=causal, bias=bias, backend=backend)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_reference_is_the_formula_term_by_term() -> None:
    q, k, v = qkv(4, 4)
    y = attend(q, k, v, causal=True, backend="reference")
    for i in range(4):
        weights = [math.exp(float(q[0, 0, i] @ k[0, 0, j]) / 8**0.5) for j in range(i + 1)]
        expected = sum(w * v[0, 0, j] for j, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(y[0, 0, i], expected, atol=1e-5, rtol=1e-5)


def test_mha_equals_torchs() -> None:
    ours = default_registry().build("attention", "mha", Site(dim=24, heads=3))
    torchs = torch.nn.MultiheadAttention(24, 3, batch_first=True)
    torchs.load_state_dict({
        "in_proj_weight": torch.cat([ours.query.weight, ours.key_value.weight]),
        "in_proj_bias": torch.cat([ours.query.bias, ours.key_value.bias]),
        "out_proj.weight": ours.leave.weight,
        "out_proj.bias": ours.leave.bias,
    })  # fmt: skip
    x = torch.randn(2, 5, 24)
    expected, _ = torchs(x, x, x)
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


def test_cross_attention_reads_a_context_of_another_width() -> None:
    site = Site(dim=24, heads=3, context_dim=10)
    cross = default_registry().build("attention", "mha", site)
    x, context = torch.randn(2, 5, 24), torch.randn(2, 7, 10)
    assert cross(x, context).shape == (2, 5, 24)
    order = torch.randperm(7)
    torch.testing.assert_close(cross(x, context[:, order]), cross(x, context), atol=1e-5, rtol=1e-5)


def test_xformers_is_refused_without_cuda_and_says_why() -> None:
    with pytest.raises(Unsupported, match="needs CUDA, got cpu; use sdpa"):
        attend(*qkv(), causal=False, backend="xformers")


def test_xformers_causal_mask_is_ours() -> None:
    pytest.importorskip("xformers")
    mask = load_xformers().LowerTriangularMask().materialize((5, 5))
    ours = scores_mask(torch.zeros(1, 1, 5, 8), 5, causal=True, bias=None)
    torch.testing.assert_close(mask, ours)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_xformers_equals_the_reference_on_cuda(causal: bool) -> None:
    q, k, v = (t.cuda() for t in qkv(16, 16))
    expected = attend(q, k, v, causal=causal, backend="reference")
    got = attend(q, k, v, causal=causal, backend="xformers")
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("spelling", "heads", "message"), [
    ("mha", 5, "must be divisible by the 5 heads"),
    ("mha(backend='fast')", 4, "no attention backend 'fast'"),
])  # fmt: skip
def test_bad_attention_is_refused(spelling: str, heads: int, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        default_registry().build("attention", spelling, Site(dim=24, heads=heads))
