"""`ablate bundle STUDY OUT.zip`: a study to hand over, and `--verify` to check one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablate.report.bundle import write_bundle
from ablate.report.verify_bundle import ENVIRONMENT, verify
from blocks import UsageError
from blocks.errors import Parser

DONE, DOES_NOT_HOLD, BAD_USAGE = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = Parser(
        prog="ablate bundle",
        description="Pack a study (plan, ledger, environment, report; no weights) into a zip "
        "file, or verify one: recompute its report from its ledger, and losses from those by "
        "example.",
        epilog="example: ablate bundle studies/full-nano full-nano.zip",
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
    print(f"check it with: ablate bundle --verify {options.out}")
    return DONE


HOLDS = (
    "losses follow from its losses by example, and its report, page and drawings from its ledger "
    f"(not recomputed: PNG pictures, {ENVIRONMENT}, and what training itself gave)"
)


def _tell(bundle: Path, wrong: Sequence[str]) -> int:
    if not wrong:
        print(f"{bundle} holds: {HOLDS}")
        return DONE
    print(f"{bundle} does not hold:", *(f"- {line}" for line in wrong[:20]), sep="\n")
    if len(wrong) > 20:
        print(f"... and {len(wrong) - 20} more")
    return DOES_NOT_HOLD
