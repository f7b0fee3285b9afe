"""Named cells: which blocks (`original`, `baseline`, `grr`) at which size (nano ... giant)."""

from __future__ import annotations

from dataclasses import dataclass

from assemblies.config import CoCaConfig, ImageConfig, TowerConfig
from blocks.errors import unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """The numbers of a size; base, large and giant are those of arXiv 2205.01917, table 1."""

    image_width: int
    image_depth: int
    width: int
    text_depth: int
    multimodal_depth: int
    heads: int
    pixels: int
    patch: int
    queries: int
    vocabulary: int
    context: int = 64
    image_ratio: float = 4.0


SIZES: dict[str, Size] = {
    "nano": Size(
        image_width=64, image_depth=3, width=64, text_depth=2, multimodal_depth=2, heads=4,
        pixels=48, patch=8, queries=16, vocabulary=2048, context=32,
    ),
    "tiny": Size(
        image_width=128, image_depth=4, width=128, text_depth=3, multimodal_depth=3, heads=4,
        pixels=64, patch=8, queries=32, vocabulary=4096, context=48,
    ),
    "small": Size(
        image_width=384, image_depth=12, width=384, text_depth=6, multimodal_depth=6, heads=6,
        pixels=144, patch=12, queries=64, vocabulary=16384,
    ),
    "base": Size(
        image_width=768, image_depth=12, width=768, text_depth=12, multimodal_depth=12, heads=12,
        pixels=288, patch=18, queries=256, vocabulary=64000,
    ),
    "large": Size(
        image_width=1024, image_depth=24, width=1024, text_depth=12, multimodal_depth=12, heads=16,
        pixels=288, patch=18, queries=256, vocabulary=64000,
    ),
    "giant": Size(
        image_width=1408, image_depth=40, width=1408, text_depth=18, multimodal_depth=18, heads=16,
        pixels=288, patch=18, queries=256, vocabulary=64000, image_ratio=6144 / 1408,
    ),
}  # fmt: skip

Blocks = dict[str, str]  # kind -> spelling, the three that arXiv 2507.18009 swaps
ORIGINAL: Blocks = {"norm": "layernorm", "ffn": "mlp", "position": "learned"}  # arXiv 2205.01917
GRR: Blocks = {"norm": "rmsnorm", "ffn": "geglu", "position": "rope"}  # arXiv 2507.18009


def preset(name: str, size: str = "nano") -> CoCaConfig:
    """Return a named cell at a named size.

    ``original`` is CoCa as published in 2022; ``grr`` has GEGLU, RMSNorm and RoPE in all towers;
    ``baseline``, the reference of arXiv 2507.18009, has grr's text towers and the original's image
    tower, so that baseline -> grr changes the image tower only.
    """
    towers = {"original": (ORIGINAL, ORIGINAL), "baseline": (ORIGINAL, GRR), "grr": (GRR, GRR)}
    if name not in towers:
        raise unknown("preset", name, towers)
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    image, text = towers[name]
    return _cell(SIZES[size], image, text)


def _cell(size: Size, image: Blocks, text: Blocks) -> CoCaConfig:
    # Positions that are added belong at the bottom of the decoder only; rotary ones act everywhere.
    above: Blocks = text if text["position"] == "rope" else {**text, "position": "none"}
    return CoCaConfig(
        image=ImageConfig(
            width=size.image_width,
            depth=size.image_depth,
            heads=size.heads,
            size=size.pixels,
            patch=size.patch,
            pooling=f"cascade(queries={size.queries})",
            ffn_ratio=size.image_ratio,
            norm=image["norm"],
            ffn=image["ffn"],
            position=image["position"],
        ),
        text=_text_tower(size.text_depth, size, text),
        multimodal=_text_tower(size.multimodal_depth, size, above),
        width=size.width,
        embedding=size.width,
        vocabulary=size.vocabulary,
        context=size.context,
    )


def _text_tower(depth: int, size: Size, blocks: Blocks) -> TowerConfig:
    return TowerConfig(
        depth=depth,
        heads=size.heads,
        norm=blocks["norm"],
        ffn=blocks["ffn"],
        position=blocks["position"],
    )
