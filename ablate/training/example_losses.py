"""The losses of each held-out example, kept so that cells can be compared picture by picture."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ablate.core.files import atomic
from ablate.core.recipe import Recipe
from ablate.core.records import EXAMPLES_FILE
from ablate.data.batches import Batch, EncodedSplit, evaluation_batches
from assemblies import CoCa, captioning_loss
from assemblies.losses import contrastive_losses

PROBE = 8  # pictures whose outputs tell one untrained model from another


@torch.no_grad()
def example_losses(
    model: CoCa, split: EncodedSplit, recipe: Recipe, device: torch.device, autocast: torch.autocast
) -> dict[str, Tensor]:
    """Return the losses [n] of a split's pairs in the one order that evaluation uses.

    ``caption`` is in nats per caption, of ``tokens`` predictions; ``contrastive`` is in nats among
    the pairs of the same ``batch``, nan in the last one if it is not full. ``group`` numbers the
    captions: pairs of one caption are one cluster.
    """
    model.eval()
    parts: list[dict[str, Tensor]] = []
    for number, (batch, full) in enumerate(evaluation_batches(split, recipe.evaluation_batch)):
        moved = batch.to(device)
        b = len(batch.lengths)
        part = {"group": batch.groups, "batch": torch.full((b,), number)}
        with autocast:
            out = model(*moved[:3])
        if out.states is not None:
            part["tokens"] = batch.lengths - 1
            part["caption"] = _caption_losses(out.states, model.head, moved).cpu()
        if out.embeddings is not None:
            each = contrastive_losses(out.embeddings._replace(bias=None), moved.groups)
            part["contrastive"] = (each if full else torch.full_like(each, torch.nan)).float().cpu()
        parts.append(part)
    model.train()
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _caption_losses(states: Tensor, head: Tensor, batch: Batch) -> Tensor:
    """Return the nats [b] of captions whose states are [b n d], one by one to save memory."""
    rows = [slice(i, i + 1) for i in range(len(states))]
    means = [captioning_loss(states[i], head, batch.tokens[i], batch.lengths[i]) for i in rows]
    return torch.stack(means).float() * (batch.lengths - 1)


def write_examples(found: dict[str, Tensor], folder: Path) -> None:
    """Write the losses into a stage's folder, whole or not at all."""
    with atomic(folder / EXAMPLES_FILE) as temporary:
        temporary.write_bytes(save({k: v.contiguous() for k, v in found.items()}))


@torch.no_grad()
def outputs_digest(
    model: CoCa, split: EncodedSplit, device: torch.device, autocast: torch.autocast
) -> str:
    """Return a hash of a model's outputs for a few pairs: models that differ, differ in it."""
    model.eval()
    count = min(PROBE, len(split))
    batch = split.batch(list(range(count)), [0] * count).to(device)
    with autocast:
        out = model(*batch[:3])
    model.train()
    content = hashlib.sha256()
    for tensor in (out.states, *(out.embeddings or ())):
        if tensor is not None:
            content.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()
