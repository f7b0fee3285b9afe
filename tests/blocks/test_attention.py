from __future__ import annotations

import math

import pytest
import torch

from blocks import Site, Unsupported, default_registry
from blocks.kernels import attend, flex_attend, load_xformers, scores_mask, xformers_mask


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
    with pytest.raises(Unsupported, match="needs CUDA, got cpu; use sdpa or auto"):
        attend(*qkv(), causal=False, backend="xformers")


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_xformers_equals_the_reference_on_cuda(causal: bool) -> None:
    q, k, v = (t.cuda() for t in qkv(16, 16))
    expected = attend(q, k, v, causal=causal, backend="reference")
    got = attend(q, k, v, causal=causal, backend="xformers")
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("spelling", "heads", "message"), [
    ("mha", 5, "must be divisible by the 5 heads"),
    ("mha(backend='fast')", 4, "no attention backend named 'fast'"),
])  # fmt: skip
def test_bad_attention_is_refused(spelling: str, heads: int, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        default_registry().build("attention", spelling, Site(dim=24, heads=heads))


def test_flex_is_refused_without_cuda_and_its_formula_is_ours() -> None:
    with pytest.raises(Unsupported, match="'flex' needs CUDA"):
        attend(*qkv(), causal=False, backend="flex")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_flex_without_compiling_equals_the_reference(causal: bool, with_bias: bool) -> None:
    q, k, v = qkv(4, 6)
    bias = torch.randn(3, 4, 6) if with_bias else None
    expected = attend(q, k, v, causal=causal, bias=bias, backend="reference")
    got = flex_attend(q, k, v, causal=causal, bias=bias)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [3, 6])
def test_xformers_masks_are_ours(n: int) -> None:
    pytest.importorskip("xformers")
    ops, q, bias = load_xformers(), torch.zeros(2, 3, n, 8), torch.randn(3, n, 6)
    ours = scores_mask(q, 6, causal=True, bias=None)
    theirs = xformers_mask(ops, q, 6, causal=True, bias=None).materialize((n, 6))
    torch.testing.assert_close(theirs, ours)
    assert xformers_mask(ops, q, 6, causal=False, bias=None) is None
    dense = xformers_mask(ops, q, 6, causal=True, bias=bias)
    torch.testing.assert_close(dense[1], scores_mask(q, 6, causal=True, bias=bias))


def build(spelling: str, **site: object) -> torch.nn.Module:
    return default_registry().build(
        "attention",
        spelling,
        Site(**{"dim": 24, "heads": 4, **site}),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("causal", [False, True])
def test_grouped_queries_equal_torchs(causal: bool) -> None:
    ours, x = build("gqa(kv_heads=2)", causal=causal), torch.randn(2, 5, 24)
    q = ours.query(x).view(2, 5, 4, 6).transpose(1, 2)
    k, v = (t.reshape(2, 5, 2, 6).transpose(1, 2) for t in ours.key_value(x).chunk(2, -1))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    expected = ours.leave(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


def test_mqa_and_mha_are_the_ends_of_gqa() -> None:
    x = torch.randn(2, 5, 24)
    for name, kv_heads in (("mqa", 1), ("mha", 4)):
        end, grouped = build(name), build(f"gqa(kv_heads={kv_heads})")
        grouped.load_state_dict(end.state_dict())
        torch.testing.assert_close(end(x), grouped(x))


def test_qk_norm_makes_scores_independent_of_length() -> None:
    block, x = build("mha(qk_norm=True, bias=False)"), torch.randn(2, 5, 24)
    longer = build("mha(qk_norm=True, bias=False)")
    longer.load_state_dict(block.state_dict())
    with torch.no_grad():
        longer.query.weight.mul_(7)
    torch.testing.assert_close(longer(x), block(x), atol=1e-4, rtol=1e-4)


def test_the_gate_is_a_sigmoid_of_the_input() -> None:
    block, x = build("mha(gate=True)"), torch.randn(2, 5, 24)
    with torch.no_grad():
        block.gate.weight.zero_()
    plain = build("mha")
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "gate" not in k})
    half = 0.5 * (plain(x) - plain.leave.bias) + plain.leave.bias
    torch.testing.assert_close(block(x), half, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spelling", ["mha(gate=True)", "mha(qk_norm=True)", "gqa(kv_heads=2)"])
def test_options_leave_the_rest_paired(spelling: str) -> None:
    torch.manual_seed(0)
    plain = build("mha").state_dict()
    torch.manual_seed(0)
    other = build(spelling).state_dict()
    for name in ("query.weight", "leave.weight"):
        assert torch.equal(plain[name], other[name])
