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
from blocks import Registry, UsageError, default_registry
from blocks.projections import linear

SIGMOID_BIAS = -10.0  # arXiv 2303.15343: nearly all pairs are negatives


class Embeddings(NamedTuple):
    """What the contrastive loss needs: unit vectors [b d], the logit scale, and SigLIP's bias."""

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None = None


class CoCaOutput(NamedTuple):
    """What a forward pass gives: embeddings and decoder states [b n d], each where wanted."""

    embeddings: Embeddings | None
    states: Tensor | None


class CoCa(nn.Module):
    """An image tower, a unimodal and a multimodal text tower, and a learned temperature.

    A cell with one objective only lacks what the other one needs: ``contrastive`` is a CLIP (arXiv
    2103.00020), ``captioning`` an encoder and decoder (CapPa, arXiv 2306.07915). Initialisation
    depends on ``seed`` and module paths only: modules that two cells share start bit-identical.
    Raises `Unsupported`, naming the module, where a block cannot serve its site.
    """

    def __init__(
        self, cell: CoCaConfig, *, seed: int = 0, registry: Registry | None = None
    ) -> None:
        super().__init__()
        registry = registry or default_registry()
        self.cell = cell = normalise(cell, registry)
        builder = Builder(registry, seed)

        def projection(path: str) -> nn.Linear:
            return builder.make(path, lambda: linear(cell.width, cell.embedding, bias=False))

        self.image = ImageTower(cell, builder)
        self.text = TextTower(cell, builder)
        self.multimodal = MultimodalTower(cell, builder) if cell.captions else None
        if cell.contrasts:
            self.image_projection = projection("image_projection")
            self.text_projection = projection("text_projection")
            self.log_scale = nn.Parameter(torch.tensor(-math.log(cell.temperature)))
            sigmoid = cell.contrast == "sigmoid"
            self.bias = nn.Parameter(torch.tensor(SIGMOID_BIAS)) if sigmoid else None

    @property
    def head(self) -> Tensor:
        """Return the matrix [v d] that maps decoder states onto the vocabulary."""
        if self.multimodal is None:
            raise UsageError("a contrastive model has no captioning head")
        own = self.multimodal.head
        return self.text.tokens.weight if own is None else own.weight

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images [b 3 s s] to unit embeddings [b d]."""
        self._require(contrast=True)
        return self._project_image(self.image.vector(images))

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Map ids [b n] of lengths [b] to unit embeddings [b d]."""
        self._require(contrast=True)
        return self._project_text(self.text(tokens, lengths)[1])

    def embed(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Embeddings:
        """Map images [b 3 s s] and captions [b n] of lengths [b] to what contrasting needs."""
        return self._embeddings(self.encode_image(images), self.encode_text(tokens, lengths))

    def forward(
        self,
        images: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        *,
        contrast: bool | None = None,
        caption: bool | None = None,
    ) -> CoCaOutput:
        """Map images [b 3 s s] and captions [b n] of lengths [b] to all that the losses need.

        By default all that the cell is built for; what is not wanted is not computed.
        """
        contrast = self.cell.contrasts if contrast is None else contrast
        caption = self.cell.captions if caption is None else caption
        self._require(contrast=contrast, caption=caption)
        if not contrast and not caption:
            raise UsageError("nothing is wanted: contrast and caption are both False")
        if not caption:
            return CoCaOutput(self.embed(images, tokens, lengths), None)
        assert self.multimodal is not None
        if not contrast:
            image_tokens = self.image.tokens(images)
            return CoCaOutput(None, self.multimodal(self.text.read(tokens), image_tokens))
        pooled = self.image(images)
        stream, cls = self.text(tokens, lengths)
        embeddings = self._embeddings(self._project_image(pooled.vector), self._project_text(cls))
        return CoCaOutput(embeddings, self.multimodal(stream, pooled.tokens))

    def _require(self, *, contrast: bool = False, caption: bool = False) -> None:
        if (contrast and not self.cell.contrasts) or (caption and not self.cell.captions):
            raise UsageError(f"this model is built for {self.cell.objective} only")

    def _project_image(self, vector: Tensor) -> Tensor:
        return F.normalize(self.image_projection(vector).float(), dim=-1)

    def _project_text(self, vector: Tensor) -> Tensor:
        return F.normalize(self.text_projection(vector).float(), dim=-1)

    def _embeddings(self, image: Tensor, text: Tensor) -> Embeddings:
        return Embeddings(image, text, self.log_scale.exp(), self.bias)
