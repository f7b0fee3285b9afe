"""Batches: which pairs, which caption of each, which crop. All from the seed's own streams.

The batch of a step depends on (seed, step) alone, never on the cell: the same seed shows the same
batches to every architecture, and training can go on at any step without saved generator states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ablate.data.pairs import Pairs
from ablate.data.tokenizer import PAD, encode
from ablate.recipe import Recipe
from assemblies.construct import stream_seed
from blocks import UsageError

LENGTH_MULTIPLE = 4  # captions are padded to few distinct lengths, which kernels and compilers like


class Batch(NamedTuple):
    """Images [b 3 s s] in -1 .. 1, token ids [b n], their lengths [b] and caption groups [b]."""

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    groups: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(*(t.to(device, non_blocking=True) for t in self))


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """One split, its captions as ids."""

    images: np.ndarray[Any, np.dtype[np.uint8]]
    rows: np.ndarray[Any, np.dtype[np.int64]]
    ids: list[list[list[int]]]
    groups: Tensor
    context: int

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, chosen: Sequence[int], captions: Sequence[int]) -> Batch:
        """Return some pairs with one caption each, padded to the longest one in the batch."""
        images = to_floats(torch.from_numpy(self.images[self.rows[list(chosen)]]))
        ids = [self.ids[i][which] for i, which in zip(chosen, captions, strict=True)]
        return Batch(images, *pad(ids, self.context), self.groups[list(chosen)])


def to_floats(pixels: Tensor) -> Tensor:
    """Map pictures [b s s 3] of bytes to images [b 3 s s] in -1 .. 1."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def pad(ids: Sequence[list[int]], context: int) -> tuple[Tensor, Tensor]:
    """Return ids [b n], padded to the longest and a little more, and their lengths [b]."""
    lengths = torch.tensor([len(item) for item in ids])
    longest = min(-(-int(lengths.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, context)
    return torch.tensor([item + [PAD] * (longest - len(item)) for item in ids]), lengths


def encode_split(pairs: Pairs, split: str, tokenizer: Tokenizer, context: int) -> EncodedSplit:
    """Return a split ready for batches; raises `UsageError` when it is empty."""
    rows = pairs.indices(split)
    if not rows:
        raise UsageError(f"data {pairs.uri!r} has no pair in its {split!r} split")
    flat = encode(tokenizer, [c for i in rows for c in pairs.captions[i]], context)
    pieces = iter(flat)
    return EncodedSplit(
        images=pairs.images,
        rows=np.array(rows),
        ids=[[next(pieces) for _ in pairs.captions[i]] for i in rows],
        groups=torch.tensor([pairs.groups[i] for i in rows]),
        context=context,
    )


class TrainBatches:
    """The training batches of one seed, by step."""

    def __init__(self, split: EncodedSplit, recipe: Recipe, seed: int) -> None:
        if len(split) < recipe.batch:
            raise UsageError(
                f"the training split has {len(split)} pairs, fewer than a batch of "
                f"{recipe.batch}; set batch={len(split)} or less"
            )
        self.split, self.recipe, self.seed = split, recipe, seed
        self.per_epoch = len(split) // recipe.batch
        self._epoch = -1

    def __getitem__(self, step: int) -> Batch:
        """Return the augmented batch of a step."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._draw_epoch(epoch)
        chosen = self._order[place * self.recipe.batch : (place + 1) * self.recipe.batch]
        batch = self.split.batch(chosen, [self._captions[i] for i in chosen])
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "augment", step))
        images = augment(batch.images, self.recipe.crop, self.recipe.flip, generator)
        return batch._replace(images=images)

    def _draw_epoch(self, epoch: int) -> None:
        order = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
        self._order = torch.randperm(len(self.split), generator=order).tolist()
        caption = torch.Generator().manual_seed(stream_seed(self.seed, "caption", epoch))
        draws = torch.rand(len(self.split), generator=caption).tolist()
        self._captions = [int(u * len(ids)) for u, ids in zip(draws, self.split.ids, strict=True)]
        self._epoch = epoch


def augment(images: Tensor, crop: float, flip: float, generator: torch.Generator) -> Tensor:
    """Crop each image [b 3 s s] to a random square of side crop .. 1 and resize; flip some."""
    if crop == 1 and flip == 0:
        return images
    b = len(images)
    scale = crop + (1 - crop) * torch.rand(b, generator=generator)
    shift = (2 * torch.rand(b, 2, generator=generator) - 1) * (1 - scale)[:, None]
    mirror = 1 - 2 * (torch.rand(b, generator=generator) < flip).float()
    grid = torch.zeros(b, 2, 3)
    grid[:, 0, 0], grid[:, 1, 1], grid[:, :, 2] = scale * mirror, scale, shift
    where = F.affine_grid(grid, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, padding_mode="border", align_corners=False)


def mixed_order(count: int) -> list[int]:
    """Return the one order in which held-out pairs are looked at."""
    mixed = torch.Generator().manual_seed(stream_seed(0, "evaluation"))
    return [int(i) for i in torch.randperm(count, generator=mixed)]


def further_captions(split: EncodedSplit, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Iterate over all captions but each pair's first: ids [b n], lengths [b], groups [b]."""
    rest = [(i, ids) for i, several in enumerate(split.ids) for ids in several[1:]]
    for start in range(0, len(rest), batch):
        owners, ids = zip(*rest[start : start + batch], strict=True)
        yield *pad(ids, split.context), split.groups[list(owners)]


def evaluation_batches(split: EncodedSplit, batch: int) -> Iterator[tuple[Batch, bool]]:
    """Iterate over a split in one fixed, mixed order with each pair's first caption.

    The flag says whether the batch is full: contrastive losses of smaller batches are easier and
    would not compare. Neighbours in a file look alike, hence the mixing.
    """
    order = mixed_order(len(split))
    size = min(batch, len(split))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield split.batch(chosen, [0] * len(chosen)), len(chosen) == size
