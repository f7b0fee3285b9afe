"""A study in Python, for notebooks: its trials and effects as tables, its figures to look at."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.findings import Findings, make_findings
from ablate.ledger import Ledger
from ablate.plan import Plan, read_plan
from ablate.report import write_report

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
    def findings(self) -> Findings:
        """Return all that the study has found."""
        return make_findings(self.plan, self.ledger)

    @property
    def trials(self) -> pd.DataFrame:
        """Return a row per trial: cell, seed, pair, done, why it failed, and its test metrics."""
        import pandas as pd

        return pd.DataFrame(
            {
                "cell": trial.name,
                "seed": trial.seed,
                "pair": trial.pair,
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
    def effects(self) -> pd.DataFrame:
        """Return a row per contrast and metric, the A/A contrast last; numbers in percent."""
        import pandas as pd

        rows = [*self.findings.effects, *self.findings.noise]
        return pd.DataFrame(dataclasses.asdict(effect) for effect in rows)

    @property
    def plot(self) -> Plots:
        """Return the report's figures, to be called by name: ``study.plot.forest()``."""
        return Plots(self)

    def report(self) -> Path:
        """Write the report anew and return the path of ``report.html``."""
        paths = write_report(self.plan, self.ledger)[-1]
        return next(path for path in paths if path.name == "report.html")
