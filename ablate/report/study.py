"""A study in Python, for notebooks: its trials and effects as tables, its figures to look at."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.analysis.results import StudyResults, make_results
from ablate.core.ledger import Ledger
from ablate.core.metrics import FINETUNED
from ablate.core.plan import Plan, read_plan
from ablate.core.search_results import read_outcomes
from ablate.figures import cell_figures, search_figures
from ablate.figures import effect_figures as figures
from ablate.report.build import write_report
from blocks.errors import unknown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Study:
    """A study's plan, ledger and findings, read from its directory.

    ``trials``, ``curves`` and ``effects`` are pandas tables; ``plot`` draws the report's figures.
    Nothing is trained, and neither the data nor the plugins are needed.
    """

    def __init__(self, directory: Path, plan: Plan, ledger: Ledger) -> None:
        self.directory, self.plan, self.ledger = directory, plan, ledger

    @classmethod
    def open(cls, directory: str | Path) -> Study:
        """Return the study in a directory; raises `UsageError` where there is none."""
        return cls(Path(directory), read_plan(Path(directory)), Ledger(Path(directory)))

    def __repr__(self) -> str:
        """Return the study's name and how far it is."""
        done = sum(self.ledger.result(trial) is not None for trial in self.plan.trials)
        of = f"{done} of {len(self.plan.trials)} trials done"
        return f"<Study {str(self.directory)!r}: grid {self.plan.grid}, {of}>"

    @functools.cached_property
    def results(self) -> StudyResults:
        """Return all that the study has found."""
        return make_results(self.plan, self.ledger)

    @property
    def trials(self) -> pd.DataFrame:
        """Return a row per trial: cell, seed, pair, done, why it failed, and its test metrics."""
        import pandas as pd

        return pd.DataFrame(
            {
                "cell": trial.name,
                "seed": trial.seed,
                "replicate": trial.replicate,
                "done": self.ledger.result(trial) is not None,
                "failure": (self.ledger.failure(trial) or "").strip().rpartition("\n")[2],
                **(self.ledger.metrics(trial) or {}),
            }
            for trial in self.plan.trials
        )

    @property
    def curves(self) -> pd.DataFrame:
        """Return a row per trial and logged step, with the metrics of that step."""
        import pandas as pd

        return pd.DataFrame(
            {"cell": trial.name, "seed": trial.seed, **line}
            for trial in self.plan.trials
            for line in self.ledger.curve(trial)
        )

    @property
    def searches(self) -> pd.DataFrame:
        """Return a row per search trial before the study, with what it tried: empty without any."""
        import pandas as pd

        return pd.DataFrame(
            {
                "subject": outcome.subject,
                "number": outcome.number,
                "cell": outcome.cell,
                "loss": outcome.loss,
                "state": outcome.state,
                "reason": outcome.reason,
                **outcome.values,
            }
            for outcomes in read_outcomes(self.directory).values()
            for outcome in outcomes
        )

    @property
    def effects(self) -> pd.DataFrame:
        """Return a row per contrast and metric, the A/A contrast last; numbers in percent."""
        import pandas as pd

        rows = [*self.results.effects, *self.results.noise]
        return pd.DataFrame(dataclasses.asdict(effect) for effect in rows)

    @property
    def plot(self) -> Plots:
        """Return the report's figures, to be called by name: ``study.plot.forest()``."""
        return Plots(self)

    def report(self) -> Path:
        """Write the report anew and return the path of ``report.html``."""
        return write_report(self.plan, self.ledger)[-1][0]


class Plots:
    """The figures of a study's report, each drawn when it is called for.

    A figure is None where the study has no data for it. Notebooks show one by themselves; elsewhere
    there is ``figure.savefig("effects.pdf")``.
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    def forest(self, stage: str = "") -> Figure | None:
        """Return every contrast's improvement with its interval, a panel per metric.

        ``stage`` is a fine-tuning's name or ``finetune``, the mean of all; by default pretraining.
        Raises `UsageError` for a stage that the study has not.
        """
        prefixes = {s.prefix[:-1]: s.prefix for s in self.study.plan.stages[1:]}
        prefixes |= {FINETUNED[:-1]: FINETUNED} if prefixes else {}
        if stage and stage not in prefixes:
            raise unknown("fine-tuning", stage, prefixes)
        return figures.forest(self.study.plan, self.study.results, prefixes.get(stage, ""))

    def slopes(self) -> Figure | None:
        """Return the primary contrast seed by seed."""
        return figures.slopes(self.study.plan, self.study.results)

    def shapley(self) -> Figure | None:
        """Return each swap's share of the gain of all."""
        return figures.shapley(self.study.results)

    def interactions(self) -> Figure | None:
        """Return each swap's gain without and with another one."""
        return figures.interactions(self.study.plan, self.study.results)

    def curves(self) -> Figure | None:
        """Return validation losses by step, and improvements over the reference."""
        return cell_figures.curves(self.study.plan, self.study.results)

    def search(self) -> Figure | None:
        """Return the validation loss of search trials, and the lowest so far."""
        return search_figures.history(read_outcomes(self.study.directory))

    def cost(self) -> Figure | None:
        """Return test losses by what cells cost."""
        return cell_figures.cost_against_quality(self.study.plan, self.study.results)
