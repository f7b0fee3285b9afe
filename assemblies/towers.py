"""The three towers of CoCa: a loop over layers each, with what goes before and after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from assemblies.config import CoCaConfig, TowerConfig
from assemblies.construct import Builder
from assemblies.layer import Layer, Residual, needs_final_norm
from blocks import Pooled, Positions, Site
from blocks.projections import linear


class Stack(nn.Module):
    """Positions, layers and the final norm: what all towers share."""

    def __init__(self, config: TowerConfig, site: Site, builder: Builder, dropout: float) -> None:
        super().__init__()

        def norm(path: str) -> nn.Module:
            return builder.block("norm", config.norm, replace(site, path=path, context_dim=None))

        place = replace(site, path=f"{site.path}.positions", context_dim=None)
        self.positions = cast(Positions, builder.block("position", config.position, place))
        self.layers = nn.ModuleList(
            _layer(config, replace(site, layer=i, path=f"{site.path}.layers.{i}"), builder, dropout)
            for i in range(config.depth)
        )
        final = needs_final_norm(config.placement)
        self.final_norm = norm(f"{site.path}.final_norm") if final else nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map [b n d] -> [b n d], before the final norm, which towers apply where they need it."""
        x = self.positions.embed(x)
        for layer in self.layers:
            x = layer(x, self.positions, context)
        return x


def _layer(config: TowerConfig, site: Site, builder: Builder, dropout: float) -> Layer:
    def wrap(name: str, make: Callable[[Site], nn.Module]) -> Residual:
        inner = replace(site, path=f"{site.path}.{name}")

        def norm(role: str) -> nn.Module:
            place = replace(site, path=f"{site.path}.{name}_norm_{role}", context_dim=None)
            return builder.block("norm", config.norm, place)

        return Residual(make(inner), norm, config.placement, dropout)

    def attention(place: Site) -> nn.Module:
        return builder.block("attention", config.attention, replace(place, context_dim=None))

    def cross(place: Site) -> nn.Module:
        return builder.block("attention", config.attention, replace(place, causal=False))

    def ffn(place: Site) -> nn.Module:
        return builder.ffn(config.ffn, replace(place, context_dim=None), config.ffn_ratio)

    has_context = site.context_dim is not None
    return Layer(
        wrap("attention", attention),
        wrap("cross", cross) if has_context else None,
        wrap("ffn", ffn),
    )


class ImageTower(nn.Module):
    """A ViT (arXiv 2010.11929) without class token, and the pooler on top of it."""

    def __init__(self, cell: CoCaConfig, builder: Builder) -> None:
        super().__init__()
        config = cell.image
        self.patch = config.patch
        pixels = 3 * config.patch**2
        self.patches = builder.make("image.patches", lambda: linear(pixels, config.width))
        site = Site(
            dim=config.width, heads=config.heads, grid=config.grid, tower="image", path="image"
        )
        self.stack = Stack(config, site, builder, cell.dropout)
        pool = Site(
            dim=cell.width,
            heads=cell.multimodal.heads,
            grid=config.grid,
            context_dim=config.width,
            tower="image",
            path="image.pooler",
        )
        self.pooler = builder.block("pooling", config.pooling, pool)

    def forward(self, images: Tensor) -> Pooled:
        """Map images [b 3 s s] to captioning tokens [b q d] and a contrastive vector [b d]."""
        p = self.patch
        x = images.unfold(2, p, p).unfold(3, p, p)  # [b 3 rows columns p p]
        x = x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [b n 3pp]
        x = self.patches(x).float()  # under autocast, the residual stream stays fp32 in all towers
        return cast(Pooled, self.pooler(self.stack.final_norm(self.stack(x))))


class TextTower(nn.Module):
    """The unimodal, causal half of the text decoder, with a learned CLS token at the end.

    The CLS token stands right behind each caption's last token, and padding behind it. Causality
    alone then lets it see all real tokens and itself, no token sees it, and neither padding nor its
    amount can change anything: no mask is needed.
    """

    def __init__(self, cell: CoCaConfig, builder: Builder) -> None:
        super().__init__()
        self.tokens = builder.make("text.tokens", lambda: _embedding(cell.vocabulary, cell.width))
        self.cls = builder.make("text.cls", lambda: _embedding(1, cell.width))
        site = text_site(cell, cell.text, "text")
        self.stack = Stack(cell.text, site, builder, cell.dropout)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map ids [b n] with lengths [b] to the decoder's stream [b n d] and CLS vectors [b d]."""
        x = self.tokens(torch.nn.functional.pad(tokens, (0, 1)))  # [b n+1 d]
        slots = torch.arange(x.shape[1], device=x.device)
        is_cls = (slots == lengths[:, None]).unsqueeze(-1)  # [b n+1 1]
        x = self.stack(torch.where(is_cls, self.cls.weight.to(x.dtype), x))
        rows = torch.arange(len(x), device=x.device)
        cls = x[rows, lengths].unsqueeze(1)  # [b 1 d], since norms are written for [b n d]
        return x[:, :-1], self.stack.final_norm(cls).squeeze(1)


class MultimodalTower(nn.Module):
    """The cross-attending, causal half of the text decoder, and the head onto the vocabulary."""

    def __init__(self, cell: CoCaConfig, builder: Builder) -> None:
        super().__init__()
        site = replace(text_site(cell, cell.multimodal, "multimodal"), context_dim=cell.width)
        self.stack = Stack(cell.multimodal, site, builder, cell.dropout)
        self.head = builder.make(
            "multimodal.head", lambda: linear(cell.width, cell.vocabulary, bias=False)
        )

    def forward(self, x: Tensor, image_tokens: Tensor) -> Tensor:
        """Map the unimodal stream [b n d] and image tokens [b q d] to the head's input [b n d]."""
        return cast(Tensor, self.stack.final_norm(self.stack(x, image_tokens)))


def text_site(cell: CoCaConfig, config: TowerConfig, tower: str) -> Site:
    """Return the site of a text tower: the context and one slot more, for CLS."""
    assert tower in ("text", "multimodal")
    return Site(
        dim=cell.width,
        heads=config.heads,
        grid=(cell.context + 1,),
        causal=True,
        tower="text" if tower == "text" else "multimodal",
        path=tower,
    )


def _embedding(count: int, width: int) -> nn.Embedding:
    table = nn.Embedding(count, width)
    nn.init.trunc_normal_(table.weight, std=0.02)
    return table
