from __future__ import annotations

import pytest
from samples import small

from assemblies import with_field
from assemblies.structure import WIRING, changed_slots, structure
from blocks import default_registry

REGISTRY = default_registry()
GRR = small("grr")


@pytest.mark.parametrize(("field", "value"), [
    ("image.norm", "layernorm"), ("image.ffn", "mlp"), ("image.position", "learned"),
    ("text.norm", "layernorm"), ("multimodal.ffn", "swiglu"),
    ("image.attention", "mha(qk_norm=True)"),
    ("image.norm", "rmsnorm(eps=0.001)"),
])  # fmt: skip
def test_one_swap_changes_one_slot_and_nothing_else(field: str, value: str) -> None:
    other = with_field(GRR, field, value)
    assert changed_slots(structure(GRR, REGISTRY), structure(other, REGISTRY)) == {field}


def test_all_three_swaps_change_three_slots() -> None:
    found = changed_slots(structure(GRR, REGISTRY), structure(small("baseline"), REGISTRY))
    assert found == {"image.norm", "image.ffn", "image.position"}


def test_the_same_cell_differs_in_nothing() -> None:
    assert changed_slots(structure(GRR, REGISTRY), structure(GRR, REGISTRY)) == set()


def test_a_width_is_no_swap_of_a_block() -> None:
    wider = with_field(GRR, "image.width", 64)
    found = changed_slots(structure(GRR, REGISTRY), structure(wider, REGISTRY))
    assert WIRING in found
    assert len(found) > 3
