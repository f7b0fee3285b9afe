"""The two studies of a comparison, and in words what keeps them from being one experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ablate.analysis.losses import metric_sets, stage_losses
from ablate.analysis.results import StudyResults, direction_of, make_results
from ablate.core.grid import Contrast
from ablate.core.ledger import Ledger
from ablate.core.metrics import FINETUNED, METRICS, compared
from ablate.core.plan import Plan, read_launches, read_plan
from ablate.stats.effects import Effect, Losses, mean_improvements

Effects = Mapping[tuple[str, str], Effect]  # by contrast and metric


@dataclasses.dataclass(frozen=True)
class StudySummary:
    """One of the two studies."""

    name: str
    plan: Plan
    losses: dict[str, Losses]  # by metric, as `ablate.analysis.losses.stage_losses` names them
    results: StudyResults
    ledger: Ledger
    torch: str

    @property
    def effects(self) -> Effects:
        """Return the study's own effects, as its report has them."""
        return {(e.contrast, e.metric): e for e in self.results.effects}

    @property
    def pairs(self) -> set[int]:
        """Return the seeds that the study asks for."""
        return {trial.seed for trial in self.plan.trials}

    @property
    def is_plain(self) -> bool:
        """Return whether seeds came whatever they gave: not so in races and under ASHA."""
        return not self.plan.looks and not self.plan.exploratory

    def gains(self, contrast: Contrast, metric: str) -> dict[int, float]:
        """Return a contrast's improvement by seed, of the seeds that its effect is made of."""
        sets = metric_sets(self.plan, self.losses)[metric]
        by_seed = mean_improvements(contrast, sets, direction_of(metric))
        return {seed: by_seed[seed] for seed in self.effects[contrast.name, metric].seeds}

    @classmethod
    def open(cls, directory: Path) -> StudySummary:
        """Read a study's plan and results."""
        plan, ledger = read_plan(directory), Ledger(directory)
        launches = [launch for launch in read_launches(directory) if launch]
        torch = launches[-1]["packages"]["torch"] if launches else "?"
        results = make_results(plan, ledger)
        return cls(str(directory), plan, stage_losses(plan, ledger), results, ledger, torch)


def differences(a: StudySummary, b: StudySummary) -> list[str]:
    """Return in words what keeps two studies from being one experiment."""
    differing = _recipes_differ(a.plan, b.plan) + _rules_differ(a.plan, b.plan)
    if a.plan.size != b.plan.size:
        differing.append(f"size: {a.plan.size} and {b.plan.size}")
    mine, theirs = (side.plan.stages[0].data_fingerprint for side in (a, b))
    if mine != theirs:
        differing.append(f"data: {mine[:16]} and {theirs[:16]}")
    if a.plan.code != b.plan.code:
        differing.append("the code that assembles and trains")
    if a.torch != b.torch:
        differing.append(f"torch: {a.torch} and {b.torch}")
    return [*differing, *_other_trials(a.plan, b.plan), *_other_results(a, b)]


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
    differing = []
    if a.looks or b.looks:
        looks = (", ".join(map(str, plan.looks)) or "none" for plan in (a, b))
        differing.append(
            "races, whose seeds came by what was seen: looks at " + " and ".join(looks)
        )
        if a.looks and b.looks and a.aim != b.aim:
            differing.append(f"aim: {a.aim} and {b.aim}")
    if a.exploratory or b.exploratory:
        words = ("exploratory" if plan.exploratory else "not" for plan in (a, b))
        differing.append("exploratory, trials were stopped early: " + " and ".join(words))
    return differing


def _other_trials(a: Plan, b: Plan) -> list[str]:
    """Return whether a (cell, seed) of both is another trial in each, whatever the reason."""
    mine = {(t.name, t.seed): t.stages[0].key for t in a.trials}
    theirs = {(t.name, t.seed): t.stages[0].key for t in b.trials}
    other = [pair for pair in mine.keys() & theirs.keys() if mine[pair] != theirs[pair]]
    return [f"{len(other)} trials of the same cell and seed have other keys"] if other else []


def _other_results(a: StudySummary, b: StudySummary) -> list[str]:
    """Return whether a trial that both studies have came out otherwise in one of them."""
    mine, theirs = _results(a), _results(b)
    other = {key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]}
    count = sum(any(stage.key in other for stage in trial.stages) for trial in a.plan.trials)
    words = (
        f"{count} trial{'s' * (count != 1)} of the same key {'has' if count == 1 else 'have'} "
        "other results: one of the ledgers was changed or the machines differ"
    )
    return [words] if count else []


def _results(side: StudySummary) -> dict[str, str]:
    """Return, by key of its stage, all digits of what a stage's test gave."""
    keys = [metric.key for metric in compared()]
    return {
        stage.key: str(values)
        for trial in side.plan.trials
        for stage in trial.stages
        if any(values := [
            side.losses[stage.prefix + metric].get((trial.name, trial.seed)) for metric in keys
        ])
    }  # fmt: skip


def declared_differ(a: Plan, b: Plan) -> list[str]:
    """Return what was declared otherwise for verdicts: it changes no number of the ledgers."""
    names = (plan.primary.name if plan.primary else "none" for plan in (a, b))
    declared = {
        "deciding metric": (METRICS[a.decides].label, METRICS[b.decides].label),
        "primary contrast": tuple(names),
        "smallest effect of interest": (f"{a.smallest_effect:g}%", f"{b.smallest_effect:g}%"),
    }
    return [
        f"{what}: {mine} and {theirs}; pooled verdicts go by the first study's"
        for what, (mine, theirs) in declared.items()
        if mine != theirs
    ]


def other_cells(contrast: Contrast, a: Plan, b: Plan) -> str:
    """Return which cells of a contrast are others in the second study, or nothing."""
    changed = [n for n in sorted(contrast.cells) if a.cells[n] != b.cells.get(n)]
    return f"other cells by the name of {', '.join(changed)}" if changed else ""


def later_stages(a: Plan, b: Plan) -> tuple[list[tuple[str, str, bool]], list[str]]:
    """Return the stages of both by prefix, words and whether they are other ones; and in words."""
    mine, theirs = ({stage.prefix: stage for stage in plan.stages[1:]} for plan in (a, b))
    stages, apart = [("", "", False)], []
    for prefix in (prefix for prefix in mine if prefix in theirs):
        one, other = mine[prefix], theirs[prefix]
        differs = (one.recipe, one.data_fingerprint) != (other.recipe, other.data_fingerprint)
        stages.append((prefix, f", {one.name}", differs))
        apart += [f"{one.name}: other data or another recipe"] if differs else []
    alone = [stage.name for p, stage in (mine | theirs).items() if p not in mine or p not in theirs]
    apart += [f"{name}: only one of the studies has it" for name in sorted(alone)]
    if len(stages) > 1 and not alone:
        stages.append((FINETUNED, ", mean of the fine-tunings", any(s[2] for s in stages)))
    return stages, apart


def in_common(contrast: Contrast, a: Plan, b: Plan) -> bool:
    """Return whether the studies share all trials of a seed: no difference can come of those.

    Where they share the reference's trials alone, pairing by seed takes that into account.
    """
    mine, theirs = ({(t.name, t.seed): t.stages[0].key for t in plan.trials} for plan in (a, b))
    same = {place for place, key in mine.items() if theirs.get(place) == key}
    seeds = {seed for _, seed in same}
    return any(all((cell, seed) in same for cell in contrast.cells) for seed in seeds)
