"""Batches: which pairs, which caption of each, which crop. All from the seed's own streams.

The batch of a step depends on (seed, step) alone, never on the cell: the same seed shows the same
batches to every architecture, and training can go on at any step without saved generator states.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ablate.core.recipe import Recipe
from ablate.data.pairs import Pairs
from ablate.data.tokenizer import encode
from assemblies.construct import stream_seed
from blocks import UsageError

FILLER = 0  # behind a caption; lengths say where that is, and no model looks at it
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
    return torch.tensor([item + [FILLER] * (longest - len(item)) for item in ids]), lengths


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
        self._drawn: dict[int, tuple[list[int], list[int]]] = {}
        self._lock = threading.Lock()

    def __getitem__(self, step: int) -> Batch:
        """Return the augmented batch of a step; threads may ask for several at a time."""
        epoch, place = divmod(step, self.per_epoch)
        with self._lock:
            if epoch not in self._drawn:  # and keep the one before, which a thread may be in
                kept = {e: drawn for e, drawn in self._drawn.items() if e == epoch - 1}
                self._drawn = {**kept, epoch: self._draw_epoch(epoch)}
            order, captions = self._drawn[epoch]
        chosen = order[place * self.recipe.batch : (place + 1) * self.recipe.batch]
        batch = self.split.batch(chosen, [captions[i] for i in chosen])
        # A stream of its own, by step: the same seed crops alike in every cell, and after a resume.
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "augment", step))
        images = augment(batch.images, self.recipe.crop, self.recipe.flip, generator)
        return batch._replace(images=images)

    def _draw_epoch(self, epoch: int) -> tuple[list[int], list[int]]:
        """Return an epoch's order of pairs, and which caption of each pair it shows."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self.split), generator=generator).tolist()
        caption = torch.Generator().manual_seed(stream_seed(self.seed, "caption", epoch))
        draws = torch.rand(len(self.split), generator=caption).tolist()
        captions = [int(u * len(ids)) for u, ids in zip(draws, self.split.ids, strict=True)]
        if self.recipe.bucket > 1:
            order = self._bucketed(order, captions, generator)
        return order, captions

    def _bucketed(
        self, order: list[int], captions: list[int], generator: torch.Generator
    ) -> list[int]:
        """Put captions of a length together, within windows of ``bucket`` batches."""
        batch, lengths = self.recipe.batch, [len(self.split.ids[i][captions[i]]) for i in order]
        length_of = dict(zip(order, lengths, strict=True))
        window, batches = self.recipe.bucket * batch, list[list[int]]()
        for start in range(0, self.per_epoch * batch, window):
            end = min(start + window, self.per_epoch * batch)
            near = sorted(order[start:end], key=length_of.__getitem__)
            batches += [near[i : i + batch] for i in range(0, len(near), batch)]
        mixed = torch.randperm(len(batches), generator=generator).tolist()
        return [i for which in mixed for i in batches[which]]


class Prefetched:
    """Batches that threads make ahead of the training that asks for them step by step.

    They are the same batches: each depends on its step alone.
    """

    def __init__(self, batches: TrainBatches, *, threads: int, steps: int) -> None:
        self.batches, self.steps, self.ahead = batches, steps, 2 * threads
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self.pending: dict[int, Future[Batch]] = {}

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step, and have the following ones made."""
        for i in range(step, min(step + self.ahead + 1, self.steps)):
            if i not in self.pending:
                self.pending[i] = self.pool.submit(self.batches.__getitem__, i)
        return self.pending.pop(step).result()

    def close(self) -> None:
        """Stop making batches."""
        self.pool.shutdown(wait=False, cancel_futures=True)


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
