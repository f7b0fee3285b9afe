"""Captions from a model: greedy, sampled, or by beam search, with keys and values cached."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from assemblies.coca import CoCa
from assemblies.construct import stream_seed
from assemblies.layer import LayerCache
from blocks import UsageError

MOST_BEAMS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """The ids that mean something to a decoder; ``known`` is how many ids have a text, 0 for all.

    Pads, begin marks and ids without a text are never said.
    """

    begin: int = 1
    end: int = 2
    pad: int = 0
    known: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How the next token is chosen.

    At ``temperature`` 0 the likeliest one, else a draw among the ``top_k`` likeliest (0: all) that
    make up ``top_p`` of the probability. With ``beams`` > 1 the caption with the best sum of
    log-probabilities / length ** ``length_penalty`` that a beam search finds. A caption has at
    least ``minimum`` and at most ``maximum`` tokens (0: what the context holds), its end mark
    included. ``cache`` keeps keys and values instead of reading the caption again for each token.
    """

    beams: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    length_penalty: float = 1.0
    minimum: int = 1
    maximum: int = 0
    seed: int = 0
    cache: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 1 <= self.beams <= MOST_BEAMS:
            raise UsageError(f"beams must be at least 1 and at most {MOST_BEAMS}, got {self.beams}")
        if self.temperature != 0 and not 0.01 <= self.temperature <= 100:
            raise UsageError(f"temperature must be 0 or from 0.01 to 100, got {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"top_k must be at least 0 and top_p above 0 and at most 1, "
                f"got {self.top_k} and {self.top_p}"
            )
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise UsageError("top_k and top_p choose among draws: set a temperature above 0")
        if self.beams > 1 and self.temperature > 0:
            raise UsageError("beam search looks for the likeliest caption: set temperature to 0")
        if not -10 <= self.length_penalty <= 10:
            raise UsageError(f"length_penalty must be from -10 to 10, got {self.length_penalty}")
        if self.minimum < 1 or 0 < self.maximum < self.minimum:
            raise UsageError(
                f"minimum must be at least 1 and at most maximum, got {self.minimum} and "
                f"{self.maximum}"
            )


class Captions(NamedTuple):
    """Ids [b n] from the begin mark to the end mark, lengths [b], log-probabilities [b] in nats."""

    tokens: Tensor
    lengths: Tensor
    scores: Tensor


@torch.no_grad()
def generate(
    model: CoCa,
    images: Tensor,
    *,
    marks: Marks | None = None,
    decoding: Decoding | None = None,
    first: int = 0,
) -> Captions:
    """Caption images [b 3 s s]. One that reaches the maximum is cut, and lacks the end mark.

    ``first`` is the number of the first image where many are captioned in batches: each number has
    draws of its own. Raises `UsageError` for a model without a captioner, or lengths beyond its
    context.
    """
    marks, decoding = marks or Marks(), decoding or Decoding()
    if not model.cell.captions:
        raise UsageError("a contrastive model cannot caption: it has no decoder")
    longest = decoding.maximum or model.cell.context - 1
    if longest > model.cell.context - 1:
        raise UsageError(f"maximum must be at most {model.cell.context - 1}, got {longest}")
    if decoding.minimum > longest:
        raise UsageError(f"minimum must be at most {longest}, got {decoding.minimum}")
    training = model.training
    model.eval()
    try:
        decoder = Decoder(model, images, cache=decoding.cache and can_cache(model))
        if decoding.beams > 1:
            return beam_search(decoder, marks, decoding, longest)
        return follow(decoder, marks, decoding, longest, first)
    finally:
        model.train(training)


