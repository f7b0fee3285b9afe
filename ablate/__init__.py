"""The harness: paired ablations of CoCa cells, tracked, analysed and reported.

In Python: `ablate.run(grid="full", seeds=6)`, which is the command `ablate run`, and
`ablate.Study.open(DIRECTORY)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablate.interface import run
    from ablate.report.study import Study

__all__ = ["Study", "run"]

_MODULES = {"Study": "ablate.report.study", "run": "ablate.interface"}

if not TYPE_CHECKING:  # a type checker would take this for a promise of every name

    def __getattr__(name: str) -> object:
        """Import a public name when it is used: `import ablate` loads neither torch nor Ray."""
        if name not in _MODULES:
            raise AttributeError(f"module 'ablate' has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
