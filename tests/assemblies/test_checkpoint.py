from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import small

from assemblies import CoCa, load
from assemblies.checkpoint import save
from blocks import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = CoCa(small(), seed=4)
    save(model.cell, model.state_dict(), tmp_path / "model", tokenizer="{}")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["original", "grr", "clip", "captioner"])
@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_is_exact(name: str, tied: bool, tmp_path: Path) -> None:
    if name == "clip" and tied:
        pytest.skip("a contrastive model has no head")
    model = CoCa(small(name, tied_head=tied), seed=4)
    save(model.cell, model.state_dict(), tmp_path)
    loaded = load(tmp_path)
    assert loaded.cell == model.cell
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_a_folder_holds_three_files_and_no_pickle(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


def test_an_interrupted_overwrite_is_no_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_space(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("assemblies.checkpoint.save_file", out_of_space)
    model = CoCa(small("baseline"))
    with pytest.raises(OSError, match="no space"):
        save(model.cell, model.state_dict(), folder)
    with pytest.raises(UsageError, match="is no checkpoint"):
        load(folder)


def test_missing_unexpected_and_misfit_weights_are_listed(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["text.cls.weight"]
    state["text.extra"] = torch.zeros(1)
    state["log_scale"] = torch.zeros(2)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UsageError) as error:
        load(folder)
    assert "1 missing: text.cls.weight" in str(error.value)
    assert "1 unexpected: text.extra" in str(error.value)
    assert "1 of another shape: log_scale [2], must be []" in str(error.value)


@pytest.mark.parametrize(("change", "message"), [
    ({"format": 7}, "has format 7, this version reads 1"),
    ({"cell": {"imege": 1}}, "no field of a cell named 'imege'"),
])  # fmt: skip
def test_a_foreign_configuration_is_refused(
    folder: Path, change: dict[str, object], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UsageError, match=message):
        load(folder)


def test_an_unknown_block_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["cell"]["image"]["norm"] = "mynorm"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"image\.norm: no norm named 'mynorm'"):
        load(folder)


def test_what_is_no_checkpoint_is_said(folder: Path) -> None:
    with pytest.raises(UsageError, match="is no checkpoint"):
        load(folder.parent)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UsageError, match="cannot read weights"):
        load(folder)
    (folder / "config.json").write_text("[1")
    with pytest.raises(UsageError, match="cannot read"):
        load(folder)
