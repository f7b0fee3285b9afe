from __future__ import annotations

import functools

import pytest
import torch
from samples import small

from assemblies import CoCa, contrastive_loss
from assemblies.accumulate import contrastive_gradients, surrogate_loss


def batch(rows: int = 12) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(rows, 3, 32, 32, generator=generator)
    tokens = torch.randint(3, 400, (rows, 8), generator=generator)
    return images, tokens, torch.randint(3, 9, (rows,), generator=generator)


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
@pytest.mark.parametrize("parts", [1, 3, 12])
def test_gradients_are_those_of_the_whole_batch(contrast: str, parts: int) -> None:
    groups = torch.tensor([0, 1, 2, 3, 0, 4, 5, 6, 7, 8, 2, 9])
    model = CoCa(small(contrast=contrast))
    whole = contrastive_loss(model.embed(*batch()), groups)
    whole.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    pieces = list(zip(*(t.chunk(parts) for t in batch()), strict=True))
    embed = [functools.partial(model.embed, *piece) for piece in pieces]
    value, slopes = contrastive_gradients(embed, lambda e: contrastive_loss(e, groups))
    for part, slope in zip(embed, slopes, strict=True):
        surrogate_loss(part(), slope).backward()
    torch.testing.assert_close(value, whole.detach(), atol=1e-5, rtol=1e-5)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert "log_scale" in found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)


def test_parts_losses_are_not_the_batchs() -> None:
    """What accumulation must not do: average the losses of the parts."""
    model, groups = CoCa(small()), torch.arange(12)
    whole = contrastive_loss(model.embed(*batch()), groups)
    pieces = zip(*(t.chunk(3) for t in batch()), strict=True)
    averaged = sum(contrastive_loss(model.embed(*p), groups[:4]) for p in pieces) / 3
    assert abs(float(whole.detach()) - float(averaged.detach())) > 0.1
