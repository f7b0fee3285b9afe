"""Positional embeddings: one interface for what is added, rotated or biased.

A tower calls `embed` once on its tokens; every self-attention calls `rotate` and `bias`.
Cross-attention calls none of them, since its keys live in another space. ``site.grid`` says whether
positions have one axis (text) or two (patches in row-major order).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.errors import Unsupported, require_positive
from blocks.hookspecs import hookimpl
from blocks.site import Site
from blocks.spec import BlockSpec


class Positions(nn.Module):
    """Does nothing at all three places; a scheme overrides the ones where it acts."""

    def __init__(self, site: Site) -> None:
        super().__init__()

    def embed(self, x: Tensor, *, offset: int = 0) -> Tensor:
        """Add to the tokens [b n d] that stand at positions offset .. offset + n - 1."""
        return x

    def rotate(self, q: Tensor, k: Tensor, *, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Turn queries and keys [b h n e] that stand at positions offset .. offset + n - 1."""
        return q, k

    def bias(self, queries: int, keys: int) -> Tensor | None:
        """Return what is added to the scores, [h n m], the queries being the last of the keys."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Embed tokens [b n d]; the other two places are called by attention."""
        return self.embed(x)


class NoPositions(Positions):
    """No positional information at all."""


class Learned(Positions):
    """A free vector per position, added to the tokens (arXiv 1705.03122)."""

    def __init__(self, site: Site, *, std: float = 0.02) -> None:
        super().__init__(site)
        self.table = nn.Parameter(torch.empty(site.tokens, site.dim))
        nn.init.trunc_normal_(self.table, std=require_positive("std", std))

    def embed(self, x: Tensor, *, offset: int = 0) -> Tensor:
        """Add the table's rows to [b n d]."""
        return x + self.table[offset : offset + x.shape[1]].to(x.dtype)


class SinCos(Positions):
    """Fixed sines and cosines, the width split evenly over the axes (arXiv 1706.03762)."""

    table: Tensor

    def __init__(self, site: Site, *, theta: float = 10000.0) -> None:
        super().__init__(site)
        _require_theta(theta)
        angles = axial_angles(site.grid, site.dim, theta, name="sincos", what="width")
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], -1), persistent=False)

    def embed(self, x: Tensor, *, offset: int = 0) -> Tensor:
        """Add the table's rows to [b n d]."""
        return x + self.table[offset : offset + x.shape[1]].to(x.dtype)


