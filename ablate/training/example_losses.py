"""The losses of each held-out example, kept so that cells can be compared picture by picture."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ablate.core.files import atomic
from ablate.core.records import EXAMPLES_FILE
from ablate.data.batches import Batch, EncodedSplit
from assemblies import CoCa, captioning_loss
from assemblies.coca import CoCaOutput
from assemblies.losses import contrastive_losses

PROBE = 8  # pictures whose outputs tell one untrained model from another


class ExampleLosses:
    """Collects the losses [n] of a split's pairs, in the one order that evaluation uses.

    ``caption`` is in nats per caption, of ``tokens`` predictions; ``contrastive`` is in nats among
    the pairs of the same ``batch``, nan in the last one if it is not full. ``group`` numbers the
    captions: pairs of one caption are one cluster.
    """

    def __init__(self) -> None:
        self.parts: list[dict[str, Tensor]] = []

    def add(self, batch: Batch, moved: Batch, out: CoCaOutput, model: CoCa, *, full: bool) -> None:
        """Take a batch's losses from the model's output; ``moved`` is the batch on its device."""
        number = torch.full((len(batch.lengths),), len(self.parts))
        part = {"group": batch.groups, "batch": number}
        if out.states is not None:
            part["tokens"] = batch.lengths - 1
            part["caption"] = _caption_losses(out.states, model.head, moved).cpu()
        if out.embeddings is not None:
            losses = contrastive_losses(out.embeddings._replace(bias=None), moved.groups)
            # Pairs of a smaller batch have fewer to be told from, hence lower losses.
            losses = losses if full else torch.full_like(losses, torch.nan)
            part["contrastive"] = losses.float().cpu()
        self.parts.append(part)

    def tensors(self) -> dict[str, Tensor]:
        """Return what was collected, over all batches."""
        return {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}


def _caption_losses(states: Tensor, head: Tensor, batch: Batch) -> Tensor:
    """Return the nats [b] of captions whose states are [b n d], one by one to save memory."""
    rows = [slice(i, i + 1) for i in range(len(states))]
    means = [captioning_loss(states[i], head, batch.tokens[i], batch.lengths[i]) for i in rows]
    return torch.stack(means).float() * (batch.lengths - 1)


def write_examples(losses: dict[str, Tensor], folder: Path) -> None:
    """Write the losses into a stage's folder, whole or not at all."""
    with atomic(folder / EXAMPLES_FILE) as temporary:
        temporary.write_bytes(save({k: v.contiguous() for k, v in losses.items()}))


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
