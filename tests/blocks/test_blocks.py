"""What every registered block must keep to, whatever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from blocks import BlockSpec, Pooled, Positions, Site, Unsupported, default_registry

SITES = {
    "image": Site(dim=32, heads=2, grid=(3, 4), tower="image", hidden=48),
    "text": Site(dim=32, heads=2, grid=(12,), causal=True, tower="text", hidden=48),
}
SPECS = [pytest.param(spec, id=f"{spec.kind}/{spec.name}") for spec in default_registry()]


def call(block: nn.Module, spec: BlockSpec, x: Tensor) -> Tensor:
    """Run a block as its tower would; returns [b n d]."""
    if spec.kind == "position":
        assert isinstance(block, Positions)
        y = block.embed(x)
        q, k = (y.view(*y.shape[:2], 2, 16).transpose(1, 2),) * 2
        return torch.cat([t.transpose(1, 2).flatten(2) for t in block.rotate(q, k)], dim=-1)
    if spec.kind == "pooling":
        pooled = block(x)
        assert isinstance(pooled, Pooled)
        return torch.cat([pooled.tokens, pooled.vector[:, None]], dim=1)
    y = block(x)
    assert y.shape == x.shape
    return y


def build(spec: BlockSpec, site: Site, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    try:
        with torch.device(device):
            return spec.build(site, {})
    except Unsupported as reason:
        pytest.skip(str(reason))


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest) -> Site:
    return SITES[request.param]


@pytest.mark.parametrize("spec", SPECS)
def test_builds_on_meta(spec: BlockSpec, site: Site) -> None:
    block = build(spec, site, "meta")
    assert all(t.is_meta for t in (*block.parameters(), *block.buffers()))


@pytest.mark.parametrize("spec", SPECS)
def test_keeps_dtype(spec: BlockSpec, site: Site) -> None:
    y = call(build(spec, site).bfloat16(), spec, torch.randn(2, 12, 32).bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_reach_every_parameter(spec: BlockSpec, site: Site) -> None:
    block, x = build(spec, site), torch.randn(2, 12, 32, requires_grad=True)
    call(block, spec, x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("spec", SPECS)
def test_examples_do_not_mix(spec: BlockSpec, site: Site) -> None:
    block, x = build(spec, site), torch.randn(3, 12, 32)
    alone = call(block, spec, x[1:2])
    torch.testing.assert_close(call(block, spec, x)[1:2], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", [p for p in SPECS if p.values[0].kind != "pooling"])
def test_the_future_does_not_leak(spec: BlockSpec) -> None:
    block, x = build(spec, SITES["text"]), torch.randn(2, 12, 32)
    changed = x.clone()
    changed[:, 7:] += 1
    torch.testing.assert_close(
        call(block, spec, changed)[:, :7], call(block, spec, x)[:, :7], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("spec", SPECS)
def test_same_seed_same_weights(spec: BlockSpec, site: Site, poisoned: Callable[[], None]) -> None:
    first = build(spec, site).state_dict()
    poisoned()
    second = build(spec, site).state_dict()
    for name, tensor in first.items():
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, second[name]), name


@pytest.fixture
def poisoned() -> Callable[[], None]:
    """Return a function that leaves garbage in memory that an uninitialised parameter would get."""

    def fill() -> None:
        garbage = [
            torch.full((size,), 1e9) for size in (32, 48, 1024, 1536, 3072) for _ in range(8)
        ]
        del garbage

    return fill


@pytest.mark.parametrize("spec", SPECS)
def test_state_dict_round_trip(spec: BlockSpec, site: Site) -> None:
    first, second, x = build(spec, site), build(spec, site), torch.randn(2, 12, 32)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(1.5)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(call(first, spec, x), call(second, spec, x))
