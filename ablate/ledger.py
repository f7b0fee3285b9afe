"""A study's directory: its lock, its trials and their results under content-addressed keys.

``trials/LABEL/result.json`` is the record of a finished trial. Nothing else decides whether a trial
is done, so the same command again continues where the study stopped.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablate.files import read_json, write_text
from ablate.train import read_curve
from ablate.trial import Trial
from blocks import UsageError


class Ledger:
    """What a study's directory says about its trials."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def folder(self, trial: Trial) -> Path:
        """Return the directory that a trial writes into."""
        return self.directory / "trials" / re.sub(r"[^\w.+=-]+", "_", trial.label)

    def result(self, trial: Trial) -> dict[str, Any] | None:
        """Return a finished trial's record, or None."""
        record = read_json(self.folder(trial) / "result.json")
        if record is None or record.get("key") != trial.key:
            return None
        return dict(record)

    def metrics(self, trial: Trial) -> dict[str, float] | None:
        """Return a finished trial's metrics, or None."""
        record = self.result(trial)
        return None if record is None else dict(record["metrics"])

    def curve(self, trial: Trial) -> list[dict[str, Any]]:
        """Return a trial's metrics by step."""
        return read_curve(self.folder(trial) / "curve.jsonl")

    def failure(self, trial: Trial) -> str | None:
        """Return why a trial failed when it last ran, or None."""
        path = self.folder(trial) / "error.txt"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def record_failure(self, trial: Trial, text: str) -> None:
        """Keep why a trial failed; the next run tries it again."""
        write_text(self.folder(trial) / "error.txt", text)

    def forget_failure(self, trial: Trial) -> None:
        """Drop the record of an earlier failure."""
        (self.folder(trial) / "error.txt").unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study for this process; raises `UsageError` naming a process that holds it."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            file = (self.directory / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot write study {str(self.directory)!r}: {error.strerror}"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UsageError(
                    f"study {str(self.directory)!r} is in use by {owner}; wait, or use --study"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
            file.truncate(0)
