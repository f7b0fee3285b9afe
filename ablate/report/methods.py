"""How a study was done and where its numbers come from, written by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablate.analysis.losses import needed_trials
from ablate.analysis.results import StudyResults
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan, read_launches
from ablate.core.trial import Trial
from ablate.report.document import Section, Table
from ablate.stats.effects import DecisionRule
from ablate.stats.tests_and_intervals import EXACT_PAIRS, smallest_p


def problems_section(plan: Plan, ledger: Ledger, results: StudyResults) -> list[Section]:
    """Return what is missing, failed or left out, by name; nothing is averaged away."""
    items = [f"Skipped cell {name}: {reason}" for name, reason in plan.skipped.items()]
    items += [f"Cell {name} equals {other}." for name, other in plan.same.items()]
    items += [f"Contrast {name} is left out: it {why}." for name, why in plan.dropped.items()]
    if plan.factorial and not results.attributions:
        items.append("No swap's share of the gain: no seed has a result of every cell that takes.")
    items += [f"Data: {count} pairs skipped: {why}." for why, count in plan.data_skipped.items()]
    for trial in needed_trials(plan, results.race):
        if ledger.result(trial) is None and ledger.stopped(trial) is None:
            reason = (ledger.failure(trial) or _no_result(trial, ledger)).strip().splitlines()[-1]
            items.append(f"No result for {trial.name} seed {trial.seed}: {reason}")
    items += [f"{words[:1].upper()}{words[1:]}." for words in results.problems]
    items += _early_stops(plan, ledger)
    items += _other_launches(plan, ledger)
    few = min((len(e.seeds) for e in results.effects if e.seeds), default=0)
    if 0 < few < 3:
        items.append(f"Too few seeds: {few}; verdicts need three, and six to be worth much.")
    return [Section(title="Left out, failed, or doubtful", items=items)] if items else []


def _no_result(trial: Trial, ledger: Ledger) -> str:
    """Return why a trial that has not failed has no result."""
    lost = [stage for stage in trial.stages if ledger.record(trial, stage) is None]
    if (ledger.folder(trial) / lost[0].folder / "result.json").exists():
        return "its result.json is damaged, or of another trial; the study's command makes it anew"
    return "has not run yet"


def _other_launches(plan: Plan, ledger: Ledger) -> list[str]:
    """Return warnings if the study was run with other seeds or cells before: looks not counted."""
    launches = [launch for launch in read_launches(ledger.directory) if "seeds" in launch]
    counts = [str(n) for n in dict.fromkeys(launch["seeds"] for launch in launches)]
    gone = dict.fromkeys(c for launch in launches for c in launch["cells"] if c not in plan.cells)
    items = []
    if len(counts) > 1 and not plan.looks:
        items.append(
            f"The study was run with {', then '.join(counts)} seeds. If that was decided after a "
            "look at its results, p is too small and intervals are too narrow; --race declares "
            "looks beforehand."
        )
    if gone:
        items.append(
            f"Cells that were in the study before, and are not in this report: {', '.join(gone)}. "
            "p is adjusted for the contrasts that are left only."
        )
    return items


def _early_stops(plan: Plan, ledger: Ledger) -> list[str]:
    """Return which stages ran out of patience: their cells were trained for other lengths."""
    stops = [
        f"{trial.name} seed {trial.seed} {stage.name} at {record['metrics']['last_step']}"
        for trial in plan.trials
        for stage in trial.stages
        if (record := ledger.record(trial, stage))
        and record["metrics"]["last_step"] < stage.recipe.steps
    ]
    return [f"Stopped early, out of patience: {', '.join(stops)}."] if stops else []


def methods_section(plan: Plan) -> Section:
    """Return the design and the recipe in words."""
    share = DecisionRule().primary_share
    others = len(plan.contrasts) - 1
    family = (
        f"The primary contrast is tested at {100 * share * 0.05:g}% and the {others} others by "
        f"Holm's method at {100 * (1 - share) * 0.05:g}%; whichever side is rejected whole hands "
        "its part to the other. "
        if plan.primary and others
        else ""
    )
    most = "at most " if plan.looks else ""
    again = ", one of them the A/A cell" if plan.noise else ""
    size = f"{len(plan.costs)} cells{again}, with {most}{plan.seeds} seeds each{plan.start_words}"
    length = "Each trial is trained at full length"
    if plan.exploratory:
        length = "Trials were stopped early by ASHA"
    return Section(
        title="Methods",
        folded=True,
        paragraphs=[
            f"Grid {plan.grid}: {plan.summary}. Size {plan.size}, {size}. The declared primary "
            f"contrast is {plan.primary.name if plan.primary else 'none'}, decided by the CoCa "
            f"loss on the test split; the smallest effect of interest is "
            f"{plan.smallest_effect:g}%.",
            "A seed gives every cell the same batches, captions, crops and dropout stream, and "
            "bit-identical initial weights in every module that cells share; seeds are the units "
            f"of analysis. {length}; the checkpoint with the lowest validation CoCa loss is "
            "tested, once.",
            f"{family}Improved or worse: adjusted p of a paired t test at most 0.05. Equivalent: "
            "two one-sided tests reject effects beyond the smallest one of interest. effects.csv "
            f"has {_exact(plan.seeds)}.",
            "That each swap happened was checked: the cells of a contrast differ in the declared "
            "fields and in no other, and so do the built modules where blocks are swapped; "
            "untrained outputs differ or are named above, curves differ.",
        ],
        tables=[_recipes(plan)],
    )


def _exact(seeds: int) -> str:
    """Return what stands in effects.csv as p_sign_flip."""
    if seeds > EXACT_PAIRS:
        return f"no p_sign_flip: {seeds} seeds have too many signs to go through"
    return (
        "the p of a sign-flip test, which assumes only that without an effect both signs are as "
        f"likely; with {seeds} seeds it cannot go below {smallest_p(seeds):.3g}"
    )


def _recipes(plan: Plan) -> Table:
    tuned = dict.fromkeys(plan.searched, "tuned for each cell")
    recipes = [dataclasses.asdict(stage.recipe) | tuned for stage in plan.stages]
    rows = [(name, *(str(recipe[name]) for recipe in recipes)) for name in recipes[0]]
    return Table(title="Recipe", header=("", *(s.name for s in plan.stages)), rows=rows)


def provenance_section(plan: Plan, ledger: Ledger) -> Section:
    """Return launches, versions, devices, data and the hashes of blocks."""
    launches = read_launches(ledger.directory)
    records = [record for trial in plan.trials if (record := ledger.result(trial))]
    machines = {f"{record['device']} with torch {record['torch']}" for record in records}
    data = [f"{s.recipe.data} ({s.data_fingerprint[:16]})" for s in plan.stages]
    rows = [(name, code[:16]) for name, code in plan.blocks.items()]
    return Section(
        title="Provenance",
        folded=True,
        items=[
            *(_launch_words(launch) for launch in launches if launch),
            f"Trained on: {', '.join(sorted(machines)) or 'nothing yet'}.",
            f"Data and fingerprints: {', '.join(data)}.",
        ],
        tables=[Table(title="Blocks used, by source hash", header=("block", "sha256"), rows=rows)],
    )


def _launch_words(launch: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in launch["packages"].items())
    return (
        f"{launch['date']}: {launch['command']}; git {launch['git'][:12]}"
        f"{'+changes' * launch['git'].endswith('+changes')}; Python {launch['python']}; "
        f"{packages}; {launch['system']}, {launch['device']}"
    )
