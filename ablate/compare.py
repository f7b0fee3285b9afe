"""Two studies side by side: pooled where they are one experiment, contrasted where they are not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ablate.document import Document, Section, Table
from ablate.effects import FEWEST_SEEDS, Losses, Rule, effect, mean_improvements
from ablate.findings import (
    DECISIVE,
    FINETUNED,
    METRICS,
    make_findings,
    metric_sets,
    rule_of,
    stage_losses,
)
from ablate.grid import Contrast
from ablate.ledger import Ledger
from ablate.opening import stamp
from ablate.plan import Plan, read_launches, read_plan
from ablate.sections import percent, shown
from ablate.statistics import CONFIDENCE, t_interval
from blocks import UsageError


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two studies."""

    name: str
    plan: Plan
    losses: dict[str, list[Losses]]  # by metric, as `ablate.findings.metric_sets` names them
    torch: str
    stamp: str

    @property
    def rule(self) -> Rule:
        """Return the study's own rule: a race's intervals are wider."""
        return rule_of(self.plan)

    @property
    def is_plain(self) -> bool:
        """Return whether seeds came whatever they gave: not so in races and under ASHA."""
        return not self.plan.looks and not self.plan.exploratory

    def gains(self, contrast: Contrast, metric: str) -> dict[int, float]:
        """Return a contrast's improvement by seed, of the seeds that its effect is made of."""
        found = mean_improvements(contrast, self.losses[metric])
        seeds = effect(contrast, metric, *self.losses[metric], rule=self.rule).seeds
        return {seed: found[seed] for seed in seeds}

    @classmethod
    def open(cls, directory: Path) -> Side:
        """Read a study's plan and results."""
        plan, ledger = read_plan(directory), Ledger(directory)
        launches = [launch for launch in read_launches(directory) if launch]
        torch = launches[-1]["packages"]["torch"] if launches else "?"
        losses = metric_sets(plan, stage_losses(plan, ledger))
        return cls(str(directory), plan, losses, torch, stamp(plan, make_findings(plan, ledger)))


def compare_studies(first: Path, second: Path) -> Document:
    """Return what two studies say together; raises `UsageError` where they share no contrast.

    Seeds are pooled only of contrasts whose cells, recipe, data and code are the same in both; of
    all others the two effects and their difference are shown, with what differs named.
    """
    if first.resolve() == second.resolve():
        raise UsageError(f"{str(first)!r} is given twice; name two studies")
    a, b = Side.open(first), Side.open(second)
    theirs = {contrast.name: contrast for contrast in b.plan.contrasts}
    shared = [c for c in a.plan.contrasts if c.name in theirs]
    if not shared:
        raise UsageError(f"{a.name!r} and {b.name!r} have no contrast in common")
    differing = differences(a, b)
    other_cells = {c.name: _other_cells(c, a.plan, b.plan) for c in shared}
    pooled = [c for c in shared if not differing and not other_cells[c.name]]
    stages, apart = _later_stages(a.plan, b.plan)
    return Document(
        title=f"{a.name} and {b.name}",
        stamp="; ".join(f"{side.name}: {side.stamp}" for side in (a, b) if side.stamp),
        opening=_opening(a, b, differing, pooled, shared),
        sections=[
            Section(
                title="What differs",
                items=[
                    *differing,
                    *apart,
                    *(f"{name}: {what}" for name, what in other_cells.items() if what),
                ],
            ),
            _effects(a, b, shared, pooled, stages),
        ],
    )


def _effects(
    a: Side,
    b: Side,
    shared: list[Contrast],
    pooled: list[Contrast],
    stages: list[tuple[str, str, bool]],
) -> Section:
    """Return both studies' effects in each metric of the stages that `_later_stages` gives."""
    return Section(
        title="Effects",
        paragraphs=[
            "Improvement in percent with 95% intervals (in a race, with those that hold at every "
            "look); p is of the one contrast, not adjusted. The difference is the second study's "
            f"improvement less the first's: paired by seed where both have {FEWEST_SEEDS} seeds or "
            "more of the same data, else with Welch's interval, without one where a study is a "
            "race or exploratory, and - where they are one experiment or have trials in common. "
            "Pooled: all seeds of both, each trial counted once."
        ],
        tables=[
            _table(prefix + metric, title + words, a, b, shared, [] if differs else pooled)
            for prefix, words, differs in stages
            for metric, title in METRICS.items()
        ],
    )


