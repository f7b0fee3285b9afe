from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from blocks import Site, Unsupported, default_registry

SITE = Site(dim=12, hidden=20)


def test_mlp_is_linear_gelu_linear() -> None:
    ffn, x = default_registry().build("ffn", "mlp", SITE), torch.randn(2, 3, 12)
    inner = x @ ffn.enter.weight.T + ffn.enter.bias
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    expected = inner @ ffn.leave.weight.T + ffn.leave.bias
    torch.testing.assert_close(ffn(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("geglu", F.gelu),
        ("swiglu", F.silu),
        ("reglu", F.relu),
        ("bilinear", lambda x: x),
    ],
)
def test_gated_ffns_are_the_formula(
    name: str, activation: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    ffn, x = default_registry().build("ffn", name, SITE), torch.randn(2, 3, 12)
    gate, value = ffn.enter.weight[:20], ffn.enter.weight[20:]
    expected = (activation(x @ gate.T) * (x @ value.T)) @ ffn.leave.weight.T
    torch.testing.assert_close(ffn(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", default_registry().names("ffn"))
def test_an_ffn_without_a_width_is_refused(name: str) -> None:
    with pytest.raises(Unsupported, match="at least 1, got 0"):
        default_registry().build("ffn", name, Site(dim=12))


@pytest.mark.parametrize(("name", "activation"), [
    ("relu", lambda x: x.clamp_min(0)),
    ("silu", lambda x: x / (1 + (-x).exp())),
    ("relu2", lambda x: x.clamp_min(0) ** 2),
])  # fmt: skip
def test_mlp_activations_are_the_formula(
    name: str, activation: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    ffn = default_registry().build("ffn", f"mlp(activation={name!r})", SITE)
    x = torch.randn(2, 3, 12)
    expected = activation(x @ ffn.enter.weight.T) @ ffn.leave.weight.T
    torch.testing.assert_close(ffn(x), expected, atol=1e-5, rtol=1e-5)


def test_an_unknown_activation_has_the_near_miss() -> None:
    with pytest.raises(Unsupported, match="no activation named 'relu3'; did you mean 'relu"):
        default_registry().build("ffn", "mlp(activation='relu3')", SITE)
