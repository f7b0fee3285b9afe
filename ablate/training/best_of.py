"""The best of many drawn captions, by what both halves of a CoCa think of them.

Beam search finds the likeliest caption, which of a small model is a commonplace. Draws differ, and
the contrastive half says which of them belongs to the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ablate.data.batches import pad
from ablate.data.images import Pixels
from ablate.data.tokenizer import encode
from ablate.training.captioning import BATCH, Captioner
from assemblies import Decoding
from blocks import UsageError

DRAWS, TEMPERATURE, TOP_P = 48, 0.4, 0.9  # chosen on validation, see docs/log.md


def best_of(captioner: Captioner, images: Sequence[Pixels], draws: int = DRAWS) -> list[str]:
    """Return for each picture the draw with the highest scaled similarity + mean log-likelihood.

    Raises `UsageError` for a model that lacks one of the two halves.
    """
    cell = captioner.model.cell
    if not (cell.contrasts and cell.captions):
        raise UsageError(f"best of draws needs both halves, this model has {cell.objective} only")
    if draws < 1:
        raise UsageError(f"draws must be at least 1, got {draws}")
    seen = captioner.embed_images(images)  # [n d]
    scale = float(captioner.model.log_scale.detach().exp())
    said, values = [], []
    for seed in range(draws):
        drawing = Decoding(temperature=TEMPERATURE, top_p=TOP_P, minimum=2, seed=seed)
        said.append(captioner.caption(images, drawing))
        # Scaled as in training, so that it is a log-odds like the likelihood beside it.
        likeness = scale * (seen * captioner.embed_texts(said[-1])).sum(dim=-1)
        values.append(likeness + likelihood(captioner, images, said[-1]))
    best = torch.stack(values).argmax(dim=0).tolist()
    return [said[which][image] for image, which in enumerate(best)]


@torch.no_grad()
def likelihood(captioner: Captioner, images: Sequence[Pixels], said: Sequence[str]) -> Tensor:
    """Return the mean log-probability of each caption's tokens [n], given its picture."""
    model, values = captioner.model, []
    for start in range(0, len(images), BATCH):
        texts = said[start : start + BATCH]
        tokens, lengths = pad(
            encode(captioner.tokenizer, texts, model.cell.context), model.cell.context
        )
        tokens, lengths = tokens.to(captioner.device), lengths.to(captioner.device)
        (batch,) = captioner.batches(images[start : start + BATCH])
        states = model(batch, tokens, lengths, contrast=False).states
        assert states is not None
        likely = (states[:, :-1] @ model.head.T).float().log_softmax(dim=-1)
        likelihoods = likely.gather(2, tokens[:, 1:, None]).squeeze(2)  # [b n-1]
        real = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]
        values.append(((likelihoods * real).sum(dim=1) / real.sum(dim=1)).cpu())
    return torch.cat(values)
