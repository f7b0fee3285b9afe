"""The metrics: what each is called, which way is better, and what is done with it.

Evaluation, effects, report, figures, MLflow's views, status and progress iterate this one list. To
add a metric is to enter it here and to compute it in `ablate.training.evaluate`, under its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher"]  # which values are better
Metrics = dict[str, float]  # measured values by name: a split, a slash and a metric's key


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A number that a trained model gets on held-out pairs."""

    key: str
    """What it is called in records, curves and MLflow, after a split's name: ``test/coca``."""

    label: str
    """What a reader sees."""

    direction: Direction
    """Which values are better; improvements are positive whichever it is."""

    unit: str = ""
    """``nats`` per caption or token; empty for plain ratios and scores."""

    chance: str = ""
    """What it is of a model that has learned nothing, in words; empty where that is 0 or unknown.

    The number depends on the data: a plan keeps it (`ablate.core.plan.Plan.references`).
    """

    compared: bool = False
    """Whether contrasts get effects in it, with intervals and verdicts."""

    tabled: bool = True
    """Whether the report's table of cells has a column of it."""


_METRICS = (
    # The three of arXiv 2507.18009.
    Metric(key="contrastive", label="contrastive loss", direction="lower", unit="nats",
           chance="the loss of guessing uniformly among the batch", compared=True),
    Metric(key="perplexity", label="perplexity", direction="lower",
           chance="the perplexity of the training captions' token frequencies", compared=True),
    Metric(key="coca", label="CoCa loss", direction="lower", unit="nats", compared=True),
    Metric(key="image_to_text_recall@1", label="image to text recall@1", direction="higher"),
    Metric(key="text_to_image_recall@1", label="text to image recall@1", direction="higher"),
    Metric(key="image_to_text_recall@5", label="image to text recall@5", direction="higher"),
    Metric(key="text_to_image_recall@5", label="text to image recall@5", direction="higher",
           tabled=False),
    Metric(key="image_to_text_recall@10", label="image to text recall@10", direction="higher",
           tabled=False),
    Metric(key="text_to_image_recall@10", label="text to image recall@10", direction="higher",
           tabled=False),
    Metric(key="cider", label="CIDEr", direction="higher"),
    Metric(key="bleu4", label="BLEU-4", direction="higher", tabled=False),
    Metric(key="rouge_l", label="ROUGE-L", direction="higher", tabled=False),
    Metric(key="caption", label="caption loss", direction="lower", unit="nats", tabled=False),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.key: metric for metric in _METRICS}
SELECTION = "coca"  # the validation loss that picks the checkpoint to test
DECIDES = "coca"  # the metric that verdicts go by, unless a plan says otherwise
FINETUNED = "finetune/"  # before the name of a metric averaged over the fine-tunings


def compared() -> Iterator[Metric]:
    """Yield the metrics in which contrasts get effects, in the order of the report's columns."""
    return (metric for metric in METRICS.values() if metric.compared)
