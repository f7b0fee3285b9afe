"""What a report says of interim looks: what each decided and dropped, and what was saved."""

from __future__ import annotations

from collections.abc import Sequence

from ablate.analysis.losses import needed_trials
from ablate.analysis.results import StudyResults
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.trial import Trial
from ablate.report.document import Section, Table
from ablate.stats.race import FUTILE, FUTILE_PRIMARY, IMPROVEMENTS, Look, Race
from ablate.stats.sequential import spent


def look_words(look: Look) -> str:
    """Return what a look decided and dropped, in a line."""
    decided = "; ".join(f"{d.effect.contrast} {d.why}" for d in look.decisions)
    dropped = f"; dropped: {', '.join(look.dropped)}" if look.dropped else ""
    return f"look at {look.seeds} seeds: {decided or 'nothing is decided'}{dropped}"


def race_section(plan: Plan, ledger: Ledger, results: StudyResults) -> list[Section]:
    """Return the looks, what each decided and dropped, and the trials that were saved."""
    race = results.race
    if race is None:
        return []
    used = needed_trials(plan, race)
    beyond = [t for t in plan.trials if t not in used and ledger.result(t) is not None]
    saved = len(plan.trials) - len(used)
    aim = "find it improved" if plan.aim == IMPROVEMENTS else "bring a verdict"
    running = f" Still running: {', '.join(sorted(race.running))}." if race.running else ""
    return [
        Section(
            title="The race",
            paragraphs=[
                f"Seeds were added at looks declared before the study began: "
                f"{', '.join(map(str, plan.looks))}. A cell ran on while a contrast that needs it "
                f"was neither decided nor futile. Futile: the chance that later looks {aim} is "
                f"below {100 * FUTILE:g}% (the primary contrast: that they bring any verdict is "
                f"below {100 * FUTILE_PRIMARY:g}%). p holds over all looks, and "
                "intervals are wider, so that they hold at each. Effects that stopped a race early "
                "tend to be overestimated.",
                f"{saved} of {len(plan.trials)} trials ({saved / len(plan.trials):.0%}) were "
                f"{'not needed' if not race.running else 'not needed_trials so far'}.{running}",
            ],
            tables=[_looks_table(plan, race), _decisions_table(race)],
            items=_race_problems(plan, ledger, race, beyond),
        )
    ]


def _looks_table(plan: Plan, race: Race) -> Table:
    spent_at = dict(zip(plan.looks, spent(plan.looks), strict=True))
    rows = []
    for look in race.looks:
        over = look.seeds == plan.looks[-1]
        dropped = "the last look" if over else ", ".join(look.dropped) or "none"
        rows.append((str(look.seeds), f"{100 * spent_at[look.seeds]:.2g}%", dropped))
    return Table(title="Looks", header=("seeds", "alpha spent", "cells dropped"), rows=rows)


def _decisions_table(race: Race) -> Table:
    rows = [
        (
            d.effect.contrast,
            str(look.seeds),
            d.why,
            f"{d.effect.estimate:+.2f}",
            f"{d.effect.p_adjusted:.2g}",
            f"{d.effect.p_tost:.2g}",
            f"{d.chance:.2g}",
        )
        for look in race.looks
        for d in look.decisions
    ]
    header = ("contrast", "seeds", "decision", "%", "adjusted p", "p equivalent", "chance")
    note = "As seen at the look that decided. Chance: what was left of what it would run on for."
    return Table(title="Decisions", header=header, rows=rows, note=note)


def _race_problems(plan: Plan, ledger: Ledger, race: Race, beyond: Sequence[Trial]) -> list[str]:
    """Return in words what kept a look from deciding, and trials that no look asked for."""
    seen = race.looks[-1].seeds if race.looks else 0
    lost = [
        f"{trial.name} seed {trial.seed}"
        for trial in needed_trials(plan, race)
        if trial.seed < seen and ledger.result(trial) is None
    ]
    items = []
    if lost:
        items.append(
            f"Failed: {', '.join(lost)}. Contrasts that need them decide nothing until as many "
            "other pairs have come; if these trials succeed later, looks are held anew."
        )
    if beyond:
        names = ", ".join(f"{trial.name} seed {trial.seed}" for trial in beyond)
        items.append(f"Trained, though by now no look asks for them: {names}.")
    return items