class Rope(Positions):
    """Turns pairs of channels by an angle that grows with position (arXiv 2104.09864).

    On a grid the pairs of a head are split evenly over the axes (axial, arXiv 2403.13298), so that
    a score depends on the offset along rows and columns only; text is the case of one axis.
    ``fraction`` of each head's channels is turned, the rest is left alone.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, site: Site, *, theta: float = 10000.0, fraction: float = 1.0) -> None:
        super().__init__(site)
        _require_theta(theta)
        if not 0 < fraction <= 1:
            raise Unsupported(f"fraction must be above 0 and at most 1, got {fraction}")
        self.turned = round(fraction * site.head_dim)
        if self.turned < 2 * len(site.grid):
            raise Unsupported(
                f"rope(fraction={fraction}) turns {self.turned} of {site.head_dim} channels, "
                f"{len(site.grid)} axes need at least {2 * len(site.grid)}"
            )
        angles = axial_angles(site.grid, self.turned, theta, name="rope", what="turned head width")
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotate(self, q: Tensor, k: Tensor, *, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Turn [b h n e] queries and keys."""
        rows = slice(offset, offset + q.shape[-2])
        cos, sin = self.cos[rows].float(), self.sin[rows].float()  # [n e/2]
        return self._turn_part(q, cos, sin), self._turn_part(k, cos, sin)

    def _turn_part(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.turned == x.shape[-1]:
            return _turn(x, cos, sin)
        return torch.cat([_turn(x[..., : self.turned], cos, sin), x[..., self.turned :]], dim=-1)


class RopeMixed(Positions):
    """Rotary with learned frequencies, per head and along all axes at once (arXiv 2403.13298).

    Frequencies start as those of `Rope` in a random direction per head, so that diagonals have
    some too. One set serves all layers of a tower.
    """

    places: Tensor

    def __init__(self, site: Site, *, theta: float = 10.0) -> None:
        super().__init__(site)
        _require_theta(theta)
        axes = len(site.grid)
        if site.head_dim % 2:
            raise Unsupported(f"rope_mixed needs an even head width, got {site.head_dim}")
        pairs = site.head_dim // 2
        sizes = theta ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
        directions = F.normalize(torch.randn(axes, site.heads, 1), dim=0)
        self.frequencies = nn.Parameter(directions * sizes)  # [axes h e/2]
        self.register_buffer("places", grid_places(site.grid), persistent=False)

    def rotate(self, q: Tensor, k: Tensor, *, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Turn [b h n e] queries and keys."""
        places = self.places[offset : offset + q.shape[-2]].float()  # [n axes]
        angles = torch.einsum("na,ahp->hnp", places, self.frequencies.float())
        cos, sin = angles.cos(), angles.sin()  # [h n e/2]
        return _turn(q, cos, sin), _turn(k, cos, sin)


class Alibi(Positions):
    """Subtracts distance times a slope per head from the scores (arXiv 2108.12409).

    Distance is that in tokens for text and Euclidean between patches on a grid (arXiv 2311.00566).
    """

    distances: Tensor
    slopes: Tensor

    def __init__(self, site: Site, *, steepness: float = 8.0) -> None:
        super().__init__(site)
        require_positive("steepness", steepness)
        places = grid_places(site.grid)
        gaps = (places[:, None] - places[None, :]).square().sum(-1).sqrt()
        heads = torch.arange(1, site.heads + 1, dtype=torch.float32)
        self.register_buffer("distances", gaps, persistent=False)  # [n n]
        slopes = 2 ** (-steepness * heads / site.heads)
        self.register_buffer("slopes", slopes, persistent=False)

    def bias(self, queries: int, keys: int) -> Tensor:
        """Return the biases [h n m]."""
        gaps = self.distances[keys - queries : keys, :keys]
        return -self.slopes[:, None, None] * gaps


class RelativeBias(Positions):
    """Adds a learned number per head and offset to the scores (arXiv 1910.10683, 2103.14030)."""

    offsets: Tensor

    def __init__(self, site: Site, *, std: float = 0.02) -> None:
        super().__init__(site)
        spans = [2 * size - 1 for size in site.grid]
        self.table = nn.Parameter(torch.empty(site.heads, math.prod(spans)))
        nn.init.trunc_normal_(self.table, std=require_positive("std", std))
        places = grid_places(site.grid).long()
        shift = torch.tensor([size - 1 for size in site.grid])
        strides = torch.tensor([math.prod(spans[axis + 1 :]) for axis in range(len(spans))])
        offsets = ((places[:, None] - places[None, :] + shift) * strides).sum(-1)  # [n n]
        self.register_buffer("offsets", offsets, persistent=False)

    def bias(self, queries: int, keys: int) -> Tensor:
        """Return the biases [h n m]."""
        return self.table[:, self.offsets[keys - queries : keys, :keys]]


def axial_angles(
    grid: tuple[int, ...], width: int, theta: float, *, name: str, what: str
) -> Tensor:
    """Return the angle of each position and channel pair, [n width/2], axis after axis.

    Raises `Unsupported` unless the width can be split into pairs over the axes.
    """
    axes = len(grid)
    if width % (2 * axes):
        raise Unsupported(
            f"{name} on {axes} axes needs a {what} divisible by {2 * axes}, got {width}"
        )
    pairs = width // (2 * axes)
    frequencies = theta ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    places = grid_places(grid)
    return torch.cat([places[:, axis, None] * frequencies for axis in range(axes)], dim=-1)


def grid_places(grid: tuple[int, ...]) -> Tensor:
    """Return each position's place along each axis, [n axes], in row-major order."""
    axes = torch.meshgrid(*(torch.arange(size).float() for size in grid), indexing="ij")
    return torch.stack([axis.reshape(-1) for axis in axes], dim=-1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the adjacent channels 2i and 2i + 1 of [b h n e] by angles of cos, sin [(h) n e/2].

    One complex product is several times faster than sines and cosines on halves, on a CPU; a
    compiler fuses the products of real numbers, and has no kernels for complex ones.
    """
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)  # [b h n e/2 2]
    if torch.compiler.is_compiling():
        first, second = pairs.unbind(-1)
        turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x.dtype)


def _require_theta(theta: float) -> None:
    if not 1 < theta < math.inf:
        raise Unsupported(f"theta must be above 1, got {theta}")


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the built-in positional embeddings."""
    return [
        BlockSpec(
            kind="position",
            name="none",
            factory=NoPositions,
            summary="no positional information",
            source="coca-blocks",
        ),
        BlockSpec(
            kind="position",
            name="learned",
            factory=Learned,
            summary="a learned vector per position, added once",
            source="arXiv:1705.03122",
        ),
        BlockSpec(
            kind="position",
            name="sincos",
            factory=SinCos,
            summary="fixed sines and cosines, added once",
            source="arXiv:1706.03762",
        ),
        BlockSpec(
            kind="position",
            name="rope",
            factory=Rope,
            summary="rotary, axial on patch grids",
            source="arXiv:2104.09864",
            sweep={"theta": (100.0,), "fraction": (0.5,)},
        ),
        BlockSpec(
            kind="position",
            name="rope_mixed",
            factory=RopeMixed,
            summary="rotary with learned frequencies along all axes",
            source="arXiv:2403.13298",
        ),
        BlockSpec(
            kind="position",
            name="alibi",
            factory=Alibi,
            summary="scores fall with distance",
            source="arXiv:2108.12409",
        ),
        BlockSpec(
            kind="position",
            name="relative",
            factory=RelativeBias,
            summary="a learned score per offset",
            source="arXiv:1910.10683",
        ),
    ]
