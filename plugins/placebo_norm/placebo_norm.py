"""A placebo: RMSNorm by another name and another order of operations.

Its true effect against RMSNorm is nothing, so what a study measures for it is that study's noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks import BlockSpec, Site, Unsupported, hookimpl


class PlaceboNorm(nn.Module):
    """RMSNorm (arXiv 1910.07467) computed as x gain sqrt(d) / sqrt(sum x^2 + d eps)."""

    def __init__(self, site: Site, *, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0 < eps < float("inf"):
            raise Unsupported(f"eps must be above 0, got {eps}")
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(site.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [b n d] over d."""
        d = x.shape[-1]
        length = (x.float().square().sum(dim=-1, keepdim=True) + d * self.eps).sqrt()
        return (x.float() * (self.gain * d**0.5) / length).to(x.dtype)


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the norm."""
    return [
        BlockSpec(
            kind="norm",
            name="placebo",
            factory=PlaceboNorm,
            summary="rmsnorm by another name: measures the noise floor",
            source="coca-blocks",
        )
    ]
