from __future__ import annotations

import pytest
from samples import small

from assemblies import CoCa, with_field
from assemblies.structure import WIRING, changed_slots, structure, structure_of
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


def test_a_slot_tells_its_blocks_spelling() -> None:
    found = structure(with_field(GRR, "image.norm", "rmsnorm(eps=0.001)"), REGISTRY)
    assert found["image.norm"]["spelling"] == "rmsnorm(eps=0.001)"
    assert found[WIRING]["spelling"] == ""
    assert found.keys() == {WIRING, *GRR.spellings()}


def test_a_model_with_one_objective_has_no_slots_of_the_decoder() -> None:
    clip = structure(with_field(GRR, "objective", "contrastive"), REGISTRY)
    assert clip.keys() == {WIRING, *(s for s in GRR.spellings() if "multimodal" not in s)}


def test_a_real_model_is_told_as_one_on_the_meta_device() -> None:
    assert structure_of(CoCa(GRR, seed=3, registry=REGISTRY)) == structure(GRR, REGISTRY)


def test_a_width_is_no_swap_of_a_block() -> None:
    wider = with_field(GRR, "image.width", 64)
    found = changed_slots(structure(GRR, REGISTRY), structure(wider, REGISTRY))
    assert WIRING in found
    assert len(found) > 3
