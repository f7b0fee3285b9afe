"""`ablate blocks`: the same as `python -m blocks`."""

from __future__ import annotations

from blocks.__main__ import run as main

__all__ = ["main"]