class Decoder:
    """A model that reads captions token by token, for rows of images."""

    def __init__(self, model: CoCa, images: Tensor, *, cache: bool) -> None:
        assert model.multimodal is not None
        self.text, self.multimodal, self.head = model.text, model.multimodal, model.head
        self.image_tokens = model.image.tokens(images)  # [r q d]
        self.caches: tuple[list[LayerCache], list[LayerCache]] | None = None
        if cache:
            depths = (model.cell.text.depth, model.cell.multimodal.depth)
            text, multimodal = ([LayerCache() for _ in range(depth)] for depth in depths)
            self.caches = (text, multimodal)

    @property
    def rows(self) -> int:
        """Return how many captions are read side by side."""
        return len(self.image_tokens)

    def next(self, tokens: Tensor) -> Tensor:
        """Return the logits [r v] of what follows ids [r n]; with a cache, only the last is new."""
        text, multimodal = self.caches or (None, None)
        new = tokens if text is None else tokens[:, len(text[0].own) :]
        stream = self.text.read(new, cache=text)
        states = self.multimodal(stream, self.image_tokens, cache=multimodal)
        logits: Tensor = states[:, -1] @ self.head.T.to(states.dtype)
        return logits.float()

    def select(self, rows: Tensor) -> None:
        """Go on from these rows [r], in groups of one image that keep their order."""
        for layers in self.caches or ():
            for layer in layers:
                layer.own.select(rows)
        if len(rows) == self.rows:
            return  # each row takes the place of one of the same image: its image's keys stay
        self.image_tokens = self.image_tokens[rows]
        for layer in self.caches[1] if self.caches else ():
            layer.context.select(rows)


def can_cache(model: CoCa) -> bool:
    """Return whether all attention of the text towers takes a cache; other blocks need none."""
    assert model.multimodal is not None
    layers = [*model.text.stack.layers, *model.multimodal.stack.layers]
    residuals = [r for layer in layers for r in (layer.attention, layer.cross) if r is not None]
    return all("cache" in inspect.signature(r.branch.forward).parameters for r in residuals)


def follow(
    decoder: Decoder, marks: Marks, decoding: Decoding, longest: int, first: int = 0
) -> Captions:
    """Take one token after the other: the likeliest, or a seeded draw."""
    device, rows = decoder.image_tokens.device, decoder.rows
    # A stream to a row: what is drawn for one does not depend on how many others there are.
    seeds = [stream_seed(decoding.seed, "draw", first + row) for row in range(rows)]
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    tokens = torch.full((rows, 1), marks.begin, device=device)
    scores, lengths = torch.zeros(rows, device=device), torch.ones_like(tokens[:, 0])
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    for place in range(1, longest + 1):
        found = _likelihoods(decoder.next(tokens), marks, place < decoding.minimum)
        draws = torch.stack([torch.rand((), generator=stream) for stream in streams])
        chosen = choose(found, decoding, draws.to(device))  # [r]
        scores += torch.where(alive, found.gather(1, chosen[:, None]).squeeze(1), 0.0)
        lengths += alive
        chosen = torch.where(alive, chosen, marks.pad)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        alive = alive & (chosen != marks.end)
        if not alive.any():
            break
    return Captions(tokens, lengths, scores)


def choose(found: Tensor, decoding: Decoding, draws: Tensor) -> Tensor:
    """Return one id [r] per row of log-probabilities [r v], by draws [r] even in 0 .. 1."""
    if decoding.temperature == 0:
        return found.argmax(dim=-1)
    ordered, ids = (found / decoding.temperature).sort(dim=-1, descending=True)
    if decoding.top_k:
        ordered[:, decoding.top_k :] = -math.inf
    share = ordered.softmax(dim=-1)
    before = share.cumsum(dim=-1) - share  # what the likelier ones make up already
    share = share.masked_fill(before >= decoding.top_p, 0.0)
    total = share.cumsum(dim=-1)
    drawn = (total <= draws[:, None] * total[:, -1:]).sum(dim=-1)
    drawn = torch.minimum(drawn, (share > 0).sum(dim=-1) - 1)  # whatever rounding does
    return ids.gather(1, drawn[:, None]).squeeze(1)


