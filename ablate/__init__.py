"""The harness: paired ablations of CoCa cells, tracked, analysed and reported.

In Python: `ablate.run(grid="full", seeds=6)`, which is the command `python -m ablate.run`, and
`ablate.Study.open(DIRECTORY)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablate.cli import run
    from ablate.report.study import Study

__all__ = ["Study", "run"]


if not TYPE_CHECKING:  # a type checker would find every name here

    def __getattr__(name: str) -> Any:
        """Import what is asked for, so that `import ablate` itself loads neither torch nor Ray."""
        if name == "Study":
            return importlib.import_module("ablate.report.study").Study
        if name == "run":
            return importlib.import_module("ablate.cli.run")  # a module that can be called
        raise AttributeError(f"module 'ablate' has no attribute {name!r}")
