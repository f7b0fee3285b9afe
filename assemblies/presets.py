"""Named cells: which blocks (`original`, `baseline`, `grr`) at which size (nano ... giant)."""

from __future__ import annotations

from dataclasses import dataclass

from assemblies.config import CoCaConfig, ImageConfig, MultimodalConfig, TextConfig, with_field
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
    tied_head: bool = False


# Table 1 counts encoder and decoders: base and large fit with separate matrices for embedding and
# predicting tokens (297M and 484M in the decoders), the largest only with one (1.09B; two: 1.18B).
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
        tied_head=True,
    ),
}  # fmt: skip

Fields = dict[str, str | bool]  # fields of a cell and their values
ORIGINAL = {"norm": "layernorm", "ffn": "mlp", "position": "learned"}  # arXiv 2205.01917
GRR = {"norm": "rmsnorm", "ffn": "geglu", "position": "rope"}  # arXiv 2507.18009


def _blocks(image: dict[str, str], text: dict[str, str]) -> Fields:
    # Positions that are added belong at the bottom of the decoder only; rotary ones act everywhere.
    above = text if text["position"] == "rope" else {**text, "position": "none"}
    towers = {"image": image, "text": text, "multimodal": above}
    return {f"{tower}.{kind}": s for tower, blocks in towers.items() for kind, s in blocks.items()}


PRESETS: dict[str, Fields] = {
    "original": _blocks(ORIGINAL, ORIGINAL),
    "baseline": _blocks(ORIGINAL, GRR),
    "grr": _blocks(GRR, GRR),
    "clip": {
        **_blocks(GRR, GRR),
        "tied_head": False,  # there is no head
        "objective": "contrastive",
        "image.pooling": "last",
        "image.class_token": True,
    },
    "captioner": {**_blocks(GRR, GRR), "objective": "captioning", "image.pooling": "mean"},
}


def preset(name: str, size: str = "nano") -> CoCaConfig:
    """Return a named cell at a named size.

    ``original`` is CoCa as published in 2022; ``grr`` has GEGLU, RMSNorm and RoPE in all towers;
    ``baseline``, the reference of arXiv 2507.18009, has grr's text towers and the original's image
    tower, so that baseline -> grr changes the image tower only. ``clip`` and ``captioner`` are
    grr's towers with one objective: a ViT with class token against a text tower (arXiv 2103.00020),
    and a decoder that looks at all patches (arXiv 2306.07915).
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    cell = _plain(SIZES[size])
    for path, value in PRESETS[name].items():
        cell = with_field(cell, path, value)
    return cell


def _plain(size: Size) -> CoCaConfig:
    return CoCaConfig(
        image=ImageConfig(
            width=size.image_width,
            depth=size.image_depth,
            heads=size.heads,
            size=size.pixels,
            patch=size.patch,
            pooling=f"cascade(queries={size.queries})",
            ffn_ratio=size.image_ratio,
        ),
        text=TextConfig(depth=size.text_depth, heads=size.heads),
        multimodal=MultimodalConfig(depth=size.multimodal_depth, heads=size.heads),
        width=size.width,
        embedding=size.width,
        vocabulary=size.vocabulary,
        context=size.context,
        tied_head=size.tied_head,
    )
