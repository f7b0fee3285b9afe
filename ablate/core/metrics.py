"""The metrics that studies are judged by."""

from __future__ import annotations

SELECTION = "coca"  # the validation loss that picks the checkpoint to test

Metrics = dict[str, float]

# The metrics of arXiv 2507.18009, all losses: lower is better. The last one decides.
METRICS = {"contrastive": "contrastive loss", "perplexity": "perplexity", "coca": "CoCa loss"}

DECISIVE = "coca"

FINETUNED = "finetune/"  # before the name of a metric averaged over the fine-tunings
