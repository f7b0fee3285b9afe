from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from blocks import default_registry
from blocks.__main__ import main


def test_list_shows_every_block(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for spec in default_registry():
        assert f"{spec.kind}/{spec.name}" in shown
        assert spec.source in shown


def test_json_is_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "position", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {f["name"] for f in facts} == set(default_registry().names("position"))
    assert next(f for f in facts if f["name"] == "rope")["options"] == {
        "theta": 10000.0,
        "fraction": 1.0,
    }


@pytest.mark.parametrize("name", ["rope", "position/rope"])
def test_show_describes_a_block(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name]) == 0
    shown = capsys.readouterr().out
    assert "arXiv:2104.09864" in shown
    assert "theta" in shown


@pytest.mark.parametrize(("name", "message"), [
    ("rop", "did you mean 'rope'"),
    ("none", "norm/none or position/none"),
    ("norm/rmsnrm", "did you mean 'rmsnorm'"),
])  # fmt: skip
def test_mistakes_exit_with_2(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name]) == 2
    assert message in capsys.readouterr().err


def test_check_prints_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "norm/layernorm"]) == 0
    assert re.match(r"norm/layernorm +ok +\d+ passed", capsys.readouterr().out)


def test_check_names_what_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "norm", "leaky", str(tmp_path / "leaky")]) == 0
    file = tmp_path / "leaky/leaky.py"
    file.write_text(file.read_text().replace("mean(dim=-1, keepdim=True)", "mean((1, 2), True)"))
    capsys.readouterr()
    assert main(["check", str(file)]) == 1
    shown = capsys.readouterr().out
    assert "norm/leaky" in shown
    assert "hides_the_future: tokens see later tokens" in shown
    assert main(["check", str(file), "--json"]) == 1
    assert {"passed", "failed"} <= {v["status"] for v in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("kind", ["norm", "ffn", "position", "attention", "pooling"])
def test_what_new_writes_passes_its_check(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", kind, f"a_{kind}", str(tmp_path / "new")]) == 0
    assert {p.name for p in (tmp_path / "new").iterdir()} == {
        f"a_{kind}.py", f"test_a_{kind}.py", "pyproject.toml", "README.md",
    }  # fmt: skip
    assert main(["check", str(tmp_path / "new" / f"a_{kind}.py")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["new", "norm", "rmsnorm", "DIR"], "norm/rmsnorm exists already, in plugin 'blocks'"),
    (["new", "norm", "My-Norm", "DIR"], "cannot be a block's name"),
    (["new", "norm", "class", "DIR"], "cannot be a block's name"),
    (["new", "norm", "fine", "."], "exists and is not an empty folder"),
    (["check"], "name a block, a plugin file or module, or --all"),
    (["check", "nowhere.py"], "does not exist"),
    (["check", "rmsnrm"], "did you mean 'rmsnorm'"),
])  # fmt: skip
def test_misuse_exits_with_2_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([a.replace("DIR", str(tmp_path / "x")) for a in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
