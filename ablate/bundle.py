"""`python -m ablate.bundle STUDY OUT.zip`: a study to hand over, and `--verify` to check one.

A bundle holds the plan, the ledger (results, curves, losses by example; no weights), the
environment and the report. Verifying (`ablate.verify`) recomputes the report and compares.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path

from ablate.document import DRAWINGS
from ablate.examples import FILE as EXAMPLES
from ablate.files import atomic
from ablate.ledger import Ledger
from ablate.plan import FILE, read_plan
from ablate.report import write_report
from ablate.search_methods import FOLDER
from ablate.search_outcomes import RECORD
from ablate.verify import ENVIRONMENT, MANIFEST, verify
from assemblies.checkpoint import CONFIG
from blocks import UsageError
from blocks.errors import Parser

DONE, DOES_NOT_HOLD, BAD_USAGE = 0, 1, 2
OF_STAGE = ("result.json", "curve.jsonl", EXAMPLES, f"model/{CONFIG}")
NOT_BEFORE = (1980, 1, 1, 0, 0, 0)  # one date for all: the same study makes the same bundle
HOLDS = (
    "losses follow from its losses by example, and its report, page and drawings from its ledger "
    f"(not recomputed: PNG pictures, {ENVIRONMENT}, and what training itself gave)"
)


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
    drawings = [f"{stem}.svg" for stem in DRAWINGS]
    for pattern in ("report.*", "effects.csv", "table.tex", "*.png", *drawings, *search):
        yield from sorted(study.glob(pattern))
    for trial in plan.trials:
        folder = ledger.folder(trial)
        own = [folder / stage.folder / name for stage in trial.stages for name in OF_STAGE]
        yield from (path for path in (*own, folder / "error.txt") if path.exists())


def _environment() -> list[str]:
    """Return every installed distribution and its version."""
    return sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()}, key=str.lower)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="python -m ablate.bundle",
        description="Pack a study (plan, ledger, environment, report; no weights) into a zip "
        "file, or verify one: recompute its report from its ledger, and losses from those by "
        "example.",
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
        print(f"{bundle} holds: {HOLDS}")
        return DONE
    print(f"{bundle} does not hold:", *(f"- {line}" for line in wrong[:20]), sep="\n")
    if len(wrong) > 20:
        print(f"... and {len(wrong) - 20} more")
    return DOES_NOT_HOLD


if __name__ == "__main__":
    sys.exit(main())