def differences(a: Side, b: Side) -> list[str]:
    """Return in words what keeps two studies from being one experiment."""
    found = _recipes_differ(a.plan, b.plan) + _rules_differ(a.plan, b.plan)
    if a.plan.size != b.plan.size:
        found.append(f"size: {a.plan.size} and {b.plan.size}")
    mine, theirs = (side.plan.stages[0].data_fingerprint for side in (a, b))
    if mine != theirs:
        found.append(f"data: {mine[:16]} and {theirs[:16]}")
    if a.plan.code != b.plan.code:
        found.append("the code that assembles and trains")
    if a.torch != b.torch:
        found.append(f"torch: {a.torch} and {b.torch}")
    return [*found, *_other_trials(a.plan, b.plan)]


def _recipes_differ(a: Plan, b: Plan) -> list[str]:
    mine, theirs = (dataclasses.asdict(plan.stages[0].recipe) for plan in (a, b))
    tuned = [{cell: row["values"] for cell, row in plan.tuned.items()} for plan in (a, b)]
    return [
        f"recipe {name}: {value!r} and {theirs[name]!r}"
        for name, value in mine.items()
        if value != theirs[name] and name not in a.searched & b.searched
    ] + (["recipes tuned for each cell"] if tuned[0] != tuned[1] else [])


def _rules_differ(a: Plan, b: Plan) -> list[str]:
    """Return what seeds were added or stopped by: pooled with others, they would be chosen ones."""
    found = []
    if a.looks or b.looks:
        looks = (", ".join(map(str, plan.looks)) or "none" for plan in (a, b))
        found.append("races, whose seeds came by what was seen: looks at " + " and ".join(looks))
        if a.looks and b.looks and a.aim != b.aim:
            found.append(f"aim: {a.aim} and {b.aim}")
    if a.exploratory or b.exploratory:
        words = ("exploratory" if plan.exploratory else "not" for plan in (a, b))
        found.append("exploratory, trials were stopped early: " + " and ".join(words))
    return found


def _later_stages(a: Plan, b: Plan) -> tuple[list[tuple[str, str, bool]], list[str]]:
    """Return the stages of both by prefix, words and whether they are other ones; and in words."""
    mine, theirs = ({stage.prefix: stage for stage in plan.stages[1:]} for plan in (a, b))
    found, apart = [("", "", False)], []
    for prefix in (prefix for prefix in mine if prefix in theirs):
        one, other = mine[prefix], theirs[prefix]
        differs = (one.recipe, one.data_fingerprint) != (other.recipe, other.data_fingerprint)
        found.append((prefix, f", {one.name}", differs))
        apart += [f"{one.name}: other data or another recipe"] if differs else []
    alone = [stage.name for p, stage in (mine | theirs).items() if p not in mine or p not in theirs]
    apart += [f"{name}: only one of the studies has it" for name in sorted(alone)]
    if len(found) > 1 and not alone:
        found.append((FINETUNED, ", mean of the fine-tunings", any(s[2] for s in found)))
    return found, apart


def _other_trials(a: Plan, b: Plan) -> list[str]:
    """Return whether a (cell, seed) of both is another trial in each, whatever the reason."""
    mine = {(t.name, t.seed): t.stages[0].key for t in a.trials}
    theirs = {(t.name, t.seed): t.stages[0].key for t in b.trials}
    other = [pair for pair in mine.keys() & theirs.keys() if mine[pair] != theirs[pair]]
    return [f"{len(other)} trials of the same cell and seed have other keys"] if other else []


