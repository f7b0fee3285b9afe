"""`ablate verify`: whether a bundle holds."""

from __future__ import annotations

import argparse

from ablate.report.verify_bundle import ENVIRONMENT, verify

DONE, DOES_NOT_HOLD = 0, 1
MOST_LINES = 20  # of what does not hold
HOLDS = (
    "losses follow from its losses by example, and its report and page from its ledger "
    f"(not recomputed: figures, {ENVIRONMENT}, and what training itself gave)"
)


def main(options: argparse.Namespace) -> int:
    """Say what of a bundle does not hold; return 0, or 1 if something does not."""
    wrong = verify(options.bundle)
    if not wrong:
        print(f"{options.bundle} holds: {HOLDS}")
        return DONE
    print(
        f"{options.bundle} does not hold:", *(f"- {line}" for line in wrong[:MOST_LINES]), sep="\n"
    )
    if len(wrong) > MOST_LINES:
        print(f"... and {len(wrong) - MOST_LINES} more")
    return DOES_NOT_HOLD
