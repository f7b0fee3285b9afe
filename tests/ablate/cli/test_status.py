"""`ablate status` while a study is searched for (test_workflow has its trials)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ablate.cli.command import main
from ablate.core.ledger import Ledger
from ablate.core.search_results import Outcome, write_outcomes


def outcome(subject: str, number: int, loss: float | None) -> Outcome:
    state = "fail" if loss is None else "complete"
    return Outcome(subject=subject, number=number, values={"lr": 0.1}, loss=loss, state=state)


def test_a_search_is_shown_before_its_study_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {
        "baseline": [outcome("baseline", 0, 4.25), outcome("baseline", 1, 3.5)],
        "grr": [outcome("grr", 0, None)],
    }
    write_outcomes(found, tmp_path)
    with Ledger(tmp_path).locked():
        assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "search: baseline: 2 done, lowest validation CoCa loss 3.5000",
        "search: grr: 1 done, lowest validation CoCa loss none yet",
        "the search comes before the trials; a process is running it",
    ]
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "study": str(tmp_path),
        "running": False,
        "search": {
            "baseline": {"trials": 2, "val/coca": 3.5},
            "grr": {"trials": 1, "val/coca": None},
        },
        "grid": "",
        "decides": "",
        "trials": [],
    }
    (tmp_path / "search.json").write_text('[{"subject": 1}]')
    assert main(["status", str(tmp_path)]) == 2
    assert "is not one of ours" in capsys.readouterr().err


def test_a_search_is_shown_before_its_first_generation_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "is no study" in capsys.readouterr().err
    write_outcomes({}, tmp_path)
    with Ledger(tmp_path).locked():
        assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "search: no generation is over yet",
        "the search comes before the trials; a process is running it",
    ]
    assert main(["status", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["search"], found["trials"]) == ({}, [])
