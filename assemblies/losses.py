"""CoCa's two losses: contrastive between the towers, captioning by the decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def similarities(image: Tensor, text: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """Return scaled cosines [b b] of unit vectors [b d], -inf where a pair is no negative.

    Pairs of one group (equal captions) describe each other's images and must not be pushed apart.
    """
    scores = scale.float() * image.float() @ text.float().T
    same = groups[:, None] == groups[None, :]
    same.fill_diagonal_(False)
    return scores.masked_fill(same, -math.inf)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """Return the mean InfoNCE of both directions, in nats (arXiv 2205.01917, eq. 2, halved)."""
    scores = similarities(image, text, scale, groups)
    target = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def contrastive_chance(groups: Tensor) -> float:
    """Return the contrastive loss of knowing nothing, in nats: the mean log of candidates."""
    same = groups[:, None] == groups[None, :]
    candidates = len(groups) - same.sum(dim=1) + 1
    return float(candidates.double().log().mean())


def captioning_loss(states: Tensor, head: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean cross-entropy per predicted token, in nats.

    ``states`` [b n d] stand at the tokens [b n]; each predicts the next one. The vocabulary is
    visited only where there is a next token, so padding costs nothing.
    """
    real = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]  # [b n-1]
    logits = states[:, :-1][real] @ head.T.to(states.dtype)  # [labels v]
    return F.cross_entropy(logits.float(), tokens[:, 1:][real])
