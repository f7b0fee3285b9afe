"""Searches: Optuna proposes, the study's executor trains, a database in the study remembers.

What is asked is a function of what generations before have shown and of the seed alone. It does not
depend on which trial of a generation ended first, nor on when a search was stopped and gone on
with. So Ray Tune runs the trials, and its own search wrapper, which asks whenever a slot is free,
is not used.
"""

from __future__ import annotations

import math
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablate.core.files import digest
from ablate.core.ledger import Ledger
from ablate.core.metrics import SELECTION
from ablate.core.recipe import Recipe
from ablate.core.search_results import Outcome, SearchOutcomes
from ablate.core.trial import SEARCH, TUNING, Trial, make_trial
from ablate.search.request import SearchSize
from assemblies import CoCaConfig
from assemblies.construct import stream_seed
from blocks import Registry, Unsupported, UsageError

SEARCH_DATABASE = "search.db"
RANDOM = 8  # so many trials are drawn at random before the estimator has a say


class NothingFoundError(RuntimeError):
    """All trials of a search failed, so that it has found nothing."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One search: ``propose`` makes trials of Optuna's suggestions, and raises `Unsupported`.

    ``start`` are the suggestions tried first, if any. ``key`` is a hash of whatever decides what is
    asked and what it gives: another one is another search.
    """

    name: str
    key: str
    propose: Callable[[optuna.Trial], Sequence[Trial]]
    start: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A search trial that was asked for: Optuna's record, and what to train or why nothing."""

    proposal: FrozenTrial
    trials: tuple[Trial, ...]
    reason: str = ""


def search_trials(
    name: str,
    cell: CoCaConfig,
    recipe: Recipe,
    budget: SearchSize,
    fingerprint: str,
    registry: Registry,
) -> list[Trial]:
    """Return the trainings of one search trial, one per tuning seed."""
    trials = []
    for seed in range(budget.seeds):
        trial = make_trial(name, cell, recipe, seed, fingerprint, registry, replicate=TUNING)
        (stage,) = trial.stages
        stage = replace(stage, name=SEARCH, key=digest([SEARCH, stage.key]))
        trials.append(replace(trial, stages=(stage,)))
    return trials


def search(
    subjects: Sequence[Subject],
    budget: SearchSize,
    ledger: Ledger,
    run: Callable[[list[Trial]], None],
    tell: Callable[[SearchOutcomes], None],
) -> SearchOutcomes | None:
    """Give every subject its budget and return what was found, or None if interrupted.

    ``run`` trains trials into the ledger; ``tell`` is told after each generation what was found so
    far. Done trials are not done again.
    """
    with _database(ledger.directory) as storage:
        # Asked and told by us: what is asked depends on earlier generations alone, not on which
        # trial ended first, so a search that was killed goes on to the same trials.
        studies = {subject.name: _study(subject, storage) for subject in subjects}
        for first in range(0, budget.trials, budget.generation):
            numbers = range(first, min(first + budget.generation, budget.trials))
            asked = {
                subject.name: _ask(subject, budget, studies[subject.name].trials, numbers)
                for subject in subjects
                if len(studies[subject.name].trials) < numbers.stop
            }
            _train(asked, ledger, run)
            for name, proposals in asked.items():
                count = len(studies[name].trials)
                ended = [_outcome(name, one, ledger) for one in proposals[count - first :]]
                if None in ended:
                    return None
                for one, outcome in zip(proposals[count - first :], ended, strict=True):
                    assert outcome is not None
                    studies[name].add_trial(_as_told(one, outcome))
            outcomes = {
                name: [_read(name, told) for told in study.trials[: budget.trials]]
                for name, study in studies.items()
            }
            if asked or numbers.stop == budget.trials:
                tell(outcomes)
    return outcomes


