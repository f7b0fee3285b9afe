"""What papers claim, to be shown beside what a study measures."""

from __future__ import annotations

from ablate.core.grids import PAPER
from ablate.core.metrics import FINETUNED

PAPER_CONTRAST = PAPER.name
SOURCE = "arXiv 2507.18009"
# Improvements in percent that GRR-CoCa claims over Baseline CoCa.
PRETRAINING = {"contrastive": 27.25, "perplexity": 3.71, "coca": 7.15}
FINETUNING = {"contrastive": 13.66, "perplexity": 5.18, "coca": 5.55}  # the mean of three sets
CLAIMS = {"": PRETRAINING, FINETUNED: FINETUNING}  # by what stands before a metric's key
