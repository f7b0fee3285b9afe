"""CoCa, the Contrastive Captioner (arXiv 2205.01917), composed of blocks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assemblies.config import CoCaConfig, normalise
from assemblies.construct import Builder
from assemblies.towers import ImageTower, MultimodalTower, TextTower
from blocks import Registry, default_registry
from blocks.projections import linear


class CoCaOutput(NamedTuple):
    """What a forward pass gives: unit embeddings [b d], decoder states [b n d], the logit scale."""

    image: Tensor
    text: Tensor
    states: Tensor
    scale: Tensor


class CoCa(nn.Module):
    """An image tower, a unimodal and a multimodal text tower, and a learned temperature.

    Initialisation depends on ``seed`` and module paths only: modules that two cells share start
    bit-identical. Raises `Unsupported`, naming the module, where a block cannot serve its site.
    """

    def __init__(
        self, cell: CoCaConfig, *, seed: int = 0, registry: Registry | None = None
    ) -> None:
        super().__init__()
        registry = registry or default_registry()
        self.cell = cell = normalise(cell, registry)
        builder = Builder(registry, seed)
        self.image = ImageTower(cell, builder)
        self.text = TextTower(cell, builder)
        self.multimodal = MultimodalTower(cell, builder)
        self.image_projection = builder.make(
            "image_projection", lambda: linear(cell.width, cell.embedding, bias=False)
        )
        self.text_projection = builder.make(
            "text_projection", lambda: linear(cell.width, cell.embedding, bias=False)
        )
        self.log_scale = nn.Parameter(torch.tensor(-math.log(cell.temperature)))

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [b 3 s s] to unit embeddings [b d] and captioning tokens [b q d]."""
        pooled = self.image(images)
        embedding = F.normalize(self.image_projection(pooled.vector).float(), dim=-1)
        return embedding, pooled.tokens

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map ids [b n] of lengths [b] to unit embeddings [b d] and decoder input [b n d]."""
        stream, cls = self.text(tokens, lengths)
        return F.normalize(self.text_projection(cls).float(), dim=-1), stream

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> CoCaOutput:
        """Map images [b 3 s s] and captions [b n] of lengths [b] to all that the losses need."""
        image, image_tokens = self.encode_image(images)
        text, stream = self.encode_text(tokens, lengths)
        return CoCaOutput(image, text, self.multimodal(stream, image_tokens), self.log_scale.exp())
