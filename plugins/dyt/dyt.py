"""Dynamic Tanh: a norm without statistics, as a plugin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks import BlockSpec, Site, Unsupported, hookimpl


class DynamicTanh(nn.Module):
    """tanh(alpha x), then gain and bias: squashes outliers as norms do (arXiv 2503.10622)."""

    def __init__(self, site: Site, *, alpha: float = 0.5) -> None:
        super().__init__()
        if not 0 < alpha < float("inf"):
            raise Unsupported(f"alpha must be above 0, got {alpha}")
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.gain = nn.Parameter(torch.ones(site.dim))
        self.bias = nn.Parameter(torch.zeros(site.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map [b n d] -> [b n d]."""
        return (torch.tanh(self.alpha * x.float()) * self.gain + self.bias).to(x.dtype)


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the norm."""
    return [
        BlockSpec(
            kind="norm",
            name="dyt",
            factory=DynamicTanh,
            summary="tanh instead of statistics",
            source="arXiv:2503.10622",
        )
    ]
