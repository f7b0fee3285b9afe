"""Feed-forward blocks: [b n d] -> [b n d] through ``site.hidden``, the final inner width."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from blocks.errors import Unsupported
from blocks.hookspecs import hookimpl
from blocks.linear import linear
from blocks.site import Site
from blocks.spec import BlockSpec


def require_hidden(site: Site) -> int:
    """Return the inner width, or refuse a site that gives none."""
    if site.hidden < 1:
        raise Unsupported(f"an FFN needs a hidden width of at least 1, got {site.hidden}")
    return site.hidden


class Mlp(nn.Module):
    """Two linear maps with GELU between them, as in ViT (arXiv 2010.11929)."""

    def __init__(self, site: Site, *, bias: bool = True) -> None:
        super().__init__()
        hidden = require_hidden(site)
        self.enter = linear(site.dim, hidden, bias=bias)
        self.leave = linear(hidden, site.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b n d] -> [b n d]."""
        out: Tensor = self.leave(F.gelu(self.enter(x)))
        return out


class GatedFfn(nn.Module):
    """A linear map gated by an activated one: (act(x W) * x V) W2 (arXiv 2002.05202)."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, site: Site, *, bias: bool = False) -> None:
        super().__init__()
        hidden = require_hidden(site)
        self.enter = linear(site.dim, 2 * hidden, bias=bias)  # gate and value in one product
        self.leave = linear(hidden, site.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b n d] -> [b n d]."""
        gate, value = self.enter(x).chunk(2, dim=-1)
        out: Tensor = self.leave(type(self).activation(gate) * value)
        return out


class GeGLU(GatedFfn):
    """Gated FFN whose gate is a GELU (arXiv 2002.05202)."""

    activation = staticmethod(F.gelu)


class SwiGLU(GatedFfn):
    """Gated FFN whose gate is a SiLU, also called Swish (arXiv 2002.05202)."""

    activation = staticmethod(F.silu)


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the built-in FFNs."""
    return [
        BlockSpec(
            kind="ffn",
            name="mlp",
            factory=Mlp,
            summary="linear, GELU, linear",
            source="arXiv:2010.11929",
        ),
        BlockSpec(
            kind="ffn",
            name="geglu",
            factory=GeGLU,
            summary="gated by a GELU",
            source="arXiv:2002.05202",
        ),
        BlockSpec(
            kind="ffn",
            name="swiglu",
            factory=SwiGLU,
            summary="gated by a SiLU",
            source="arXiv:2002.05202",
        ),
    ]
