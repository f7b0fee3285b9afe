"""`python -m ablate.run`: the same as `ablate run`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from ablate.cli.command import start

    start("run")
else:  # importing a module binds its name in the package, where the function belongs
    from ablate.interface import run

    sys.modules[__name__] = run  # type: ignore[assignment]
