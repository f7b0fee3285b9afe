from __future__ import annotations

from collections.abc import Callable

import dyt

from blocks.testing import contract


@contract(dyt)
def test_contract(check: Callable[[], None]) -> None:
    check()
