"""The contact sheet: what a model says of held-out pictures, drawn when a study has run."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.trial import Stage
from ablate.data import mixed_order, open_pairs
from ablate.figures.style import MUTED, new_figure, save, with_style
from ablate.training.best_of import best_of
from ablate.training.captioning import Captioner
from blocks import Registry

PICTURES = 10


def draw_captions(plan: Plan, ledger: Ledger, registry: Registry) -> list[Path]:
    """Draw the contact sheet of every stage; needs the data and the blocks, as training does."""
    drawn = ((stage, captions(plan, ledger, stage, registry)) for stage in plan.stages)
    return [
        save(figure, ledger.directory / f"{captions_stem(stage)}.png")
        for stage, figure in drawn
        if figure is not None
    ]


@with_style
def captions(plan: Plan, ledger: Ledger, stage: Stage, registry: Registry) -> Figure | None:
    """Return ten held-out pictures of a stage with a model's caption and, in grey, a person's.

    The model is the last finished one of the primary contrast's candidate, the pictures are the
    first ten of the test split in its fixed, mixed order: neither is chosen by its looks. The
    caption is the best of many draws by the model's own judgement.
    """
    cell = plan.primary.pairs[0][1] if plan.primary else list(plan.costs)[-1]
    trials = [t for t in plan.of_cell(cell) if ledger.result(t) is not None]
    if not trials or trials[-1].cell.objective != "both":
        return None
    folder = ledger.folder(trials[-1]) / trials[-1].stages[plan.stages.index(stage)].folder
    captioner = Captioner.open(folder / "model", registry)
    pairs = open_pairs(stage.recipe.data, captioner.size)
    order = [pairs.indices("test")[i] for i in mixed_order(len(pairs.indices("test")))]
    rows = order[:PICTURES]
    said = best_of(captioner, [pairs.images[i] for i in rows])
    figure = new_figure(11, 6)
    panels = figure.subplots(2, PICTURES // 2).flat
    for panel, row, text in itertools.zip_longest(panels, rows, said):
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
        if row is None:
            continue
        panel.imshow(pairs.images[row], interpolation="nearest")
        panel.set_title(_folded(text or "(nothing)"), fontsize=9, loc="center", weight="normal")
        panel.set_xlabel(_folded(pairs.captions[row][0]), color=MUTED, fontsize=8)
    figure.suptitle(
        f"{cell}, seed {trials[-1].seed}, {stage.name} ({stage.recipe.data}): "
        "its caption above, a person's below",
        fontsize=10,
    )
    return figure


def _folded(text: str) -> str:
    """Return a caption in two short lines at most."""
    return textwrap.fill(text, 26, max_lines=2, placeholder=" ...")


def captions_stem(stage: Stage) -> str:
    """Return the name, without suffix, of the file with a stage's contact sheet."""
    return f"captions{f'-{stage.prefix[:-1]}' * stage.is_finetuning}"
