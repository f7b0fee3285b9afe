"""Command lines as the options that they mean."""

from __future__ import annotations

import shlex

from ablate.cli.command import parse
from ablate.cli.flags import from_command_line
from ablate.cli.run_options import RunOptions


def options_of(*words: str) -> RunOptions:
    """Return what the words after `ablate run` ask for."""
    return from_command_line(RunOptions, parse(["run", *words]))


def options_in(command: str) -> RunOptions:
    """Return what a whole command asks for, as it is printed."""
    program, words = shlex.split(command)[:3], shlex.split(command)[3:]
    assert program == ["python", "-m", "ablate.run"]
    return options_of(*words)
