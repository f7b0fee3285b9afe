"""`python -m ablate.bundle STUDY OUT.zip`: a study to hand over, and `--verify` to check one.

A bundle holds the plan, the ledger (results, curves, losses by example; no weights), the
environment and the report. Verifying recomputes the report from the ledger and compares.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath
from typing import Any

from ablate.examples import FILE as EXAMPLES
from ablate.files import atomic
from ablate.findings import make_findings
from ablate.ledger import Ledger
from ablate.plan import FILE, read_plan
from ablate.report import make_report, texts, write_report
from ablate.search_methods import FOLDER
from ablate.search_outcomes import RECORD
from assemblies.checkpoint import CONFIG
from blocks import UsageError
from blocks.errors import Parser

DONE, DOES_NOT_HOLD, BAD_USAGE = 0, 1, 2
MANIFEST, ENVIRONMENT = "MANIFEST.json", "environment.txt"
OF_STAGE = ("result.json", "curve.jsonl", EXAMPLES, f"model/{CONFIG}")
MAX_BYTES = 2**32  # of an unpacked bundle; a real one of a hundred trials has some megabytes
NOT_BEFORE = (1980, 1, 1, 0, 0, 0)  # one date for all: the same study makes the same bundle
RELATIVE = 1e-9  # two machines' arithmetic


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
    yield study / FILE
    search = (RECORD, f"{FOLDER}/*")
    for pattern in ("report.*", "effects.csv", "table.tex", "*.png", "*.svg", *search):
        yield from sorted(study.glob(pattern))
    for trial in plan.trials:
        folder = ledger.folder(trial)
        own = [folder / stage.folder / name for stage in trial.stages for name in OF_STAGE]
        yield from (path for path in (*own, folder / "error.txt") if path.exists())


def _environment() -> list[str]:
    """Return every installed distribution and its version."""
    return sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()}, key=str.lower)


def verify(bundle: Path) -> list[str]:
    """Return what in a bundle does not hold: changed files, and numbers that come out otherwise.

    Raises `UsageError` for what is no bundle at all. Nothing in it is run or unpickled.
    """
    with tempfile.TemporaryDirectory() as temporary:
        try:
            study, wrong = _unpack(bundle, Path(temporary))
        except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise UsageError(f"{str(bundle)!r} is no bundle: {error}") from None
        plan, ledger = read_plan(study), Ledger(study)
        found = make_findings(plan, ledger)
        for name, text in texts(make_report(plan, ledger, found), found).items():
            given = study / name
            if not given.exists():
                wrong.append(f"{name} is missing")
            elif name.endswith(".csv"):
                wrong += _other_numbers(name, given.read_text(encoding="utf-8"), text)
            else:
                wrong += _other_lines(name, given.read_text(encoding="utf-8"), text)
        return wrong


def _unpack(bundle: Path, temporary: Path) -> tuple[Path, list[str]]:
    """Unpack a bundle into a folder of the study's name; returns it, and which files changed."""
    with zipfile.ZipFile(bundle) as archive:
        manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
        name, sums = manifest["study"], manifest["sha256"]
        entries = [entry for entry in archive.infolist() if entry.filename != MANIFEST]
        if sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise ValueError("it unpacks to more than 4 GiB")
        for path in (name, *(entry.filename for entry in entries)):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"it has a file outside of itself: {path!r}")
        wrong = [f"{path} is missing" for path in sums.keys() - {e.filename for e in entries}]
        for entry in entries:
            content = archive.read(entry)
            if hashlib.sha256(content).hexdigest() != sums.get(entry.filename):
                wrong.append(f"{entry.filename} is not the file that was bundled")
            path = temporary / PurePosixPath(name).name / entry.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return temporary / PurePosixPath(name).name, sorted(wrong)


def _other_lines(name: str, given: str, recomputed: str) -> list[str]:
    ours, theirs = recomputed.splitlines(), given.splitlines()
    if len(ours) != len(theirs):
        return [f"{name} has {len(theirs)} lines, recomputed {len(ours)}"]
    return [
        f"{name}, line {i}: {theirs[i - 1]!r}, recomputed {ours[i - 1]!r}"
        for i in range(1, len(ours) + 1)
        if ours[i - 1] != theirs[i - 1]
    ]


def _other_numbers(name: str, given: str, recomputed: str) -> list[str]:
    theirs, ours = (list(csv.reader(text.splitlines())) for text in (given, recomputed))
    if [len(row) for row in theirs] != [len(row) for row in ours]:
        return [f"{name} has other rows or columns than are recomputed"]
    return [
        f"{name}, row {i}, {ours[0][j]}: {mine!r}, recomputed {yours!r}"
        for i, (row, other) in enumerate(zip(theirs, ours, strict=True))
        for j, (mine, yours) in enumerate(zip(row, other, strict=True))
        if not _same(mine, yours)
    ]


def _same(a: str, b: str) -> bool:
    """Return whether two texts are equal, or the same number as far as machines agree."""
    if a == b:
        return True
    try:
        return math.isclose(float(a), float(b), rel_tol=RELATIVE, abs_tol=RELATIVE)
    except ValueError:
        return False


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="python -m ablate.bundle",
        description="Pack a study (plan, ledger, environment, report; no weights) into a zip "
        "file, or verify one: recompute every number of its report from its ledger.",
        epilog="example: python -m ablate.bundle studies/full-nano full-nano.zip",
    )
    top.add_argument("study", type=Path, nargs="?", metavar="STUDY")
    top.add_argument("out", type=Path, nargs="?", metavar="OUT.zip")
    top.add_argument("--verify", type=Path, metavar="BUNDLE.zip")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 it does not hold, 2 bad usage."""
    options = parser().parse_args(arguments)
    try:
        if options.verify:
            if options.study:
                raise UsageError("--verify takes the bundle alone")
            return _tell(options.verify, verify(options.verify))
        if not options.study or not options.out:
            raise UsageError("name STUDY and OUT.zip, or --verify BUNDLE.zip")
        count = write_bundle(options.study, options.out)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    print(f"{options.out}: {count} files, {options.out.stat().st_size / 2**20:.1f} MiB")
    print(f"check it with: python -m ablate.bundle --verify {options.out}")
    return DONE


def _tell(bundle: Path, wrong: Sequence[str]) -> int:
    if not wrong:
        print(f"{bundle} holds: every number of its report follows from its ledger")
        return DONE
    print(f"{bundle} does not hold:", *(f"- {line}" for line in wrong[:20]), sep="\n")
    if len(wrong) > 20:
        print(f"... and {len(wrong) - 20} more")
    return DOES_NOT_HOLD


if __name__ == "__main__":
    sys.exit(main())
