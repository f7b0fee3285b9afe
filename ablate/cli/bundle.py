"""`ablate bundle`: a study to hand over."""

from __future__ import annotations

import argparse

from ablate.report.bundle import write_bundle

DONE = 0


def main(options: argparse.Namespace) -> int:
    """Write the bundle; return the exit code."""
    count = write_bundle(options.study, options.out)
    print(f"{options.out}: {count} files, {options.out.stat().st_size / 2**20:.1f} MiB")
    print(f"check it with: ablate verify {options.out}")
    return DONE
