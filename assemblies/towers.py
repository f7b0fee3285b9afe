"""The three towers of CoCa: a loop over layers each, with what goes before and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assemblies.config import CoCaConfig, MultimodalConfig, TowerConfig
from assemblies.construct import Builder
from assemblies.layer import Layer, LayerCache, Residual, needs_final_norm
from assemblies.sequence import Masked, Placed, visible_keys
from blocks import Pooled, Pooling, Positions, Site, UsageError
from blocks.projections import linear


class Stack(nn.Module):
    """Positions, layers and the final norm: what all towers share.

    Modules that a cell does not have are `Identity`, which is no parameter and no work.
    """

    def __init__(
        self,
        config: TowerConfig,
        site: Site,
        builder: Builder,
        dropout: float,
        *,
        pre_norm: bool = False,
        final_norm: bool = True,
    ) -> None:
        super().__init__()

        def norm(name: str, wanted: bool) -> nn.Module:
            place = replace(site, path=f"{site.path}.{name}", context_dim=None)
            return builder.block("norm", config.norm, place) if wanted else nn.Identity()

        place = replace(site, path=f"{site.path}.positions", context_dim=None)
        self.positions = cast(Positions, builder.block("position", config.position, place))
        self.pre_norm = norm("pre_norm", pre_norm)
        self.layers = nn.ModuleList(
            _layer(config, replace(site, layer=i, path=f"{site.path}.layers.{i}"), builder, dropout)
            for i in range(config.depth)
        )
        self.final_norm = norm("final_norm", final_norm and needs_final_norm(config.placement))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        behind: Tensor | None = None,
        visible: Tensor | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """Map [b n d] -> [b n d], before the final norm, which towers apply where they need it.

        ``behind`` [b k d] are tokens without a place on the grid, ``visible`` [b n] the keys that
        may be seen. With a cache, one per layer, x are the tokens that follow those in it.
        """
        x = self.positions.embed(x, offset=len(cache[0].own) if cache else 0)
        positions = self.positions
        if behind is not None:
            x = torch.cat([x, behind.to(x.dtype)], dim=1)
            positions = cast(Positions, Placed(positions, behind.shape[1]))
        if visible is not None:
            positions = cast(Positions, Masked(positions, visible))
        x = self.pre_norm(x)
        for i, layer in enumerate(self.layers):
            x = layer(x, positions, context, cache[i] if cache else None)
        return x


def _layer(config: TowerConfig, site: Site, builder: Builder, dropout: float) -> Layer:
    def norm(path: str, place: Site) -> nn.Module:
        return builder.block("norm", config.norm, replace(place, path=path, context_dim=None))

    def wrap(name: str, make: Callable[[Site], nn.Module]) -> Residual:
        inner = replace(site, path=f"{site.path}.{name}")
        path = f"{site.path}.{name}_norm"
        return Residual(
            make(inner), lambda role: norm(f"{path}_{role}", site), config.placement, dropout
        )

    def attention(place: Site) -> nn.Module:
        return builder.block("attention", config.attention, replace(place, context_dim=None))

    def cross(place: Site) -> nn.Module:
        return builder.block("attention", config.attention, replace(place, causal=False))

    def ffn(place: Site) -> nn.Module:
        here = replace(place, context_dim=None)
        return builder.ffn(config.ffn, here, config.ffn_ratio, config.ffn_match)

    crossing = config if isinstance(config, MultimodalConfig) else None
    context_norm = None
    if crossing and crossing.context_norm and site.context_dim is not None:
        context_norm = norm(f"{site.path}.context_norm", replace(site, dim=site.context_dim))
    return Layer(
        wrap("attention", attention),
        wrap("cross", cross) if crossing else None,
        wrap("ffn", ffn),
        between=wrap("between", ffn) if crossing and crossing.double_ffn else None,
        context_norm=context_norm,
    )


class ImageTower(nn.Module):
    """A ViT (arXiv 2010.11929), by default without class token, and the pooler on top of it."""

    def __init__(self, cell: CoCaConfig, builder: Builder) -> None:
        super().__init__()
        config = cell.image
        self.patch, self.size = config.patch, config.size
        pixels = 3 * config.patch**2
        self.patches = builder.make(
            "image.patches", lambda: linear(pixels, config.width, bias=config.patch_bias)
        )
        # A token and its position, apart, so that a ViT's can be carried over and back exactly.
        self.class_token = (
            builder.make("image.class_token", lambda: _embedding(2, config.width))
            if config.class_token
            else None
        )
        site = Site(
            dim=config.width, heads=config.heads, grid=config.grid, tower="image", path="image"
        )
        self.stack = Stack(config, site, builder, cell.dropout, pre_norm=config.pre_norm)
        pool = Site(
            dim=cell.width,
            heads=cell.multimodal.heads,
            grid=config.grid,
            context_dim=config.width,
            tower="image",
            path="image.pooler",
        )
        self.pooler = builder.block("pooling", config.pooling, pool)
        if isinstance(self.pooler, Pooling):
            unused = () if cell.captions else self.pooler.for_tokens_only
            unused = unused if cell.contrasts else self.pooler.for_vector_only
            for name in unused:
                delattr(self.pooler, name)

    def forward(self, images: Tensor) -> Pooled:
        """Map images [b 3 s s] to captioning tokens [b q d] and a contrastive vector [b d]."""
        return cast(Pooled, self.pooler(self.encode(images)))

    def tokens(self, images: Tensor) -> Tensor:
        """Map images [b 3 s s] to captioning tokens [b q d] alone."""
        x, pooler = self.encode(images), self.pooler
        return pooler.tokens(x) if isinstance(pooler, Pooling) else cast(Pooled, pooler(x)).tokens

    def vector(self, images: Tensor) -> Tensor:
        """Map images [b 3 s s] to a contrastive vector [b d] alone."""
        x, pooler = self.encode(images), self.pooler
        return pooler.vector(x) if isinstance(pooler, Pooling) else cast(Pooled, pooler(x)).vector

    def encode(self, images: Tensor) -> Tensor:
        """Map images [b 3 s s] to the ViT's tokens [b n d], a class token being the last."""
        p = self.patch
        if images.shape[1:] != (3, self.size, self.size):
            raise UsageError(
                f"images must be [b 3 {self.size} {self.size}], got {list(images.shape)}"
            )
        x = images.unfold(2, p, p).unfold(3, p, p)  # [b 3 rows columns p p]
        x = x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [b n 3pp]
        x = self.patches(x).float()  # under autocast, the residual stream stays fp32 in all towers
        behind = None
        if self.class_token is not None:
            behind = self.class_token.weight.sum(dim=0).expand(len(x), 1, -1)
        out: Tensor = self.stack.final_norm(self.stack(x, behind=behind))
        return out


