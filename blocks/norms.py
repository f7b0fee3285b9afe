"""Normalisation blocks: [b n d] -> [b n d]. Statistics are in fp32 whatever the input's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.errors import Unsupported, require_positive
from blocks.hookspecs import hookimpl
from blocks.site import Site
from blocks.spec import BlockSpec


class LayerNorm(nn.Module):
    """Zero mean and unit variance per token, then gain and bias (arXiv 1607.06450)."""

    def __init__(self, site: Site, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = require_positive("eps", eps)
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
        self.eps = require_positive("eps", eps)
        self.gain = nn.Parameter(torch.ones(site.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [b n d] over d."""
        return F.rms_norm(x.float(), x.shape[-1:], self.gain.float(), self.eps).to(x.dtype)


class ScaleNorm(nn.Module):
    """Unit length per token times one learned number, sqrt(d) at first (arXiv 1910.05895)."""

    def __init__(self, site: Site, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = require_positive("eps", eps)
        self.scale = nn.Parameter(torch.tensor(float(site.dim) ** 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [b n d] over d."""
        y = self.scale * F.normalize(x.float(), dim=-1, eps=self.eps)
        return y.to(x.dtype)


class HeadNorm(nn.Module):
    """Zero mean and unit variance within each head's share of a token, then gain and bias.

    Group normalisation (arXiv 1803.08494) of single tokens, with one group per head, so that no
    token sees another.
    """

    def __init__(self, site: Site, *, eps: float = 1e-5) -> None:
        super().__init__()
        if site.dim % site.heads:
            raise Unsupported(f"width {site.dim} must be divisible by the {site.heads} heads")
        self.eps, self.heads = require_positive("eps", eps), site.heads
        self.gain = nn.Parameter(torch.ones(site.dim))
        self.bias = nn.Parameter(torch.zeros(site.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [b n d] over each of the heads' d / h channels."""
        b, n, d = x.shape
        groups = x.float().reshape(b, n, self.heads, d // self.heads)
        y = F.layer_norm(groups, groups.shape[-1:], eps=self.eps).reshape(b, n, d)
        return (y * self.gain + self.bias).to(x.dtype)


class Derf(nn.Module):
    """erf(alpha x + s), then gain and bias: squashes as norms do, no statistics (arXiv 2512.10938).

    ``alpha`` is the initial slope; the shift s starts at 0.
    """

    def __init__(self, site: Site, *, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(require_positive("alpha", alpha)))
        self.shift = nn.Parameter(torch.tensor(0.0))
        self.gain = nn.Parameter(torch.ones(site.dim))
        self.bias = nn.Parameter(torch.zeros(site.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map [b n d] -> [b n d], each number for itself."""
        y = torch.erf(self.alpha * x.float() + self.shift)
        return (y * self.gain + self.bias).to(x.dtype)


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
            name="scalenorm",
            factory=ScaleNorm,
            summary="unit length and one learned scale",
            source="arXiv:1910.05895",
        ),
        BlockSpec(
            kind="norm",
            name="headnorm",
            factory=HeadNorm,
            summary="group normalisation over heads, token by token",
            source="arXiv:1803.08494",
        ),
        BlockSpec(
            kind="norm",
            name="derf",
            factory=Derf,
            summary="erf instead of statistics",
            source="arXiv:2512.10938",
            sweep={"alpha": (1.0,)},
        ),
        BlockSpec(
            kind="norm",
            name="none",
            factory=NoNorm,
            summary="identity",
            source="coca-blocks",
        ),
    ]