def _likelihoods(logits: Tensor, marks: Marks, too_short: bool) -> Tensor:
    """Return log-probabilities [r v], with what must not be said at -inf."""
    never = [marks.pad, marks.begin, *([marks.end] if too_short else [])]
    logits[:, never] = -math.inf
    if marks.known:
        logits[:, marks.known :] = -math.inf
    return logits.log_softmax(dim=-1)


def beam_search(decoder: Decoder, marks: Marks, decoding: Decoding, longest: int) -> Captions:
    """Keep the best unfinished captions of each image, and the best finished one."""
    b, k, device = decoder.rows, decoding.beams, decoder.image_tokens.device
    tokens = torch.full((b, 1, 1), marks.begin, device=device)  # [b beams n]
    sums = torch.zeros(b, 1, device=device)  # [b beams]
    best = Best(b, longest, marks, decoding.length_penalty, device)
    for place in range(1, longest + 1):
        logits = decoder.next(tokens.flatten(0, 1))
        found = _likelihoods(logits, marks, place < decoding.minimum)
        every = (sums[:, :, None] + found.view(b, tokens.shape[1], -1)).flatten(1)  # [b beams*v]
        # Each beam can end in one way only: among twice as many there are k that go on.
        top, flat = every.topk(min(2 * k, every.shape[1]), dim=1)
        beam, token = flat // found.shape[-1], flat % found.shape[-1]
        longer = torch.cat(
            [tokens.gather(1, beam[..., None].expand(-1, -1, place)), token[..., None]], dim=2
        )
        ended = token == marks.end
        best.offer(longer, top.masked_fill(~ended, -math.inf))
        sums, order = top.masked_fill(ended, -math.inf).topk(min(k, top.shape[1]), dim=1)
        tokens = longer.gather(1, order[..., None].expand(-1, -1, place + 1))
        if place == longest:
            best.offer(tokens, sums)
        elif best.beats(sums[:, 0], place):
            break
        else:
            rows = torch.arange(decoder.rows, device=device).view(b, -1)  # [b beams]
            decoder.select(rows.gather(1, beam.gather(1, order)).flatten())
    return best.captions()


class Best:
    """The best finished caption of each image, by log-probability over length ** penalty."""

    def __init__(
        self, images: int, longest: int, marks: Marks, penalty: float, device: torch.device
    ) -> None:
        self.marks, self.longest, self.penalty = marks, longest, penalty
        self.tokens = torch.full((images, longest + 1), marks.pad, device=device)
        self.lengths = torch.ones(images, dtype=torch.long, device=device)
        self.sums = torch.full((images,), -math.inf, device=device)
        self.values = torch.full((images,), -math.inf, device=device)

    def offer(self, tokens: Tensor, sums: Tensor) -> None:
        """Take captions [b k n] with log-probabilities [b k] where they are better."""
        said = tokens.shape[2] - 1
        value, which = (sums / said**self.penalty).max(dim=1)  # [b]
        better = value > self.values
        rows = torch.arange(len(tokens), device=tokens.device)
        longer = torch.nn.functional.pad(
            tokens[rows, which], (0, self.longest - said), value=self.marks.pad
        )
        self.tokens = torch.where(better[:, None], longer, self.tokens)
        self.lengths = torch.where(better, said + 1, self.lengths)
        self.sums = torch.where(better, sums[rows, which], self.sums)
        self.values = torch.where(better, value, self.values)

    def beats(self, sums: Tensor, place: int) -> bool:
        """Return whether no caption that goes on from log-probabilities [b] can be better."""
        kindest = self.longest if self.penalty > 0 else place + 1
        return bool((self.values >= sums / kindest**self.penalty).all())

    def captions(self) -> Captions:
        """Return what was found."""
        return Captions(self.tokens[:, : int(self.lengths.max())], self.lengths, self.sums)
