"""What `import ablate` offers to scripts and notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablate.cli.flags import takes
from ablate.cli.run_options import RunOptions

if TYPE_CHECKING:
    from ablate.core.plan import Plan
    from ablate.report.study import Study


@takes(RunOptions)
def run(options: RunOptions) -> Study | Plan | None:
    """Plan, run or continue a study: the command `ablate run`, from Python.

    Returns the study, or the plan where ``plan=True``; None after a search over blocks whose cells
    no seeds confirm. Raises `UsageError` where the command exits with 2.
    """
    from ablate.cli.run import carry_out  # with torch and Ray
    from ablate.core.plan import STUDY_FILE
    from ablate.report.study import Study

    outcome = carry_out(options)
    if options.plan:
        return outcome.plan
    is_study = (outcome.directory / STUDY_FILE).exists()
    return Study.open(outcome.directory) if is_study else None
