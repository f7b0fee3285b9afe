from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from samples import small

from ablate.core.recipe import Recipe, with_fields
from ablate.core.trial import Trial, make_trial
from ablate.data import open_pairs
from ablate.driver.progress import JsonLines, Lines, LiveTable, Progress, make_progress
from blocks import default_registry

REGISTRY = default_registry()
RESULT = {"test/coca": 12.345, "test/perplexity": 80.0, "train_seconds": 30.0}


@pytest.fixture(scope="module")
def trials(shapes: str) -> list[Trial]:
    recipe = with_fields(Recipe(), {"data": shapes, "steps": 10, "batch": 16})
    fingerprint = open_pairs(shapes, 32).fingerprint
    return [
        make_trial(cell, small(cell), recipe, seed, fingerprint, REGISTRY)
        for seed in range(2)
        for cell in ("baseline", "grr")
    ]


def printed(width: int = 100, terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=width, force_terminal=terminal, color_system=None), text


def drawn(table: LiveTable) -> str:
    console, text = printed()
    console.print(table.drawn())
    return text.getvalue()


def test_lines_say_how_each_trial_ended(trials: list[Trial]) -> None:
    console, text = printed()
    with make_progress(trials[1:], {trials[0]: RESULT}, console, "auto") as shown:
        assert isinstance(shown, Lines)
        shown.started(trials[1])
        shown.measured(trials[1], {"step": 5.0, "val/coca": 13.0})
        shown.finished(trials[1], RESULT)
        shown.failed(trials[2], "Traceback\n[bold]DivergedError: loss nan[/bold]\n")
    first, second = text.getvalue().splitlines()
    assert first.startswith("[2/4] grr seed 0: perplexity 80, CoCa loss 12.35 (30 s), ")
    assert first.endswith(" left")
    assert second.startswith("[3/4] baseline seed 1: FAILED: [bold]DivergedError: loss nan[/bold]")


def test_the_table_has_a_cell_and_a_seed_for_each_trial(trials: list[Trial]) -> None:
    console, text = printed(terminal=True)
    table = make_progress(trials[1:], {trials[0]: RESULT}, console, "auto")
    assert isinstance(table, LiveTable)
    table.started(trials[1])
    table.measured(trials[1], {"step": 5.0, "val/coca": 13.0})
    with table:
        table.failed(trials[2], "Traceback\nDivergedError: loss nan\n")
    assert "baseline seed 1 FAILED: DivergedError: loss nan" in text.getvalue()
    header, baseline, grr, footer = drawn(table).splitlines()
    assert header.split() == ["CoCa", "loss", "seed", "0", "seed", "1"]
    assert baseline.split() == ["baseline", "12.345", "failed"]
    assert grr.split() == ["grr", "50%", "."]
    assert footer.startswith("[2/4] trials, 1 running, 1 failed, best validation 13.000 (grr seed")


def test_many_seeds_become_a_count_and_a_mean(trials: list[Trial]) -> None:
    from dataclasses import replace

    many = [replace(trials[0], seed=seed) for seed in range(20)]
    console, _ = printed(terminal=True)
    table = LiveTable(many[2:], {many[0]: RESULT, many[1]: {"test/coca": 12.445}}, console)
    header, row, _ = drawn(table).splitlines()
    assert header.split() == ["CoCa", "loss", "done", "mean"]
    assert row.split() == ["baseline", "2/20", "12.395"]


def test_json_is_an_object_a_line(trials: list[Trial], capsys: pytest.CaptureFixture[str]) -> None:
    console, text = printed()
    with make_progress(trials, {}, console, "json") as shown:
        assert isinstance(shown, JsonLines)
        shown.started(trials[0])
        shown.measured(trials[0], {"step": 5.0})
        shown.finished(trials[0], RESULT)
        shown.failed(trials[1], "no")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["started", "measured", "finished", "failed"]
    assert lines[2]["metrics"] == RESULT
    assert lines[3]["reason"] == "no"
    assert (lines[0]["cell"], lines[0]["seed"]) == ("baseline", 0)
    assert text.getvalue() == ""


def test_quiet_says_nothing(trials: list[Trial], capsys: pytest.CaptureFixture[str]) -> None:
    console, text = printed(terminal=True)
    with make_progress(trials, {}, console, "quiet") as shown:
        assert type(shown) is Progress
        shown.started(trials[0])
        shown.failed(trials[0], "no")
    assert text.getvalue() + capsys.readouterr().out == ""
    assert shown.ended == "[1/4]"


def test_the_time_left_counts_only_steps_of_this_run(trials: list[Trial]) -> None:
    console, _ = printed()
    shown = Lines(trials[:2], {}, console)
    assert shown.seconds_left() is None
    shown.measured(trials[0], {"step": 8.0})  # resumed there
    assert shown.seconds_left() is None
    shown.measured(trials[0], {"step": 10.0})
    shown.began -= 100
    assert shown.seconds_left() == pytest.approx(500, rel=0.01)  # 2 steps took 100 s, 10 are left
