"""The figures of searches: what each trial gave, and which choices mattered."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ablate.core.search_results import Outcome, SearchOutcomes, best_so_far
from ablate.figures.style import INK, MUTED, SERIES, Drawing, despine, new_figure, with_style

MOST_NAMED = len(SERIES)  # further searches are drawn in grey and not named


@with_style
def history(outcomes_of: SearchOutcomes) -> Drawing | None:
    """Return the validation loss of every search trial, and as a line the lowest so far.

    That is quality as a function of the budget (arXiv 1909.03004). Trials without a result are
    ticks at the bottom.
    """
    trained = {
        name: of_subject
        for name, of_subject in outcomes_of.items()
        if any(o.loss is not None for o in of_subject)
    }
    if not trained:
        return None
    figure = new_figure(11, 4.2)
    panel = figure.subplots()
    one = len(trained) == 1
    inks = dict(zip(trained, [INK] if one else SERIES, strict=False))
    for name, outcomes in trained.items():
        _draw_search(panel, outcomes, inks.get(name, MUTED), name if name in inks else "")
    panel.set_title("validation CoCa loss of search trials; line: the lowest so far")
    panel.set_xlabel("search trials spent" + ("" if one else ", of each cell"))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    despine(panel, "y")
    if not one:
        panel.legend(frameon=False, fontsize=8)
    return figure


def _draw_search(panel: Axes, outcomes: list[Outcome], ink: str, name: str) -> None:
    done = [(i, o.loss) for i, o in enumerate(outcomes, start=1) if o.loss is not None]
    panel.plot(*zip(*done, strict=True), "o", color=ink, markersize=3.5, alpha=0.55)
    spent, lowest = zip(*best_so_far(outcomes), strict=True)
    ends = (*spent, len(outcomes)), (*lowest, lowest[-1])
    panel.plot(*ends, color=ink, linewidth=1.8, drawstyle="steps-post", label=name or None)
    failed = [i for i, o in enumerate(outcomes, start=1) if o.loss is None]
    bottom = panel.get_xaxis_transform()
    panel.plot(failed, [0.015] * len(failed), "|", color=ink, markersize=8, transform=bottom)


@with_style
def importance(shares: Mapping[str, float]) -> Drawing | None:
    """Return how much each choice matters for being among the best, a bar each."""
    if not shares:
        return None
    figure = new_figure(7, 0.9 + 0.32 * len(shares))
    panel = figure.subplots()
    names = list(shares)
    panel.barh(range(len(names)), [shares[name] for name in names], color=INK, height=0.62)
    for row, name in enumerate(names):
        panel.text(shares[name], row, f" {shares[name]:.0%}", va="center", fontsize=8.5)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.set_xlim(0, 1.12 * max(max(shares.values()), 1e-9))
    panel.set_title("importance of each choice for being among the best (PED-ANOVA)")
    despine(panel, "x")
    return figure
