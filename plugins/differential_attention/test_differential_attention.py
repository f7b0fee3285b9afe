from __future__ import annotations

from collections.abc import Callable

import differential_attention

from blocks.testing import contract


@contract(differential_attention)
def test_contract(check: Callable[[], None]) -> None:
    check()
