from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import draw, foreign_tokenizer, open_clip_state

from ablate.cli.command import main
from assemblies import load


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    return str(foreign_tokenizer(tmp_path / "t.json", "<|startoftext|>", "<|endoftext|>"))


@pytest.mark.parametrize("form", ["bin", "safetensors", "checkpoint"])
def test_an_open_clip_checkpoint_can_caption(
    form: str, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {name: 0.05 * t for name, t in open_clip_state(16, 128, 64).items()}
    weights = tmp_path / f"weights.{form.replace('checkpoint', 'pt')}"
    if form == "safetensors":
        save_file(state, weights)
    else:
        parallel = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": parallel, "epoch": 3} if form == "checkpoint" else state, weights)
    out = str(tmp_path / "coca")
    assert main(["convert", str(weights), out, "--tokenizer", tokenizer]) == 0
    assert "context 12" in capsys.readouterr().out
    model = load(out)
    assert model.cell.text.cls == "end_legacy"
    assert torch.equal(model.text.tokens.weight, state["text.token_embedding.weight"])
    picture = tmp_path / "a.png"
    picture.write_bytes(draw("red", "square", 3))
    assert main(["caption", "--checkpoint", out, str(picture)]) == 0
    assert capsys.readouterr().out.startswith(f"{picture}: ")
    assert main(["convert", str(weights), out, "--tokenizer", tokenizer]) == 2
    assert "holds a checkpoint already" in capsys.readouterr().err


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("run-by-pickle"),))  # type: ignore[return-value]


def test_no_code_of_a_pickle_is_run(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"a": Hostile()}))
    torch.save({"a": Hostile()}, tmp_path / "evil.pt")
    for name in ("evil.bin", "evil.pt"):
        assert main(["convert", name, "out", "--tokenizer", tokenizer]) == 2
        err = capsys.readouterr().err
        assert f"cannot read weights '{name}'" in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "run-by-pickle").exists()
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    torch.save({"epoch": 3}, tmp_path / "nothing.pt")
    for weights, message in (
        ("missing.pt", "No such file"),
        ("other.safetensors", "no 'visual.conv1.weight' in the state dict"),
        ("nothing.pt", "holds no state dict"),
    ):
        arguments = [str(tmp_path / weights), str(tmp_path / "out"), "--tokenizer", tokenizer]
        assert main(["convert", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1
