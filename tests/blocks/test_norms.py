from __future__ import annotations

import pytest
import torch

from blocks import Site, Unsupported, default_registry

SITE = Site(dim=16)


def build(spelling: str) -> torch.nn.Module:
    norm = default_registry().build("norm", spelling, SITE)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter))
    return norm


def test_layernorm_is_the_formula_and_torchs_own() -> None:
    norm, x = build("layernorm"), torch.randn(2, 5, 16) * 3 + 1
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = expected * norm.gain + norm.bias
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)
    torchs = torch.nn.LayerNorm(16)
    torchs.load_state_dict({"weight": norm.gain, "bias": norm.bias})
    torch.testing.assert_close(norm(x), torchs(x), atol=1e-6, rtol=1e-6)


def test_layernorm_without_bias() -> None:
    assert [name for name, _ in build("layernorm(bias=False)").named_parameters()] == ["gain"]


def test_rmsnorm_is_the_formula() -> None:
    norm, x = build("rmsnorm"), torch.randn(2, 5, 16) * 3 + 1
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.gain
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)


def test_none_is_the_identity() -> None:
    x = torch.randn(2, 5, 16)
    assert build("none")(x) is x


@pytest.mark.parametrize("spelling", ["layernorm", "rmsnorm"])
def test_statistics_are_in_fp32_under_bf16(spelling: str) -> None:
    norm = build(spelling)
    x = (torch.randn(4, 8, 16) * 100 + 1000).bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), norm(x.float()), atol=0.02, rtol=0.01)


def test_scalenorm_is_the_formula() -> None:
    norm, x = build("scalenorm"), torch.randn(2, 5, 16) * 3
    expected = norm.scale * x / x.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)


def test_headnorm_is_torchs_group_norm_of_each_token() -> None:
    site = Site(dim=16, heads=4)
    norm, x = default_registry().build("norm", "headnorm", site), torch.randn(2, 5, 16) * 3 + 1
    torchs = torch.nn.GroupNorm(4, 16)
    expected = torchs(x.reshape(10, 16)).reshape(2, 5, 16)
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)


def test_derf_is_the_formula() -> None:
    norm, x = build("derf(alpha=0.7)"), torch.randn(2, 5, 16)
    expected = torch.special.erf(norm.alpha * x + norm.shift) * norm.gain + norm.bias
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spelling", ["rmsnorm(eps=0.0)", "layernorm(eps=-1.0)", "derf(alpha=0.0)"])
def test_options_out_of_range_are_refused(spelling: str) -> None:
    with pytest.raises(Unsupported, match="must be above 0, got"):
        build(spelling)
