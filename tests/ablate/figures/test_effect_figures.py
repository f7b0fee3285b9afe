from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from studies import HOSTILE, finish, planned, write_result

from ablate.analysis.cells import comparable
from ablate.analysis.losses import stage_losses
from ablate.analysis.results import StudyResults, make_results
from ablate.core.ledger import Ledger
from ablate.core.metrics import FINETUNED, compared
from ablate.core.plan import Plan
from ablate.figures import cell_figures
from ablate.figures import effect_figures as figures
from ablate.figures.catalogue import draw_figures
from ablate.figures.style import INK, INKS, MUTED, ZONE, save
from ablate.planning.planner import StudyOptions
from ablate.stats.effects import DecisionRule, effect, improvements
from ablate.stats.tests_and_intervals import t_interval

Made = tuple[Plan, Ledger, StudyResults]


def keys() -> list[str]:
    return [metric.key for metric in compared()]


@pytest.fixture(scope="module")
def full(shapes: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    plan, ledger = planned(tmp_path_factory.mktemp("full"), shapes)
    finish(plan, ledger)
    return plan, ledger, make_results(plan, ledger)


def line(panel: Axes, label: str) -> np.ndarray:
    (found,) = [one for one in panel.lines if one.get_label() == label]
    return np.asarray(found.get_xydata())


def texts(panel: Axes) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_forest_shows_every_effect_with_its_interval(full: Made) -> None:
    plan, _, found = full
    drawing = figures.forest(plan, found)
    assert [panel.get_title("left") for panel in drawing.axes] == [
        "contrastive loss", "perplexity", "CoCa loss (decides)",
    ]  # fmt: skip
    names = [label.get_text() for label in drawing.axes[0].get_yticklabels()]
    assert names[0] == "baseline -> grr (primary)"
    assert names[-1] == "baseline -> baseline again (A/A)"
    assert len(names) == len(plan.contrasts) + 1
    for panel, metric in zip(drawing.axes, keys(), strict=True):
        own = [e for e in (*found.effects, *found.noise) if e.metric == metric]
        ends = {tuple(one.get_xdata()) for one in panel.lines if len(one.get_xdata()) == 2}
        low, high = panel.get_xlim()
        for e in own:
            if low < e.low and e.high < high:
                assert (e.low, e.high) in ends, e.contrast
        (zone,) = [p for p in panel.patches if to_hex(p.get_facecolor()) == ZONE]
        assert zone.get_extents().width > 0
        assert (zone.get_x(), zone.get_width()) == (-plan.smallest_effect, 2 * plan.smallest_effect)
    primary = found.of("baseline -> grr")
    assert texts(drawing.axes[-1])[0] == primary.verdict == "improved"


def test_forest_marks_verdicts_by_shape_and_noise_in_grey(full: Made) -> None:
    plan, _, found = full
    panel = figures.forest(plan, found).axes[-1]
    marks = {one.get_ydata()[0]: one for one in panel.lines if one.get_marker() in "osD"}
    names = [label.get_text() for label in figures.forest(plan, found).axes[0].get_yticklabels()]
    assert to_hex(marks[len(names) - 1].get_markeredgecolor()) == MUTED
    for e in (e for e in found.effects if e.metric == "coca"):
        row = next(i for i, name in enumerate(names) if name.startswith(e.contrast))
        if row < len(names) - 1:
            filled = marks[row].get_markerfacecolor() == marks[row].get_markeredgecolor()
            assert filled == (e.verdict != "inconclusive")
            assert (marks[row].get_marker() == "s") == (e.verdict == "equivalent")


def test_intervals_that_leave_the_panel_have_an_arrow(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=2)
    finish(plan, ledger, noise=3.0)
    found = make_results(plan, ledger)
    main = found.of("baseline -> grr")
    panel = figures.forest(plan, found).axes[-1]
    low, high = panel.get_xlim()
    beyond = int(main.low < low) + int(main.high > high)
    assert beyond > 0
    assert sum(one.get_marker() in ("<", ">") for one in panel.lines) == beyond


def test_slopes_have_a_line_per_seed(full: Made) -> None:
    plan, ledger, _ = full
    losses = stage_losses(plan, ledger)
    for panel, metric in zip(
        figures.slopes(plan, make_results(plan, ledger)).axes, keys(), strict=True
    ):
        for seed in range(plan.seeds):
            expected = [losses[metric][cell, seed] for cell in ("baseline", "grr")]
            assert line(panel, f"seed {seed}")[:, 1].tolist() == expected
        assert panel.get_xlabel() == "lower in 6 of 6 seeds"
        assert line(panel, "mean")[1, 1] == pytest.approx(
            np.mean([losses[metric]["grr", seed] for seed in range(6)])
        )


def test_shapley_bars_lead_from_nothing_to_the_whole(full: Made) -> None:
    _, _, found = full
    for panel, metric in zip(figures.shapley(found).axes, keys(), strict=True):
        attribution = found.attributions[metric]
        bars = panel.patches
        assert len(bars) == len(attribution.shapley) + 1
        ends = 0.0
        for bar, part in zip(bars, attribution.shapley, strict=False):
            assert min(bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx(
                min(ends, ends + part.estimate)
            )
            intervals = [tuple(one.get_xdata()) for one in panel.lines]
            assert (ends + part.low, ends + part.high) in intervals
            ends += part.estimate
        assert ends == pytest.approx(attribution.gain.estimate)
        assert bars[-1].get_width() == pytest.approx(attribution.gain.estimate)
        assert f"{attribution.gain.estimate:+.2f}" in texts(panel)


def test_interactions_are_parallel_where_swaps_add_up(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, seeds=3)
    finish(plan, ledger, noise=0.0)
    drawing = figures.interactions(plan, make_results(plan, ledger))
    assert len(drawing.axes) == 3
    for panel in drawing.axes:
        other = texts(panel)[0].removeprefix("without ")
        added = line(panel, "if they added up")[:, 1]
        assert line(panel, f"with {other}")[:, 1] == pytest.approx(added, abs=1e-6)
    first = drawing.axes[0]  # geglu, with and without rmsnorm, over both settings of rope
    assert line(first, "without rmsnorm")[:, 1] == pytest.approx([0.25, 4.25])
    assert line(first, "with rmsnorm")[:, 1] == pytest.approx([0.05, 4.05])


def test_after_interim_looks_figures_have_the_seeds_and_intervals_of_the_tables(
    shapes: str, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path, shapes, declared=StudyOptions(looks=(3, 5, 8)))
    finish(plan, ledger, but=[trial for trial in plan.trials if trial.seed == 7])
    results = make_results(plan, ledger)
    whole = results.attributions["coca"]
    assert whole.seeds == tuple(range(5))  # of seven that are there
    panel = figures.interactions(plan, results).axes[0]
    swaps, other = ("geglu", "rmsnorm"), "rmsnorm"
    for present in ((True, False), (True, True)):
        setting = next(s for s in whole.settings if (s.swaps, s.present) == (swaps, present))
        words = f"{'with' if present[1] else 'without'} {other}"
        assert line(panel, words)[1, 1] == setting.gain.estimate
        ends = [one.get_ydata() for one in panel.lines if len(one.get_ydata()) == 2]
        assert any(list(y) == [setting.gain.low, setting.gain.high] for y in ends)
    effect_of_primary = results.of("baseline -> grr")
    assert effect_of_primary is not None
    assert effect_of_primary.seeds == tuple(range(5))
    seeds = {one.get_label() for one in figures.slopes(plan, results).axes[0].lines}
    assert seeds == {"mean", *(f"seed {seed}" for seed in range(5))}


def test_curves_show_means_over_seeds_and_paired_improvements(full: Made) -> None:
    plan, ledger, _ = full
    drawing = cell_figures.curves(plan, make_results(plan, ledger))
    upper, lower = drawing.axes[2], drawing.axes[5]
    values = [ledger.curve(t)[-1]["val/coca"] for t in plan.of_cell("grr")]
    assert line(upper, "grr")[-1].tolist() == pytest.approx([20, np.mean(values)])
    primary = next(c for c in plan.contrasts if c.primary)
    losses = {(t.name, t.seed): ledger.curve(t)[-1]["val/coca"] for t in plan.trials}
    expected = effect(primary, "coca", losses, rule=DecisionRule()).estimate
    assert line(lower, "grr")[-1].tolist() == pytest.approx([20, expected])
    assert len(upper.collections) == 2  # bands of the primary's two cells only
    assert len(lower.collections) == 1
    assert sorted(texts(lower)) == sorted(plan.costs)


def test_labels_stand_apart_and_in_order() -> None:
    moved = cell_figures.spread([0.0, 0.01, 0.02, 1.0], 0.1)
    assert np.diff(moved).min() >= 0.1 - 1e-9
    assert np.mean(moved[:3]) == pytest.approx(0.01)
    assert moved[3] == 1.0


def test_cost_has_every_cell_with_its_interval(full: Made) -> None:
    plan, ledger, _ = full
    drawing = cell_figures.cost_against_quality(plan, make_results(plan, ledger))
    left, right = drawing.axes
    ranked = [text.partition("  ")[2] for text in texts(right) if "  " in text]
    means = {
        cell: np.mean([ledger.metrics(t)["test/coca"] for t in plan.of_cell(cell)])
        for cell in plan.costs
    }
    assert ranked == sorted(means, key=means.__getitem__)
    losses = np.array([ledger.metrics(t)["test/coca"] for t in plan.of_cell("grr")])
    for panel in (left, right):
        intervals = [tuple(one.get_ydata()) for one in panel.lines if len(one.get_ydata()) == 2]
        assert t_interval(losses) in intervals
    places = sorted(one.get_xdata()[0] for one in left.lines if len(one.get_xdata()) == 1)
    assert len(places) == len(plan.costs)
    assert np.diff(places).min() > 0
    assert note_of(drawing) == ""


def note_of(drawing: Figure) -> str:
    return drawing.get_supxlabel()


def middles(panel: Axes) -> dict[str, float]:
    """Return where the cost figure's points stand, by the cells' numbers."""
    points = [one for one in panel.lines if len(one.get_xdata()) == 1]
    return {str(i): float(one.get_ydata()[0]) for i, one in enumerate(points, start=1)}


def test_a_cell_with_fewer_seeds_stands_by_its_ratio_to_the_reference(
    shapes: str, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path, shapes, seeds=6)
    dropped = "baseline+rmsnorm"  # worse than baseline, and on easy seeds only
    finish(plan, ledger, noise=0.01, but=[t for t in plan.of_cell(dropped) if t.seed > 2])
    for trial in (trial for trial in plan.trials if trial.seed > 2 and trial.name != dropped):
        hard = (ledger.metrics(trial) or {})["test/coca"] * 1.2
        write_result(plan, ledger, trial, trial.stages[0], 0.01, **{"test/coca": hard})
    losses = stage_losses(plan, ledger)["coca"]
    drawing = cell_figures.cost_against_quality(plan, make_results(plan, ledger))
    ranked = [text.partition("  ")[2] for text in texts(drawing.axes[1]) if "  " in text]
    wanted = ("grr", "baseline+rope", "baseline", dropped, "original")
    assert [cell for cell in ranked if cell in wanted] == list(wanted)
    base = [losses["baseline", seed] for seed in range(6)]
    ratios = [losses[dropped, seed] / losses["baseline", seed] for seed in range(3)]
    places = middles(drawing.axes[0])
    assert places[str(1 + ranked.index(dropped))] == pytest.approx(np.mean(base) * np.mean(ratios))
    assert places[str(1 + ranked.index("baseline"))] == pytest.approx(np.mean(base))
    assert note_of(drawing).startswith(
        "Cells do not have the same seeds. Each stands at baseline's"
    )


def test_a_cell_without_a_seed_of_the_reference_is_named_and_not_placed(
    shapes: str, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="swaps", seeds=2)
    failed = [t for t in plan.trials if t.seed == (0 if t.name == "grr" else 1)]
    finish(plan, ledger, but=failed)
    drawing = cell_figures.cost_against_quality(plan, make_results(plan, ledger))
    assert not any("grr" in text for text in texts(drawing.axes[1]))
    assert note_of(drawing).endswith("Without a seed of baseline, and not shown: grr.")


def test_cells_of_the_same_seeds_stand_at_their_means_without_the_reference() -> None:
    losses = {"a": {0: 3.0, 1: 5.0}, "b": {0: 2.0, 1: 4.0}}
    placed = comparable(losses, "none of them")
    assert {cell: own.tolist() for cell, own in placed.items()} == {"a": [3, 5], "b": [2, 4]}
    assert comparable({**losses, "b": {0: 2.0}}, "none of them") == {}


def test_figures_without_data_are_left_out_and_old_ones_removed(
    shapes: str, tmp_path: Path
) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3)
    (tmp_path / "shapley.png").write_bytes(b"of another day")
    assert draw_figures(plan, ledger.directory, make_results(plan, ledger)) == []
    assert not (tmp_path / "shapley.png").exists()
    finish(plan, ledger)
    drawn = draw_figures(plan, ledger.directory, make_results(plan, ledger))
    assert {path.stem for path in drawn} == {"effects", "slopes", "curves", "cost"}
    assert {path.suffix for path in drawn} == {".png", ".svg"}


def test_finetunings_have_a_forest_of_their_own(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3, sources=(shapes,))
    finish(plan, ledger)
    found = make_results(plan, ledger)
    drawn = {path.name for path in draw_figures(plan, ledger.directory, found)}
    assert "effects-finetuned.svg" in drawn
    panel = figures.forest(plan, found, FINETUNED).axes[-1]
    mean = found.of("baseline -> grr", FINETUNED + "coca").estimate
    assert mean in [one.get_xdata()[0] for one in panel.lines]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_draw_without_intervals(seeds: int, shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, seeds=seeds)
    finish(plan, ledger)
    found = make_results(plan, ledger)
    assert len(draw_figures(plan, ledger.directory, found)) == 12
    if seeds == 1:
        assert not math.isfinite(found.effects[0].low)


def test_losses_that_are_no_numbers_are_left_out(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=3)
    finish(plan, ledger)
    bad = plan.of_cell("grr")[1]
    broken = {f"test/{m}": math.nan for m in keys()}
    write_result(plan, ledger, bad, bad.stages[0], 0.3, **broken)
    found = make_results(plan, ledger)
    assert len(draw_figures(plan, ledger.directory, found)) == 8
    labels = {
        one.get_label() for one in figures.slopes(plan, make_results(plan, ledger)).axes[2].lines
    }
    assert labels == {"seed 0", "seed 2", "mean"}


def test_a_metric_without_a_number_has_no_panel(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="full", seeds=2)
    for trial in plan.trials:
        broken = {"test/coca": math.nan, "test/perplexity": math.nan}
        write_result(plan, ledger, trial, trial.stages[0], 0.3, **broken)
    found = make_results(plan, ledger)
    assert {path.stem for path in draw_figures(plan, ledger.directory, found)} == {
        "effects", "slopes", "curves",
    }  # fmt: skip
    for drawing in (figures.forest(plan, found), figures.slopes(plan, make_results(plan, ledger))):
        assert [panel.get_title("left") for panel in drawing.axes] == ["contrastive loss"]


@pytest.mark.slow
def test_drawings_are_reproducible_and_in_our_inks_only(full: Made, tmp_path: Path) -> None:
    plan, ledger, found = full
    first = {p.name: p.read_bytes() for p in draw_figures(plan, ledger.directory, found)}
    again = {p.name: p.read_bytes() for p in draw_figures(plan, ledger.directory, found)}
    assert first == again
    inks = {light for light, _ in INKS.values()}
    for name, content in first.items():
        if name.endswith(".svg"):
            assert set(re.findall(r"#[0-9a-f]{6}\b", content.decode())) <= inks, name
            assert "<text" in content.decode()


def test_hostile_names_are_drawn_as_they_are(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, seeds=3, rename={"baseline+rope": HOSTILE})
    finish(plan, ledger)
    content = save(
        cell_figures.curves(plan, make_results(plan, ledger)), tmp_path / "a.svg"
    ).read_text("utf-8")
    words = [
        "".join(text.itertext()) for text in ET.fromstring(content).iter() if "text" in text.tag
    ]
    assert HOSTILE in words


def test_inks_are_told_apart_in_light_and_dark() -> None:
    lights, darks = zip(*INKS.values(), strict=True)
    assert len(set(lights)) == len(INKS) == len(set(darks))
    for i, papers in enumerate((lights, darks)):
        for name in ("ink", "muted", "improved", "worse", "candidate"):
            assert contrast(INKS[name][i], papers[0]) >= 4.5, name
            assert contrast(INKS[name][i], INKS["zone"][i]) >= 4.5, name
        for name in (n for n in INKS if n.startswith("series")):
            assert contrast(INKS[name][i], papers[0]) >= 3, name


def contrast(a: str, b: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2)."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_the_reference_and_the_candidate_keep_their_inks(full: Made) -> None:
    plan, ledger, _ = full
    panel = cell_figures.curves(plan, make_results(plan, ledger)).axes[0]
    inks = {one.get_label(): to_hex(one.get_color()) for one in panel.lines}
    assert inks["baseline"] == INK
    assert list(inks.values()).count(INKS["candidate"][0]) == 1
    assert improvements(plan.primary, stage_losses(plan, ledger)["coca"])


def test_curves_of_a_study_that_stopped_before_two_cells_met(shapes: str, tmp_path: Path) -> None:
    plan, ledger = planned(tmp_path, shapes, grid="paper", seeds=1)
    finish(plan, ledger, but=[trial for trial in plan.trials if trial.name == "grr"])
    drawing = cell_figures.curves(plan, make_results(plan, ledger))
    assert drawing is not None
    upper, lower = drawing.axes[0], drawing.axes[3]
    assert len(upper.lines) == 1  # baseline's
    assert len(lower.lines) == 1  # zero: nothing to compare with yet
