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


@pytest.mark.parametrize("package", ["blocks", "assemblies"])
def test_importing_the_library_stays_light(package: str) -> None:
    code = f"import {package}, json, sys; print(json.dumps(sorted(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"ray", "mlflow", "pandas", "optuna", "xformers", "scipy", "matplotlib"}
    assert not heavy & set(json.loads(shown.stdout))
    assert shown.stderr == ""


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