def _ask(
    subject: Subject, budget: SearchSize, told: Sequence[FrozenTrial], numbers: range
) -> list[Asked]:
    """Return a generation, from what the generations before it have shown."""
    study = optuna.create_study(direction="minimize")
    study.add_trials(told[: numbers.start])
    if numbers.start == 0 and subject.start:
        study.enqueue_trial(dict(subject.start))
    asked = []
    for number in numbers:
        study.sampler = _sampler(stream_seed(budget.sampler, "ask", number))
        trial = study.ask()
        assert trial.number == number, "one of ours for each of Optuna's"
        try:
            trials, reason = tuple(subject.propose(trial)), ""
        except Unsupported as error:
            trials, reason = (), str(error)
        asked.append(Asked(proposal=study.trials[number], trials=trials, reason=reason))
    return asked


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Return TPE (Bergstra 2011) over all parameters together; those asked and open count as bad.

    Grouping lets options that only some blocks have be sampled together with what they belong to.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=RANDOM,
            seed=seed % 2**32,
            multivariate=True,
            group=True,
            constant_liar=True,
        )


def _train(
    asked: Mapping[str, Sequence[Asked]], ledger: Ledger, run: Callable[[list[Trial]], None]
) -> None:
    """Train what the ledger lacks of a generation of all subjects, each key once."""
    trials = {t.key: t for group in asked.values() for one in group for t in one.trials}
    missing = [trial for trial in trials.values() if ledger.result(trial) is None]
    if missing:
        run(missing)


def _outcome(name: str, asked: Asked, ledger: Ledger) -> Outcome | None:
    """Return how a search trial ended, or None if it has not."""
    pruned = Outcome(
        subject=name,
        number=asked.proposal.number,
        values=asked.proposal.params,
        loss=None,
        state="pruned",
        reason=asked.reason,
        cell=asked.trials[0].name if asked.trials else "",
        keys=tuple(trial.key for trial in asked.trials),
    )
    if asked.reason:
        return pruned
    results = [ledger.metrics(trial) for trial in asked.trials]
    for trial, metrics in zip(asked.trials, results, strict=True):
        if metrics is None and (failure := ledger.failure(trial)) is not None:
            reason = (failure.strip().splitlines() or ["unknown"])[-1]
            return replace(pruned, state="fail", reason=reason)
    if None in results:
        return None
    losses = [metrics[f"val/{SELECTION}"] for metrics in results if metrics is not None]
    return replace(pruned, state="complete", loss=math.fsum(losses) / len(losses))


def _as_told(asked: Asked, outcome: Outcome) -> FrozenTrial:
    """Return a trial for Optuna's database: one transaction, with what it was and how it ended."""
    return create_trial(
        state=TrialState[outcome.state.upper()],
        value=outcome.loss,
        params=asked.proposal.params,
        distributions=asked.proposal.distributions,
        user_attrs={
            "cell": outcome.cell,
            "reason": outcome.reason,
            "keys": list(outcome.keys),
            "seeds": [trial.stream for trial in asked.trials],
        },
    )


def _read(name: str, told: FrozenTrial) -> Outcome:
    return Outcome(
        subject=name,
        number=told.number,
        values=told.params,
        loss=told.value if told.state is TrialState.COMPLETE else None,
        state=told.state.name.lower(),
        reason=told.user_attrs["reason"],
        cell=told.user_attrs["cell"],
        keys=tuple(told.user_attrs["keys"]),
    )


def _study(subject: Subject, storage: optuna.storages.BaseStorage) -> optuna.Study:
    return optuna.create_study(
        storage=storage,
        study_name=f"{subject.name} ({subject.key[:12]})",
        direction="minimize",
        load_if_exists=True,
    )


@contextmanager
def _database(directory: Path) -> Iterator[optuna.storages.RDBStorage]:
    """Open the study's database of searches; Optuna's own tools read it too."""
    from sqlalchemy import URL
    from sqlalchemy.exc import DatabaseError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = directory.resolve() / SEARCH_DATABASE
    storage = None
    try:
        storage = optuna.storages.RDBStorage(
            URL.create("sqlite", database=str(path)).render_as_string()
        )
        yield storage
    except (DatabaseError, sqlite3.Error, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UsageError(
            f"cannot use {str(path)!r}: {reason}; move it away: what was trained is in the ledger"
        ) from None
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()
