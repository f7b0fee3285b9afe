"""The shape of the project, as tests: who may import whom, and what the docs mention."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ablate.core.grids import GRIDS
from blocks import default_registry

ROOT = Path(__file__).parents[1]
OURS = ("blocks", "assemblies", "ablate", "plugins")
ALLOWED = {
    "blocks": {"blocks"},
    "assemblies": {"assemblies", "blocks"},
    "ablate": {"ablate", "assemblies", "blocks"},
    "plugins": {"blocks"},
}
ONLY_IMPORTER = {
    "ray": {f"ablate/execution/{name}.py" for name in ("ray_cluster", "tune_runner", "ray_worker")},
    "mlflow": {"ablate/tracking/mlflow_store.py", "ablate/tracking/mlflow_batches.py"},
    "optuna": {f"ablate/search/{name}.py" for name in ("engine", "blocks", "recipes", "space")},
}
# The rooms of ablate, storey by storey: a room may import those of lower storeys, and of its own
# storey what `NEIGHBOURS` names. Above them are only `__init__`, `__main__`, `run`, `interface`.
STOREYS = (
    {"core"},
    {"data", "stats"},
    {"training", "analysis", "search"},
    {"planning", "execution", "figures", "report", "tracking"},
    {"driver"},
    {"cli"},
)
NEIGHBOURS = {("report", "figures")}
MOST_LINES_OF_A_ROOM = 2200
FILES = sorted(p for name in OURS for p in (ROOT / name).rglob("*.py") if "build" not in p.parts)


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT)
    package = relative.parts[0]
    found = imports(path)
    assert found & set(OURS) <= ALLOWED[package]
    for library, importers in ONLY_IMPORTER.items():
        assert library not in found or str(relative) in importers, f"{relative} imports {library}"
    if package == "blocks":
        third_party = found - set(sys.stdlib_module_names) - set(OURS)
        allowed = {"torch", "pluggy", "xformers"}
        assert third_party <= (allowed | {"pytest"} if path.name == "testing.py" else allowed)


def rooms_imported(path: Path) -> set[str]:
    """Return the rooms of ablate that a file imports from."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    return {name.split(".")[1] for name in names if name.startswith("ablate.")}


def against_the_order(room: str, imported: set[str]) -> set[str]:
    """Return the rooms that a room must not import from, of those that it does."""
    storey = {name: number for number, names in enumerate(STOREYS) for name in names}
    return {
        other
        for other in imported - {room}
        if storey[other] >= storey[room] and (room, other) not in NEIGHBOURS
    }


ROOMS = sorted(path.parent.name for path in ROOT.glob("ablate/*/__init__.py"))


def test_every_room_has_a_storey() -> None:
    assert sorted(room for storey in STOREYS for room in storey) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_downwards(room: str) -> None:
    for path in (ROOT / "ablate" / room).rglob("*.py"):
        wrong = against_the_order(room, rooms_imported(path))
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_an_import_against_the_order_is_found(tmp_path: Path) -> None:
    planted = tmp_path / "effects.py"
    source = (ROOT / "ablate/stats/effects.py").read_text(encoding="utf-8")
    planted.write_text(f"{source}\nfrom ablate.report.build import write_report\n")
    assert against_the_order("stats", rooms_imported(planted)) == {"report"}
    assert against_the_order("figures", {"report"}) == {"report"}
    assert against_the_order("report", {"figures", "core"}) == set()


def modules_imported(path: Path) -> set[str]:
    """Return the modules of ablate that a file imports from, as dotted names."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        f"{node.module}.{alias.name}"
        if (ROOT / node.module.replace(".", "/") / f"{alias.name}.py").exists()
        else node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ablate.")
        for alias in node.names
    }


def test_modules_import_in_no_circle() -> None:
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in ROOT.glob("ablate/*/*.py")
    }
    arrows = {name: modules_imported(path) & files.keys() for name, path in files.items()}
    while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"circles among {', '.join(sorted(arrows))}"


WORDS_OF_STATISTICS = {
    # Types, constants and words that say what a number is; none of them computes one.
    "ALPHA", "Attribution", "EXACT_PAIRS", "EXPLORATORY", "Effect", "FEWEST_SEEDS", "FUTILE",
    "FUTILE_PRIMARY", "FUTILE_WORD", "IMPROVEMENTS", "Look", "Part", "DecisionRule", "Race",
    "smallest_p", "spent", "verdict_is_clear",
}  # fmt: skip


@pytest.mark.parametrize("room", ["figures", "report"])
def test_figures_and_reports_draw_from_the_results_alone(room: str) -> None:
    for path in (ROOT / "ablate" / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            names = {alias.name for alias in node.names}
            if node.module.startswith("ablate.stats"):
                assert names <= WORDS_OF_STATISTICS, path
            assert node.module != "scipy" or "stats" not in names, path
            assert room == "report" or "stage_losses" not in names, path


def test_rooms_stay_small() -> None:
    lines = {
        room: sum(
            len(path.read_text(encoding="utf-8").splitlines())
            for path in (ROOT / "ablate" / room).rglob("*.py")
        )
        for room in ROOMS
    }
    assert {room: n for room, n in lines.items() if n > MOST_LINES_OF_A_ROOM} == {}


def test_tests_mirror_the_rooms() -> None:
    assert sorted(path.name for path in (ROOT / "tests/ablate").iterdir() if path.is_dir()
                  and not path.name.startswith("__")) == ROOMS  # fmt: skip


@pytest.mark.parametrize("package", ["blocks", "assemblies"])
def test_importing_the_library_stays_light(package: str) -> None:
    code = f"import {package}, json, sys; print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"ray", "mlflow", "pandas", "optuna", "xformers", "scipy", "matplotlib"}
    assert not heavy & set(json.loads(shown.stdout))
    assert shown.stderr == ""


# Participles as names say what was done to a value, not what it is.
SAYS_NOTHING = {"found", "every", "left", "known", "own", "given", "wanted", "shown", "made"}


@pytest.mark.parametrize("room", ROOMS)
def test_variables_say_what_they_hold(room: str) -> None:
    for path in (ROOT / "ablate" / room).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        arguments = {n.arg for n in nodes if isinstance(n, ast.arg)}
        assert not (stored | arguments) & SAYS_NOTHING, path


def test_files_stay_short() -> None:
    assert {str(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 400} == {}


def test_docs_mention_every_block_hook_and_grid() -> None:
    text = "".join(
        p.read_text(encoding="utf-8") for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    )
    blocks = {f"{spec.kind}/{spec.name}" for spec in default_registry()}
    for name in (*blocks, "register_blocks", *(f"--grid {grid}" for grid in GRIDS)):
        assert name in text, f"no document mentions {name}"


def test_test_folders_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
