"""Our blocks against other people's: transformers and x-transformers (pytest -m peer)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blocks import Positions, Site, load_registry

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]  # their warnings, not ours
DYT = str(Path(__file__).parents[2] / "plugins" / "dyt" / "dyt.py")
X = torch.linspace(-3, 3, 2 * 6 * 32).sin().reshape(2, 6, 32)


@pytest.fixture(scope="module")
def llama() -> Any:
    return pytest.importorskip("transformers.models.llama.modeling_llama")


@pytest.fixture(scope="module")
def xt() -> Any:
    return pytest.importorskip("x_transformers.x_transformers")


def build(kind: str, spelling: str, **site: Any) -> nn.Module:
    registry = load_registry([DYT], entry_points=False)
    block = registry.build(kind, spelling, Site(**{"dim": 32, "heads": 4, "hidden": 48, **site}))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
            )
    return block


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_rmsnorm(llama: Any, xt: Any) -> None:
    ours = build("norm", "rmsnorm")
    theirs = llama.LlamaRMSNorm(32, eps=1e-6)
    theirs.weight = ours.gain
    same(ours(X), theirs(X))
    other = xt.RMSNorm(32)
    other.g = ours.gain
    same(build("norm", "rmsnorm(eps=1e-30)")(X), other(X))


def test_scalenorm_and_dyt(xt: Any) -> None:
    ours, theirs = build("norm", "scalenorm"), xt.ScaleNorm(32)
    theirs.g.data.fill_(ours.scale.item() / 32**0.5)
    same(ours(X), theirs(X))
    ours, theirs = build("norm", "dyt"), xt.DynamicTanh(32)
    theirs.load_state_dict({"pre_tanh_scale": ours.alpha, "gamma": ours.gain, "beta": ours.bias})
    same(ours(X), theirs(X))


@pytest.mark.parametrize(("name", "activation"), [("geglu", nn.GELU()), ("swiglu", nn.SiLU()),
                                                  ("reglu", nn.ReLU())])  # fmt: skip
def test_gated_ffns(name: str, activation: nn.Module, xt: Any) -> None:
    ours = build("ffn", f"{name}(bias=True)")
    theirs = xt.GLU(32, 48, activation)
    gate, value = ours.enter.weight.chunk(2)
    gate_bias, value_bias = ours.enter.bias.chunk(2)
    theirs.proj.load_state_dict(
        {"weight": torch.cat([value, gate]), "bias": torch.cat([value_bias, gate_bias])}
    )
    same(ours(X), ours.leave(theirs(X)))


def test_swiglu_is_llamas(llama: Any) -> None:
    from transformers import LlamaConfig

    ours = build("ffn", "swiglu")
    theirs = llama.LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48, hidden_act="silu"))
    gate, value = ours.enter.weight.chunk(2)
    theirs.load_state_dict(
        {"gate_proj.weight": gate, "up_proj.weight": value, "down_proj.weight": ours.leave.weight}
    )
    same(ours(X), theirs(X))


def positions(spelling: str, **site: Any) -> Positions:
    block = build("position", spelling, grid=(6,), **site)
    assert isinstance(block, Positions)
    return block


def test_rope(llama: Any, xt: Any) -> None:
    ours, q = positions("rope"), X.reshape(2, 6, 4, 8).transpose(1, 2)
    turned, _ = ours.rotate(q, q)
    freqs, scale = xt.RotaryEmbedding(8).forward_from_seq_len(6)
    same(turned, xt.apply_rotary_pos_emb(q, freqs, scale))
    # Llama pairs channel i with i + e/2 where we and the paper pair neighbours.
    half = [*range(0, 8, 2), *range(1, 8, 2)]
    angles = torch.outer(torch.arange(6.0), 10000.0 ** (-torch.arange(4) / 4))
    angles = torch.cat([angles, angles], -1)[None]
    theirs, _ = llama.apply_rotary_pos_emb(q[..., half], q[..., half], angles.cos(), angles.sin())
    same(turned[..., half], theirs)


def test_alibi(xt: Any) -> None:
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    ours = positions("alibi", heads=8).bias(6, 6)
    same(ours, xt.AlibiPositionalBias(8)(6, 6))
    theirs = bloom.build_alibi_tensor(torch.ones(1, 6), 8, torch.float32).reshape(8, 1, 6)
    causal = torch.ones(6, 6).triu(1).bool()  # they count from the start: equal up to a constant
    same(
        ours.masked_fill(causal, -torch.inf).softmax(-1),
        theirs.expand(8, 6, 6).masked_fill(causal, -torch.inf).softmax(-1),
    )


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool, xt: Any) -> None:
    ours = build("attention", "mha(bias=False)", causal=causal)
    theirs = xt.Attention(32, dim_head=8, heads=4, causal=causal)
    key, value = ours.key_value.weight.chunk(2)
    theirs.load_state_dict({
        "to_q.weight": ours.query.weight, "to_k.weight": key, "to_v.weight": value,
        "to_out.weight": ours.leave.weight,
    }, strict=False)  # fmt: skip
    got = theirs(X)
    same(ours(X), got[0] if isinstance(got, tuple) else got)


@pytest.mark.parametrize("causal", [False, True])
def test_grouped_queries_are_llamas(causal: bool, llama: Any) -> None:
    from transformers import LlamaConfig

    ours = build("attention", "gqa(kv_heads=2, bias=False)", causal=causal)
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    config._attn_implementation = "eager"
    theirs = llama.LlamaAttention(config, layer_idx=0)
    key, value = ours.key_value.weight.chunk(2)
    theirs.load_state_dict({
        "q_proj.weight": ours.query.weight, "k_proj.weight": key, "v_proj.weight": value,
        "o_proj.weight": ours.leave.weight,
    })  # fmt: skip
    mask = torch.zeros(1, 1, 6, 6)
    if causal:
        mask = mask.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    still = (torch.ones(1, 6, 8), torch.zeros(1, 6, 8))  # no rotation
    expected, _ = theirs(X, position_embeddings=still, attention_mask=mask)
    same(ours(X), expected)
