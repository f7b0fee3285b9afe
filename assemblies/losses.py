"""CoCa's two losses: contrastive between the towers, captioning by the decoder."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from assemblies.coca import Embeddings
from assemblies.parallel import gather, rank, sum_over_ranks, world_size

LOGITS_AT_ONCE = 2**24  # 64 MiB in fp32, and a few times that with what is computed from them


def contrastive_loss(
    embeddings: Embeddings, groups: Tensor, *, distributed: bool = False
) -> Tensor:
    """Return the contrastive loss of a batch, in nats: InfoNCE, or SigLIP's where there is a bias.

    ``groups`` [b] numbers the captions: pairs of one group describe each other's images and are no
    negatives. ``distributed`` contrasts with the pairs of all ranks; the mean over ranks is then
    the loss, and its gradient the gradient, of the batch of all ranks.
    """
    return contrastive_losses(embeddings, groups, distributed=distributed).mean()


def contrastive_losses(
    embeddings: Embeddings, groups: Tensor, *, distributed: bool = False
) -> Tensor:
    """Return each pair's contrastive loss [b], in nats, among those of its batch."""
    image, text, scale, bias = embeddings
    images, texts, every = image, text, groups
    if distributed:
        images, texts, every = gather(image), gather(text), gather(groups)
    own = torch.arange(len(groups), device=groups.device)
    own = own + (rank() * len(groups) if distributed else 0)  # the columns [b] of our own pairs
    same = groups[:, None] == every[None, :]
    same = same.scatter(1, own[:, None], False)  # [b B], True where a pair is no negative
    scores = scale.float() * (image.float() @ texts.float().T)
    if bias is not None:
        return _sigmoid(scores + bias.float(), own, same)
    back = scale.float() * (text.float() @ images.float().T)
    return (_infonce(scores, own, same) + _infonce(back, own, same)) / 2


def _infonce(scores: Tensor, own: Tensor, same: Tensor) -> Tensor:
    """Return each row's cross-entropy in one direction (arXiv 2205.01917, eq. 2, halved)."""
    return F.cross_entropy(scores.masked_fill(same, -math.inf), own, reduction="none")


def _sigmoid(scores: Tensor, own: Tensor, same: Tensor) -> Tensor:
    """Return each row's summed binary losses (arXiv 2303.15343)."""
    sign = torch.full_like(scores, -1.0).scatter(1, own[:, None], 1.0)
    return -F.logsigmoid(sign * scores).masked_fill(same, 0.0).sum(dim=1)


def contrastive_chance(groups: Tensor) -> float:
    """Return the contrastive loss of knowing nothing, in nats: the mean log of candidates."""
    same = groups[:, None] == groups[None, :]
    candidates = len(groups) - same.sum(dim=1) + 1
    return float(candidates.double().log().mean())


def captioning_loss(
    states: Tensor,
    head: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    *,
    smoothing: float = 0.0,
    distributed: bool = False,
    at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Return the mean cross-entropy per predicted token, in nats.

    ``states`` [b n d] stand at the tokens [b n] of captions of ``lengths`` [b]; each predicts the
    next one over the head's [v d] vocabulary. Only places with a next token are looked at, and no
    tensor has more than ``at_once`` logits, so memory does not grow with batch x context x
    vocabulary. ``smoothing`` spreads that share of the label evenly over the vocabulary (arXiv
    1512.00567). ``distributed`` takes the mean over the tokens of all ranks: the mean over ranks of
    what is returned.
    """
    real = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]  # [b n-1]
    labels = tokens[:, 1:][real]
    total = torch.tensor(float(len(labels)), device=states.device)
    if distributed:
        total = sum_over_ranks(total) / world_size()
    rows = max(1, at_once // len(head))
    chosen, learns = states[:, :-1][real], torch.is_grad_enabled()
    loss = _ChunkedCrossEntropy.apply(chosen, head, labels, smoothing, rows, learns)  # type: ignore[no-untyped-call]
    return cast(Tensor, loss) / total.clamp(min=1)  # without labels, 0


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy of states [l d] through a head [v d], some rows at a time.

    Gradients are taken in the forward pass, chunk by chunk, so that no logits are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Tensor,
        labels: Tensor,
        smoothing: float,
        rows: int,
        learns: bool,  # torch says False inside of here in any case
    ) -> Tensor:
        ctx.from_states = torch.zeros_like(states) if learns else None
        ctx.from_head = torch.zeros_like(head) if learns else None
        total = torch.zeros((), device=states.device)
        for start in range(0, len(labels), rows):
            piece, wanted = states[start : start + rows], labels[start : start + rows]
            logits = (piece @ head.T.to(piece.dtype)).float()
            total = total + F.cross_entropy(
                logits, wanted, reduction="sum", label_smoothing=smoothing
            )
            if learns:
                slope = logits.softmax(dim=-1)
                slope -= smoothing / len(head)
                slope[torch.arange(len(wanted), device=wanted.device), wanted] -= 1 - smoothing
                slope = slope.to(piece.dtype)
                ctx.from_states[start : start + rows] = slope @ head.to(piece.dtype)
                ctx.from_head += slope.T @ piece
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return slope * ctx.from_states, slope * ctx.from_head, None, None, None, None
