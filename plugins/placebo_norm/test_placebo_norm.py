from __future__ import annotations

from collections.abc import Callable

import placebo_norm

from blocks.testing import contract


@contract(placebo_norm)
def test_contract(check: Callable[[], None]) -> None:
    check()
