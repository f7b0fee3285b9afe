"""The report's figures: effects with intervals, validation curves, and what a model says."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ablate.best_of import best_of
from ablate.captioner import Captioner
from ablate.data import mixed_order, open_pairs
from ablate.files import atomic
from ablate.ledger import Ledger
from ablate.plan import Plan
from ablate.report import FINETUNED, METRICS, Report
from ablate.trial import Stage
from blocks import Registry

COLOURS = {"improved": "#1a7f5a", "worse": "#b3382c"}
GREY = "#5b6470"
PICTURES = 10


def draw_figures(report: Report, plan: Plan, ledger: Ledger) -> list[Path]:
    """Draw all figures into the study's directory; returns their paths."""
    found = [
        _save(figure, ledger.directory / name)
        for name, figure in (
            ("effects.png", forest(report, "", plan.stages[0].name)),
            ("effects-finetuned.png", forest(report, FINETUNED, "mean over the fine-tunings")),
            ("curves.png", curves(plan, ledger)),
        )
        if figure is not None
    ]
    return [*found, *(path for s in plan.stages if (path := captions_file(s, ledger)).exists())]


def captions_file(stage: Stage, ledger: Ledger) -> Path:
    """Return where a stage's contact sheet lies."""
    return ledger.directory / f"captions{f'-{stage.prefix[:-1]}' * stage.is_finetuning}.png"


def draw_captions(plan: Plan, ledger: Ledger, registry: Registry) -> None:
    """Draw the contact sheet of every stage; needs the data and the blocks, as training does."""
    for stage in plan.stages:
        if (figure := captions(plan, ledger, stage, registry)) is not None:
            _save(figure, captions_file(stage, ledger))


def forest(report: Report, prefix: str, what: str) -> Figure | None:
    """Return each contrast's improvement with its interval, one panel per metric of a stage."""
    shown = {prefix + metric for metric in METRICS}
    names = list(dict.fromkeys(e.contrast for e in report.effects if e.seeds and e.metric in shown))
    if not names:
        return None
    figure = Figure(figsize=(11, 0.9 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True, squeeze=False)[0]
    for panel, (metric, title) in zip(panels, METRICS.items(), strict=True):
        for e in (e for e in report.effects if e.metric == prefix + metric and e.seeds):
            row, colour = names.index(e.contrast), COLOURS.get(e.verdict, GREY)
            if math.isfinite(e.low):
                panel.plot([e.low, e.high], [row, row], color=colour, linewidth=2)
            panel.plot(e.estimate, row, "o", color=colour, markersize=5)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_title(title, fontsize=10)
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].invert_yaxis()
    figure.supxlabel(
        f"{what}: improvement in % with 95% interval; right of zero is better", fontsize=9
    )
    return figure


def curves(plan: Plan, ledger: Ledger) -> Figure | None:
    """Return validation losses by step: the mean over seeds, with a band from lowest to highest."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, len(METRICS), squeeze=False)[0]
    colours = mpl.color_sequences["tab10"]
    drawn = False
    for panel, (metric, title) in zip(panels, METRICS.items(), strict=True):
        for i, name in enumerate(plan.costs):
            points = defaultdict(list)
            for trial in plan.of_cell(name):
                for line in ledger.curve(trial):
                    if f"val/{metric}" in line:
                        points[line["step"]].append(line[f"val/{metric}"])
            if points:
                drawn = True
                steps = sorted(points)
                means = [float(np.mean(points[s])) for s in steps]
                bold = 2.2 if name in ("baseline", "grr") else 1.1
                colour = colours[i % len(colours)]
                panel.plot(steps, means, ".-", label=name, color=colour, linewidth=bold)
                low, high = ([f(points[s]) for s in steps] for f in (min, max))
                panel.fill_between(steps, low, high, color=colour, alpha=0.08, linewidth=0)
        panel.set_title(f"validation {title}", fontsize=10)
        panel.set_xlabel("step", fontsize=9)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    if not drawn:
        return None
    panels[-1].legend(fontsize=7, frameon=False)
    return figure


def captions(plan: Plan, ledger: Ledger, stage: Stage, registry: Registry) -> Figure | None:
    """Return ten held-out pictures of a stage with a model's caption and, in grey, a person's.

    The model is the last finished one of the primary contrast's candidate, the pictures are the
    first ten of the test split in its fixed, mixed order: neither is chosen by its looks. The
    caption is the best of many draws by the model's own judgement.
    """
    wanted = next((c.pairs[0][1] for c in plan.contrasts if c.primary), list(plan.costs)[-1])
    trials = [t for t in plan.of_cell(wanted) if ledger.result(t) is not None]
    if not trials or trials[-1].cell.objective != "both":
        return None
    folder = ledger.folder(trials[-1]) / trials[-1].stages[plan.stages.index(stage)].folder
    captioner = Captioner.open(folder / "model", registry)
    pairs = open_pairs(stage.recipe.data, captioner.size)
    order = [pairs.indices("test")[i] for i in mixed_order(len(pairs.indices("test")))]
    shown = order[:PICTURES]
    said = best_of(captioner, [pairs.images[i] for i in shown])
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, PICTURES // 2).flat
    for panel, row, text in itertools.zip_longest(panels, shown, said):
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
        if row is None:
            continue
        panel.imshow(pairs.images[row], interpolation="nearest")
        panel.set_title(_folded(text or "(nothing)"), fontsize=9)
        panel.set_xlabel(_folded(pairs.captions[row][0]), color=GREY, fontsize=8)
    figure.suptitle(
        f"{wanted}, seed {trials[-1].seed}, {stage.name} ({stage.recipe.data}): "
        "its caption above, a person's below",
        fontsize=10,
    )
    return figure


def _folded(text: str) -> str:
    """Return a caption in two short lines at most; a dollar sign is no formula."""
    return textwrap.fill(text, 26, max_lines=2, placeholder=" ...").replace("$", r"\$")


def _save(figure: Figure, path: Path) -> Path:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
    return path
