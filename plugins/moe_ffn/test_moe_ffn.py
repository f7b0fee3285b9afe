from __future__ import annotations

from collections.abc import Callable

import moe_ffn

from blocks.testing import contract


@contract(moe_ffn)
def test_contract(check: Callable[[], None]) -> None:
    check()
