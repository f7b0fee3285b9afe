"""Normalisation blocks: [b n d] -> [b n d]. Statistics are in fp32 whatever the input's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.hookspecs import hookimpl
from blocks.site import Site
from blocks.spec import BlockSpec


class LayerNorm(nn.Module):
    """Zero mean and unit variance per token, then gain and bias (arXiv 1607.06450)."""

    def __init__(self, site: Site, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(site.dim))
        self.bias = nn.Parameter(torch.zeros(site.dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [b n d] over d."""
        bias = None if self.bias is None else self.bias.float()
        y = F.layer_norm(x.float(), x.shape[-1:], self.gain.float(), bias, self.eps)
        return y.to(x.dtype)


class RMSNorm(nn.Module):
    """Unit root mean square per token, then a gain: no mean, no bias (arXiv 1910.07467)."""

    def __init__(self, site: Site, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(site.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [b n d] over d."""
        return F.rms_norm(x.float(), x.shape[-1:], self.gain.float(), self.eps).to(x.dtype)


class NoNorm(nn.Module):
    """Leaves tokens as they are, so that 'no norm' is a cell like any other."""

    def __init__(self, site: Site) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return [b n d] unchanged."""
        return x


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the built-in norms."""
    return [
        BlockSpec(
            kind="norm",
            name="layernorm",
            factory=LayerNorm,
            summary="zero mean, unit variance, gain and bias",
            source="arXiv:1607.06450",
        ),
        BlockSpec(
            kind="norm",
            name="rmsnorm",
            factory=RMSNorm,
            summary="unit root mean square and a gain",
            source="arXiv:1910.07467",
        ),
        BlockSpec(
            kind="norm",
            name="none",
            factory=NoNorm,
            summary="identity",
            source="coca-blocks",
        ),
    ]
