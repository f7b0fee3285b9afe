"""CoCa assembled from blocks: cells, presets, the model and its losses."""

from __future__ import annotations

from assemblies.checkpoint import load
from assemblies.coca import CoCa, CoCaOutput, Embeddings
from assemblies.config import CoCaConfig, ImageConfig, TowerConfig, normalise, with_field
from assemblies.cost import Cost, cost
from assemblies.generate import Captions, Decoding, Marks, generate
from assemblies.losses import captioning_loss, contrastive_chance, contrastive_loss
from assemblies.presets import SIZES, preset
from assemblies.transplant import Transplant, transplant

__all__ = [
    "SIZES",
    "Captions",
    "CoCa",
    "CoCaConfig",
    "CoCaOutput",
    "Cost",
    "Decoding",
    "Embeddings",
    "ImageConfig",
    "Marks",
    "TowerConfig",
    "Transplant",
    "captioning_loss",
    "contrastive_chance",
    "contrastive_loss",
    "cost",
    "generate",
    "load",
    "normalise",
    "preset",
    "transplant",
    "with_field",
]
