"""What lies in a study's directory is read back whole, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies import finish, planned

from ablate.core.plan import STUDY_FILE, read_plan
from ablate.core.records import read_record
from ablate.core.trial import AGAIN, MAX_SEEDS, STUDY
from blocks import UsageError


@pytest.fixture
def directory(shapes: str, tmp_path: Path) -> Path:
    plan, ledger = planned(tmp_path, shapes, seeds=2)
    finish(plan, ledger)
    return ledger.directory


def changed(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / STUDY_FILE
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_a_plan_is_what_it_was(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, seeds=2)
    again = read_plan(ledger.directory)
    assert again == plan
    assert list(again.costs) == list(plan.costs)  # in the grid's order
    assert [t.replicate for t in again.of_cell("baseline again")] == [AGAIN, AGAIN]
    assert [t.stream for t in again.of_cell("baseline again")] == [MAX_SEEDS, MAX_SEEDS + 1]


def test_plans_without_replicates_are_read(directory: Path) -> None:
    def as_before(data: dict[str, Any]) -> None:
        del data["decides"]
        for trial in data["trials"]:
            trial["seed"] += MAX_SEEDS * trial.pop("replicate")

    plan = read_plan(directory)
    changed(directory, as_before)
    assert read_plan(directory) == plan
    assert {t.replicate for t in plan.trials} == {STUDY, AGAIN}


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: data.update(seeds="three"), "seeds: input should be a valid integer"),
    (lambda data: data.update(seeds=True), "seeds: input should be a valid integer"),
    (lambda data: data.update(trials={}), "trials: input should be a valid array"),
    (lambda data: data.update(trials=[5]), "trials.0: "),
    (lambda data: data["trials"][0].update(stages=[{}]), "trials.0.stages.0.name: field required"),
    (lambda data: data["trials"][0]["stages"][0]["recipe"].update(stpes=3), "mean 'steps'"),
    (lambda data: data["trials"][0]["stages"][0]["recipe"].update(lr=[]), "lr"),
    (lambda data: data["trials"][0]["cell"].update(image=3), "trials.0.cell"),
    (lambda data: data["trials"][0]["cell"]["image"].update(nrom="x"), "image.norm"),
    (lambda data: data.pop("contrasts"), "contrasts: field required"),
    (lambda data: data["contrasts"][0].update(pairs=[["a"]]), "contrasts.0.pairs.0"),
    (lambda data: data["costs"].update(baseline={"parameters": "many"}), "costs.baseline"),
    (lambda data: data.update(decides="beauty"), "no metric to decide by named 'beauty'"),
    (lambda data: data.update(noise=[]), "noise"),
    (lambda data: data.update(factorial={"grr": 5}), "factorial.grr"),
])  # fmt: skip
def test_a_plan_of_other_types_is_refused_in_a_sentence(
    change: Callable[[dict[str, Any]], Any], words: str, directory: Path
) -> None:
    changed(directory, change)
    with pytest.raises(UsageError, match="was written by another version") as raised:
        read_plan(directory)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [
    b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"grid": NaN}',
])  # fmt: skip
def test_what_is_no_plan_is_refused(content: bytes, directory: Path) -> None:
    (directory / STUDY_FILE).write_bytes(content)
    with pytest.raises(UsageError):
        read_plan(directory)


@pytest.mark.parametrize("change", [
    {"metrics": []}, {"metrics": {"test/coca": "good"}}, {"metrics": {"test/coca": True}},
    {"metrics": {"test/coca": None}}, {"key": 5}, {"metrics": {}},
])  # fmt: skip
def test_a_record_of_other_types_is_none(
    change: dict[str, Any], shapes: str, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=1)
    finish(plan, ledger)
    trial = plan.trials[0]
    path = ledger.folder(trial) / "result.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert read_record(ledger.folder(trial), trial.stages[0]) == record
    path.write_text(json.dumps({**record, **change}), encoding="utf-8")
    assert read_record(ledger.folder(trial), trial.stages[0]) is None