class TextTower(nn.Module):
    """The unimodal, causal half of the text decoder, with a learned CLS token at the end.

    By default the CLS token stands right behind each caption's last token, and padding behind it.
    Causality alone then lets it see all real tokens and itself, no token sees it, and neither
    padding nor its amount can change anything: no mask is needed.
    """

    def __init__(self, cell: CoCaConfig, builder: Builder) -> None:
        super().__init__()
        self.place, self.context = cell.text.cls, cell.context
        self.tokens = builder.make("text.tokens", lambda: _embedding(cell.vocabulary, cell.width))
        self.cls = (
            builder.make("text.cls", lambda: _embedding(1, cell.width)) if cell.contrasts else None
        )
        site = text_site(cell, cell.text, "text")
        # The norm is for the CLS token only: the decoder reads the stream as it is.
        self.stack = Stack(cell.text, site, builder, cell.dropout, final_norm=cell.contrasts)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map ids [b n] with lengths [b] to the decoder's stream [b n d] and CLS vectors [b d]."""
        assert self.cls is not None, "this model has no CLS token"
        n = self._require_fit(tokens)
        # Behind the padding, CLS always stands in the last place, however little padding there is.
        slots_behind = 1 if self.place == "caption" else self.context + 1 - n
        x = self.tokens(F.pad(tokens, (0, slots_behind)))  # [b n+1 d] or [b context+1 d]
        slots = torch.arange(x.shape[1], device=x.device)
        end = torch.full_like(lengths, self.context)
        places = lengths if self.place == "caption" else end  # [b]
        is_cls = (slots == places[:, None]).unsqueeze(-1)  # [b n+1 1]
        visible = None
        if self.place != "caption":
            visible = visible_keys(lengths, len(slots), legacy=self.place == "end_legacy")
        x = torch.where(is_cls, self.cls.weight.to(x.dtype), x)
        x = self.stack(x, visible=visible)
        rows = torch.arange(len(x), device=x.device)
        cls = x[rows, places].unsqueeze(1)  # [b 1 d], since norms are written for [b n d]
        return x[:, :n], self.stack.final_norm(cls).squeeze(1)

    def read(self, tokens: Tensor, cache: Sequence[LayerCache] | None = None) -> Tensor:
        """Map ids [b n], without CLS, to the decoder's stream [b n d]."""
        self._require_fit(tokens)
        out: Tensor = self.stack(self.tokens(tokens), cache=cache)
        return out

    def _require_fit(self, tokens: Tensor) -> int:
        """Return n of ids [b n], or refuse more than positions are there for."""
        if tokens.shape[1] > self.context:
            raise UsageError(f"captions hold at most {self.context} ids, got {tokens.shape[1]}")
        return tokens.shape[1]


class MultimodalTower(nn.Module):
    """The cross-attending, causal half of the text decoder, and the head onto the vocabulary."""

    def __init__(self, cell: CoCaConfig, builder: Builder) -> None:
        super().__init__()
        site = replace(text_site(cell, cell.multimodal, "multimodal"), context_dim=cell.width)
        self.stack = Stack(cell.multimodal, site, builder, cell.dropout)
        self.head = (
            None
            if cell.tied_head
            else builder.make(
                "multimodal.head", lambda: linear(cell.width, cell.vocabulary, bias=False)
            )
        )

    def forward(
        self, x: Tensor, image_tokens: Tensor, cache: Sequence[LayerCache] | None = None
    ) -> Tensor:
        """Map the unimodal stream [b n d] and image tokens [b q d] to the head's input [b n d]."""
        return cast(Tensor, self.stack.final_norm(self.stack(x, image_tokens, cache=cache)))


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
