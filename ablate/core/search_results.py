"""What searches have found, as plain data: readers of a study need no Optuna."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ablate.core.files import write_json
from ablate.core.ledger import Ledger
from ablate.core.plan import Plan
from ablate.core.stored import from_json
from assemblies import CoCaConfig
from blocks import KINDS, UsageError

SEARCH_FILE = "search.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A search trial that is over: its best validation loss, or why it has none."""

    subject: str
    """What is searched: a cell, or the blocks of all."""

    number: int
    """Which of the subject's trials it is, from 0 on."""

    values: Mapping[str, Any]
    """What was tried, by name."""

    loss: float | None
    """The mean over tuning seeds of the best validation loss; None without one."""

    state: str
    """``complete``, ``fail`` (its training failed) or ``pruned`` (it cannot be built)."""

    reason: str = ""
    """Why it has no loss."""

    cell: str = ""
    """The cell that its values lead to, in a search over blocks."""

    keys: tuple[str, ...] = ()
    """Of its trainings, one per tuning seed."""

    @property
    def short(self) -> str:
        """Return a short name of its cell, for tables and figures: ``walk 17``."""
        return f"walk {self.number}"


SearchOutcomes = dict[str, list[Outcome]]  # by subject, in the order they were asked for


def write_outcomes(by_subject: SearchOutcomes, directory: Path) -> None:
    """Write all outcomes as plain data, for readers that have no Optuna."""
    rows = [asdict(outcome) for outcomes in by_subject.values() for outcome in outcomes]
    write_json(directory / SEARCH_FILE, rows)


def read_outcomes(directory: Path) -> SearchOutcomes:
    """Return what a study's searches have found so far: nothing where there were none."""
    path = directory / SEARCH_FILE
    if not path.exists():
        return {}
    try:
        outcomes: list[Outcome] = from_json(list[Outcome], path.read_bytes())
    except UsageError as error:
        raise UsageError(f"{str(path)!r} is not one of ours ({error})") from None
    by_subject: SearchOutcomes = {}
    for outcome in outcomes:
        by_subject.setdefault(outcome.subject, []).append(outcome)
    return by_subject


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome of the lowest validation loss, the first of equals, or None."""
    done = [outcome for outcome in outcomes if outcome.loss is not None]
    return min(done, key=lambda o: (o.loss, o.number), default=None)


def best_so_far(outcomes: Sequence[Outcome]) -> Iterator[tuple[int, float]]:
    """Yield the number of trials spent and the lowest validation loss among them."""
    lowest = None
    for spent, outcome in enumerate(outcomes, start=1):
        if outcome.loss is not None:
            lowest = outcome.loss if lowest is None else min(lowest, outcome.loss)
        if lowest is not None:
            yield spent, lowest


def ranking(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the trained cells from the lowest validation loss on, each once."""
    done = sorted((o for o in outcomes if o.loss is not None), key=lambda o: (o.loss, o.number))
    first = {outcome.cell: outcome for outcome in reversed(done)}
    return [outcome for outcome in done if first[outcome.cell] is outcome]


BASE_CELL = "grr"  # where a walk starts

BLOCK_SEARCH_FOLDER = "search"  # of a walk's own report, in the study's directory


def name_of(cell: CoCaConfig, base: CoCaConfig) -> str:
    """Return a walk's cell by its base and each slot that differs from that."""
    slots = [kind for kind in KINDS if getattr(cell.image, kind) != getattr(base.image, kind)]
    return " ".join([BASE_CELL, *(f"{kind}={getattr(cell.image, kind)}" for kind in slots)])


def trials_left(plan: Plan, ledger: Ledger) -> dict[str, int]:
    """Return how many trainings the search before a study still has to do, by cell."""
    if not plan.search:
        return {}
    outcomes, seeds = read_outcomes(ledger.directory), len(plan.search["seeds"])
    over_blocks = plan.search["over"] == "blocks"
    names = {name: "blocks" if over_blocks else name for name in plan.costs if name != plan.again}
    trainings = {
        name: plan.search["trials"] - len(outcomes.get(subject, []))
        for name, subject in names.items()
    }
    return {name: max(0, trials) * seeds for name, trials in trainings.items()}
