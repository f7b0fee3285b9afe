"""`python -m ablate`: the same as the command `ablate`."""

from __future__ import annotations

from ablate.cli.command import start

if __name__ == "__main__":
    start()
