"""Evaluation on held-out pairs: the paper's losses, perplexity, and recall in both directions."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from ablate.core.recipe import Recipe
from ablate.data.batches import EncodedSplit, evaluation_batches, further_captions
from ablate.data.pairs import Pairs
from ablate.training.caption_metrics import caption_metrics, words
from ablate.training.captioning import Captioner
from ablate.training.example_losses import ExampleLosses
from assemblies import CoCa, captioning_loss, contrastive_chance, contrastive_loss

RECALLS = (1, 5, 10)


@torch.no_grad()
def evaluate(
    model: CoCa,
    split: EncodedSplit,
    recipe: Recipe,
    device: torch.device,
    autocast: torch.autocast,
    *,
    examples: ExampleLosses | None = None,
) -> dict[str, float]:
    """Return losses in nats, perplexity and recalls (0 to 1) of a model on a split.

    The contrastive loss is the mean over full batches of ``evaluation_batch`` pairs, the caption
    loss the mean over tokens, of each picture's first caption, and CoCa's loss their weighted sum.
    Recall looks at the whole split with all captions.
    A model with one objective has no metrics of the other one. ``examples`` collects the losses of
    each pair from the same pass.
    """
    model.eval()
    contrastive, caption, predictions = [], 0.0, 0
    images, texts, groups = [], [], []
    for batch, full in evaluation_batches(split, recipe.evaluation_batch):
        moved = batch.to(device)
        with autocast:
            out = model(*moved[:3])
            if out.states is not None:
                loss = captioning_loss(out.states, model.head, moved.tokens, moved.lengths)
                predicted = int(batch.lengths.sum()) - len(batch.lengths)
                caption, predictions = caption + float(loss) * predicted, predictions + predicted
        if examples is not None:
            examples.add(batch, moved, out, model, full=full)
        if out.embeddings is not None:
            # InfoNCE also where SigLIP's loss is trained, so that models can be compared.
            embeddings = out.embeddings._replace(bias=None)
            if full:
                contrastive.append(float(contrastive_loss(embeddings, moved.groups)))
            # On the CPU and in fp32: retrieval is over the whole split, which a GPU need not hold.
            images.append(embeddings.image.float().cpu())
            texts.append(embeddings.text.float().cpu())
        groups.append(batch.groups)
    metrics: dict[str, float] = {"coca": 0.0}
    if contrastive:
        metrics["contrastive"] = sum(contrastive) / len(contrastive)
        metrics["coca"] += recipe.contrastive_weight * metrics["contrastive"]
        owners = [*groups]
        for tokens, lengths, owner in further_captions(split, recipe.evaluation_batch):
            with autocast:
                # Pictures with several captions: each is a right answer, and is asked for by
                # itself.
                texts.append(model.encode_text(tokens.to(device), lengths.to(device)).float().cpu())
            owners.append(owner)
        metrics |= recalls(*map(torch.cat, (images, texts, groups, owners)))
    if predictions:
        metrics["caption"] = caption / predictions
        metrics["perplexity"] = math.exp(min(metrics["caption"], 700.0))
        metrics["coca"] += recipe.caption_weight * metrics["caption"]
    model.train()
    return metrics


def evaluate_captions(captioner: Captioner, pairs: Pairs, split: str) -> dict[str, float]:
    """Return BLEU-4, ROUGE-L and CIDEr-D of greedy captions on a split.

    All captions of a picture are its references; one without a word in them is left out.
    """
    rows = [i for i in pairs.indices(split) if any(words(c) for c in pairs.captions[i])]
    if not rows:
        return {}
    said = captioner.caption([pairs.images[i] for i in rows])
    return caption_metrics(said, [pairs.captions[i] for i in rows])


def recalls(images: Tensor, texts: Tensor, groups: Tensor, owners: Tensor) -> dict[str, float]:
    """Return recall@k both ways for unit embeddings of images [n d] and captions [m d].

    A hit is anything of the same group; ``groups`` [n] are the images', ``owners`` [m] the
    captions'.
    """
    scores = images @ texts.T  # [n m]
    metrics: dict[str, float] = {}
    ways = (("image_to_text", scores, groups, owners), ("text_to_image", scores.T, owners, groups))
    for name, table, asks, answers in ways:
        for k in RECALLS:
            # A split smaller than k cannot have k answers.
            top = table.topk(min(k, len(answers)), dim=1).indices
            hit = (answers[top] == asks[:, None]).any(dim=1)
            metrics[f"{name}_recall@{k}"] = float(hit.double().mean())
    return metrics


def references(train: EncodedSplit, held_out: EncodedSplit, recipe: Recipe) -> dict[str, float]:
    """Return what knowing nothing gives on a held-out split.

    ``contrastive``: the loss of a coin; ``perplexity``: that of the training captions' token
    frequencies (add-one smoothed over the tokens seen on either side).
    """
    chances = [
        contrastive_chance(batch.groups)
        for batch, full in evaluation_batches(held_out, recipe.evaluation_batch)
        if full
    ]
    counts = Counter(t for captions in train.ids for ids in captions for t in ids[1:])
    tokens = [t for captions in held_out.ids for t in captions[0][1:]]
    # Add-one smoothing: a held-out token that training lacks would have an infinite loss.
    total = sum(counts.values()) + len(counts.keys() | set(tokens))
    nats = -sum(math.log((counts[t] + 1) / total) for t in tokens) / len(tokens)
    return {"contrastive": sum(chances) / len(chances), "perplexity": math.exp(nats)}