def _other_cells(contrast: Contrast, a: Plan, b: Plan) -> str:
    changed = [n for n in sorted(contrast.cells) if a.cells[n] != b.cells.get(n)]
    return f"other cells by the name of {', '.join(changed)}" if changed else ""


def _opening(
    a: Side, b: Side, differing: list[str], pooled: list[Contrast], shared: list[Contrast]
) -> list[str]:
    if differing:
        return [
            f"The studies share {len(shared)} contrast{'s' * (len(shared) != 1)} but are two "
            f"experiments ({'; '.join(differing[:3])}): their seeds are not pooled."
        ]
    first = pooled[0] if pooled else None
    if first is None:
        return ["The studies share contrasts by name, but none with the same cells."]
    both = effect(first, DECISIVE, *_merged(a, b, DECISIVE), rule=a.rule)
    return [
        f"The studies are one experiment: {first.name} changes the CoCa loss by {percent(both)} "
        f"over {len(both.seeds)} seeds together."
    ]


def _merged(a: Side, b: Side, metric: str) -> list[Losses]:
    """Return the losses of both studies; a trial in both is one trial."""
    both = zip(a.losses[metric], b.losses[metric], strict=True)
    return [{**theirs, **mine} for mine, theirs in both]


def _table(
    metric: str, title: str, a: Side, b: Side, shared: list[Contrast], pooled: list[Contrast]
) -> Table:
    rows = []
    for contrast in shared:
        sides = [effect(contrast, metric, *s.losses[metric], rule=s.rule) for s in (a, b)]
        together, gap = "-", "-"
        if contrast in pooled:
            together = shown(effect(contrast, metric, *_merged(a, b, metric), rule=a.rule))
        elif not _in_common(contrast, a.plan, b.plan):
            gap = difference(contrast, metric, a, b)
        rows.append((contrast.name, *map(shown, sides), gap, together))
    return Table(
        title=title, header=("contrast", a.name, b.name, "difference", "pooled"), rows=rows
    )


def _in_common(contrast: Contrast, a: Plan, b: Plan) -> bool:
    """Return whether the studies share all trials of a seed: no difference can come of those.

    Where they share the reference's trials alone, pairing by seed takes that into account.
    """
    mine, theirs = ({(t.name, t.pair): t.stages[0].key for t in plan.trials} for plan in (a, b))
    same = {place for place, key in mine.items() if theirs.get(place) == key}
    seeds = {seed for _, seed in same}
    return any(all((cell, seed) in same for cell in contrast.cells) for seed in seeds)


def difference(contrast: Contrast, metric: str, a: Side, b: Side) -> str:
    """Return how much more a contrast improves in the second study, in words.

    The same seed of the same data sees the same batches, so that studies are paired by it.
    """
    first, second = (side.gains(contrast, metric) for side in (a, b))
    same_data = a.plan.stages[0].data_fingerprint == b.plan.stages[0].data_fingerprint
    both = sorted(first.keys() & second.keys()) if same_data else []
    if len(both) < FEWEST_SEEDS:
        found = welch(first, second)
    else:
        gaps = np.array([second[seed] - first[seed] for seed in both])
        found = _with_interval(float(gaps.mean()), *t_interval(gaps))
    return found if a.is_plain and b.is_plain else found.partition(" ")[0]


def _with_interval(gap: float, low: float, high: float) -> str:
    return f"{gap:+.2f} [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else f"{gap:+.2f}"


def welch(a: Mapping[int, float], b: Mapping[int, float]) -> str:
    """Return the difference of two means, second minus first, with its interval, in words."""
    first, second = (np.array(list(side.values())) for side in (a, b))
    if not len(first) or not len(second):
        return "-"
    gap = float(second.mean() - first.mean())
    if min(len(first), len(second)) < 2:
        return f"{gap:+.2f}"
    found: Any = stats.ttest_ind(second, first, equal_var=False)
    interval = found.confidence_interval(CONFIDENCE)
    return _with_interval(gap, interval.low, interval.high)
