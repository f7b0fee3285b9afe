from __future__ import annotations

import json

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
