"""`python -m ablate`: the same as the command `ablate`."""

from __future__ import annotations

import importlib
import sys

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    module = importlib.import_module("ablate.cli.data" if name == "data" else f"ablate.cli.{name}")
    sys.exit(module.main(arguments))
