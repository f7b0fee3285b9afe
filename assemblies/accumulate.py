"""Gradients of a batch that does not fit in memory, exact for the contrastive loss too.

The contrastive loss of a batch is not the mean of its parts' losses: every pair contrasts with all
others. As in GradCache (arXiv 2101.06983), the embeddings of all parts are made first without a
graph; the loss of the whole batch gives their gradients; then each part is run again with a graph
that these gradients flow into. Memory is that of one part, for one more pass through the encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from assemblies.coca import Embeddings


def contrastive_gradients(
    parts: Sequence[Callable[[], Embeddings]], loss: Callable[[Embeddings], Tensor]
) -> tuple[Tensor, list[Embeddings]]:
    """Return the whole batch's loss and its gradient by the embeddings of each part.

    Each part makes its own embeddings and must make the same ones when it is run again: dropout
    has to be seeded per part. `surrogate_loss` then sends a part's gradients through the model.
    """
    with torch.no_grad():
        made = [part() for part in parts]
    first = made[0]
    leaves = [torch.cat([e.image for e in made]), torch.cat([e.text for e in made]), first.scale]
    leaves += [] if first.bias is None else [first.bias]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    value = loss(Embeddings(*leaves))
    image, text, *shared = torch.autograd.grad(value, leaves)
    sizes = [len(e.image) for e in made]
    # Scale and bias are one for all parts: the first part carries their gradient.
    shares = [shared, *([torch.zeros_like(s) for s in shared] for _ in parts[1:])]
    pieces = zip(torch.split(image, sizes), torch.split(text, sizes), shares, strict=True)
    return value.detach(), [Embeddings(i, t, *s) for i, t, s in pieces]


def surrogate_loss(embeddings: Embeddings, gradient: Embeddings) -> Tensor:
    """Return the number whose gradient by the embeddings is the one given."""
    terms = [
        (made * slope).sum()
        for made, slope in zip(embeddings, gradient, strict=True)
        if made is not None and slope is not None
    ]
    return torch.stack(terms).sum()
