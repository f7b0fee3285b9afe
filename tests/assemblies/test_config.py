from __future__ import annotations

import json

import pytest

from assemblies import SIZES, CoCaConfig, normalise, preset, with_field
from assemblies.config import flatten, from_dict, to_dict
from blocks import UsageError, default_registry


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["original", "baseline", "grr"])
def test_round_trip_is_lossless(name: str, size: str) -> None:
    cell = preset(name, size)
    assert from_dict(json.loads(json.dumps(to_dict(cell)))) == cell
    assert hash(from_dict(to_dict(cell))) == hash(cell)


def test_with_field_changes_one_or_all_towers() -> None:
    cell = preset("grr")
    one = with_field(cell, "image.norm", "layernorm")
    assert (one.image.norm, one.text.norm) == ("layernorm", "rmsnorm")
    every = with_field(cell, "*.norm", "layernorm")
    assert {config.norm for _, config in every.towers()} == {"layernorm"}
    assert cell == preset("grr")


@pytest.mark.parametrize(("path", "value", "message"), [
    ("image.nrom", "rmsnorm", r"no field of a cell named 'image.nrom'; did you mean 'image.norm'"),
    ("norm", "rmsnorm", "no field of a cell named 'norm'"),
    ("image", "rmsnorm", "no field of a cell named 'image'"),
    ("image.depth", 2.5, "image.depth=2.5 is float, must be int"),
    ("image.norm", 3, "image.norm=3 is int, must be str"),
    ("image.depth", 0, "image.depth must be above 0 and finite, got 0"),
    ("image.patch", 7, "must be a multiple of image.patch"),
    ("dropout", 1.0, "dropout must be at least 0 and below 1"),
    ("image.placement", "bfore", "no image.placement named 'bfore'"),
])  # fmt: skip
def test_mistakes_are_named(path: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_field(preset("grr"), path, value)


def test_normalise_checks_and_unifies_spellings() -> None:
    registry = default_registry()
    cell = with_field(preset("grr"), "image.position", "rope(theta=10000)")
    assert normalise(cell, registry) == preset("grr")
    with pytest.raises(UsageError, match=r"image\.norm: no norm named 'rms'"):
        normalise(with_field(preset("grr"), "image.norm", "rms"), registry)


@pytest.mark.parametrize(("change", "message"), [
    ({"witdh": 3}, "no field of a cell named 'witdh'; did you mean 'width'"),
    ({"image": 3}, "image must be a mapping"),
    ({"text": {"depth": 1}}, "text: .*heads"),
])  # fmt: skip
def test_from_dict_refuses_what_it_does_not_know(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_dict({**to_dict(preset("grr")), **change})


def test_presets_differ_as_the_papers_say() -> None:
    def changes(a: CoCaConfig, b: CoCaConfig) -> dict[str, tuple[object, object]]:
        old, new = flatten(a), flatten(b)
        return {path: (old[path], new[path]) for path in old if old[path] != new[path]}

    original, baseline, grr = (preset(name) for name in ("original", "baseline", "grr"))
    assert changes(baseline, grr) == {
        "image.norm": ("layernorm", "rmsnorm"),
        "image.ffn": ("mlp", "geglu"),
        "image.position": ("learned", "rope"),
    }
    assert {path.partition(".")[0] for path in changes(original, baseline)} == {
        "text", "multimodal"
    }  # fmt: skip
    with pytest.raises(UsageError, match="no preset named 'gr'; did you mean 'grr'"):
        preset("gr")
    with pytest.raises(UsageError, match="no size named 'nani'; did you mean 'nano'"):
        preset("grr", "nani")
