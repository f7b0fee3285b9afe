"""Packs a study to hand over.

A bundle holds the plan, the ledger (results, curves, losses by example; no weights), the
environment and the report; `ablate.report.verify_bundle` recomputes the report and compares.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from ablate.core.files import atomic
from ablate.core.ledger import Ledger
from ablate.core.plan import STUDY_FILE, read_plan
from ablate.core.records import EXAMPLES_FILE as EXAMPLES
from ablate.core.search_results import BLOCK_SEARCH_FOLDER, SEARCH_FILE
from ablate.figures.catalogue import DRAWINGS
from ablate.report.build import write_report
from ablate.report.verify_bundle import ENVIRONMENT, MANIFEST
from assemblies.checkpoint import CONFIG
from blocks import UsageError

OF_STAGE = ("result.json", "curve.jsonl", EXAMPLES, f"model/{CONFIG}")
NOT_BEFORE = (1980, 1, 1, 0, 0, 0)  # one date for all: the same study makes the same bundle


def write_bundle(study: Path, out: Path) -> int:
    """Write a study's bundle, with a report remade just now; returns the number of files."""
    plan, ledger = read_plan(study), Ledger(study)
    write_report(plan, ledger)
    files = {str(path.relative_to(study)): path.read_bytes() for path in _files(study)}
    files[ENVIRONMENT] = "\n".join(_environment()).encode() + b"\n"
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"bundle": 1, "study": study.resolve().name, "sha256": sums}
    files[MANIFEST] = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    try:
        with atomic(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, content in sorted(files.items()):
                entry = zipfile.ZipInfo(name, NOT_BEFORE)
                archive.writestr(entry, content, compress_type=zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise UsageError(f"cannot write {str(out)!r}: {error.strerror}") from None
    return len(files)


def _files(study: Path) -> Iterator[Path]:
    """Yield the study's files that its report is made of, and the report."""
    plan, ledger = read_plan(study), Ledger(study)
    yield study / STUDY_FILE
    search = (SEARCH_FILE, f"{BLOCK_SEARCH_FOLDER}/*")
    drawings = [f"{stem}.svg" for stem in DRAWINGS]
    for pattern in ("report.*", "effects.csv", "table.tex", "*.png", *drawings, *search):
        yield from sorted(study.glob(pattern))
    for trial in plan.trials:
        folder = ledger.folder(trial)
        files = [folder / stage.folder / name for stage in trial.stages for name in OF_STAGE]
        yield from (path for path in (*files, folder / "error.txt") if path.exists())


def _environment() -> list[str]:
    """Return every installed distribution and its version."""
    return sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()}, key=str.lower)
