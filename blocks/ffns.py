"""Feed-forward blocks: [b n d] -> [b n d] through ``site.hidden``, the final inner width."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from blocks.errors import Unsupported, choose
from blocks.hookspecs import hookimpl
from blocks.projections import linear
from blocks.site import Site
from blocks.spec import BlockSpec


def identity(x: Tensor) -> Tensor:
    """Return x."""
    return x


def squared_relu(x: Tensor) -> Tensor:
    """Return max(x, 0)^2."""
    return F.relu(x).square()


Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "relu2": squared_relu,
}


def require_hidden(site: Site) -> int:
    """Return the inner width, or refuse a site that gives none."""
    if site.hidden < 1:
        raise Unsupported(f"an FFN needs a hidden width of at least 1, got {site.hidden}")
    return site.hidden


class Mlp(nn.Module):
    """Two linear maps with an activation between them, as in ViT (arXiv 2010.11929).

    ``activation`` is gelu, relu, silu or relu2, the squared rectifier (arXiv 2109.08668).
    """

    def __init__(self, site: Site, *, activation: str = "gelu", bias: bool = True) -> None:
        super().__init__()
        hidden = require_hidden(site)
        self.activation = ACTIVATIONS[choose("activation", activation, ACTIVATIONS)]
        self.enter = linear(site.dim, hidden, bias=bias)
        self.leave = linear(hidden, site.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b n d] -> [b n d]."""
        out: Tensor = self.leave(self.activation(self.enter(x)))
        return out


class GatedFfn(nn.Module):
    """A linear map gated by an activated one: (act(x W) * x V) W2 (arXiv 2002.05202)."""

    activation: Activation

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


class ReGLU(GatedFfn):
    """Gated FFN whose gate is a rectifier (arXiv 2002.05202)."""

    activation = staticmethod(F.relu)


class Bilinear(GatedFfn):
    """Gated FFN whose gate is linear: a product of two linear maps (arXiv 2002.05202)."""

    activation = staticmethod(identity)


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the built-in FFNs."""
    return [
        BlockSpec(
            kind="ffn",
            name="mlp",
            factory=Mlp,
            summary="linear, activation, linear",
            source="arXiv:2010.11929",
            sweep={"activation": ("relu", "silu", "relu2")},
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
        BlockSpec(
            kind="ffn",
            name="reglu",
            factory=ReGLU,
            summary="gated by a ReLU",
            source="arXiv:2002.05202",
        ),
        BlockSpec(
            kind="ffn",
            name="bilinear",
            factory=Bilinear,
            summary="gated without activation",
            source="arXiv:2002.05202",
        ),
    ]
