from __future__ import annotations

import pytest
import torch
from samples import small

from assemblies import CoCa, CoCaConfig, with_field
from assemblies.transplant import transplant
from blocks import UsageError


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    tokens = torch.randint(3, 400, (3, 8), generator=generator)
    return images, tokens, torch.tensor([8, 5, 6])


def trained(cell: CoCaConfig) -> CoCa:
    """Return a model none of whose gains, biases and tables are what they start as."""
    model = CoCa(cell, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def baseline(**changes: object) -> CoCaConfig:
    return small("baseline", **{"image.depth": 2, **changes})


@pytest.mark.parametrize("changes", [
    {}, {"image.position": "rope"}, {"image.position": "relative"}, {"image.class_token": True},
    {"image.pooling": "parallel(queries=4)"}, {"image.pooling": "mean"},
    {"image.pooling": "single(queries=4)"}, {"image.attention": "gqa(kv_heads=1)"},
    {"image.attention": "mha(gate=True)"}, {"image.ffn": "geglu(bias=True)"},
    {"image.norm": "layernorm(bias=False)", "image.ffn": "geglu"},
], ids=str)  # fmt: skip
@torch.no_grad()
def test_layernorm_to_rmsnorm_is_the_same_function(changes: dict[str, object]) -> None:
    source = trained(baseline(**changes))
    target = with_field(source.cell, "image.norm", "rmsnorm(eps=1e-5)")
    model, report = transplant(source, target)
    assert report.folded, report
    assert not report.fresh
    assert not report.caveat
    model.eval()
    (before, states), (after, others) = source(*batch()), model(*batch())
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(after.image, before.image, **close)
    torch.testing.assert_close(others, states, **close)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"image.placement": "post"}, "placement is post"),
    ({"image.position": "sincos"}, "sincos adds what has a mean"),
    ({"image.ffn": "geglu"}, "has no bias to take its"),
    ({"image.pre_norm": True}, "writes into the residual stream"),
])  # fmt: skip
def test_what_cannot_be_folded_is_carried_and_said(changes: dict[str, object], reason: str) -> None:
    source = trained(baseline(**changes))
    model, report = transplant(source, with_field(source.cell, "image.norm", "rmsnorm"))
    assert not report.folded
    assert reason in report.caveat
    gain = "image.stack.layers.0.attention.norm_enter.gain"
    if gain in report.carried:
        assert torch.equal(model.state_dict()[gain], source.state_dict()[gain])


@pytest.mark.parametrize(("path", "value", "reason"), [
    ("image.placement", "post", "placement is post"),
    ("image.pre_norm", True, "writes into the residual stream"),
])  # fmt: skip
def test_a_target_of_other_wiring_is_not_folded(path: str, value: object, reason: str) -> None:
    source = trained(baseline())
    target = with_field(with_field(source.cell, "image.norm", "rmsnorm"), path, value)
    _, report = transplant(source, target)
    assert not report.folded
    assert reason in report.caveat


def test_another_eps_is_said() -> None:
    source = trained(baseline())
    _, report = transplant(source, with_field(source.cell, "image.norm", "rmsnorm"))
    assert report.folded
    assert "eps is 1e-06 and was 1e-05" in str(report)


def test_other_swaps_carry_what_fits_and_name_the_rest() -> None:
    source = trained(baseline())
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    cell = with_field(with_field(source.cell, "image.position", "rope"), "image.ffn", "geglu")
    model, report = transplant(source, cell, seed=5)
    state, fresh = model.state_dict(), CoCa(cell, seed=5).state_dict()
    assert set(report.carried) | set(report.fresh) == set(state)
    assert all(torch.equal(state[name], before[name]) for name in report.carried)
    assert all(torch.equal(state[name], fresh[name]) for name in report.fresh)
    assert "image.stack.positions.table" in report.dropped
    assert all(".ffn." in name for name in report.fresh)
    assert "image.stack.layers.1.ffn.branch.enter.weight" in report.fresh
    assert all(torch.equal(source.state_dict()[name], before[name]) for name in before)
    assert "dropped" in str(report)


def test_the_same_cell_is_the_same_model() -> None:
    source = trained(small())
    model, report = transplant(source, source.cell, seed=9)
    assert not report.fresh + report.dropped
    assert all(torch.equal(a, b) for a, b in zip(
        model.state_dict().values(), source.state_dict().values(), strict=True))  # fmt: skip


def test_sizes_must_agree() -> None:
    with pytest.raises(UsageError, match=r"image\.depth 1 -> 2"):
        transplant(CoCa(small()), small(**{"image.depth": 2}))
    with pytest.raises(UsageError, match=r"temperature 0\.07 -> 0\.01"):
        transplant(CoCa(small()), small(temperature=0.01))
