from __future__ import annotations

import pytest
import torch

from blocks import Pooled, Site, Unsupported, default_registry

SITE = Site(dim=24, heads=3, grid=(2, 4), context_dim=16, tower="image")


def pool(spelling: str, x: torch.Tensor) -> tuple[torch.nn.Module, Pooled]:
    block = default_registry().build("pooling", spelling, SITE)
    return block, block(x)


@pytest.mark.parametrize(("spelling", "tokens"), [
    ("cascade(queries=5)", 5), ("parallel(queries=5)", 5), ("single(queries=5)", 4),
    ("mean", 8), ("last", 8),
])  # fmt: skip
def test_shapes(spelling: str, tokens: int) -> None:
    _, pooled = pool(spelling, torch.randn(2, 8, 16))
    assert pooled.tokens.shape == (2, tokens, 24)
    assert pooled.vector.shape == (2, 24)


def test_cascade_contrasts_from_its_captioning_tokens() -> None:
    x = torch.randn(2, 8, 16)
    cascade, pooled = pool("cascade(queries=5)", x)
    torch.testing.assert_close(pooled.vector, cascade.contrastive(pooled.tokens)[:, 0])
    parallel, pooled = pool("parallel(queries=5)", x)
    torch.testing.assert_close(pooled.vector, parallel.contrastive(x)[:, 0])


@pytest.mark.parametrize("spelling", ["cascade(queries=3)", "parallel(queries=3)", "mean"])
def test_the_order_of_image_tokens_does_not_matter(spelling: str) -> None:
    x = torch.randn(2, 8, 16)
    block, pooled = pool(spelling, x)
    shuffled = block(x[:, torch.randperm(8)])
    torch.testing.assert_close(shuffled.vector, pooled.vector, atol=1e-5, rtol=1e-5)


def test_mean_and_last_are_what_they_say() -> None:
    x = torch.randn(2, 8, 16)
    for spelling, pick in (("mean", lambda t: t.mean(1)), ("last", lambda t: t[:, -1])):
        block, pooled = pool(spelling, x)
        torch.testing.assert_close(pooled.tokens, x @ block.project.weight.T)
        torch.testing.assert_close(pooled.vector, pick(pooled.tokens))


@pytest.mark.parametrize("spelling", ["cascade(queries=0)", "single(queries=1)"])
def test_too_few_queries_are_refused(spelling: str) -> None:
    with pytest.raises(Unsupported, match=r"at least \d quer"):
        pool(spelling, torch.randn(2, 8, 16))
