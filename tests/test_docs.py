"""The documents' commands and files, run as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(document: str) -> list[tuple[str, str]]:
    return FENCE.findall((ROOT / document).read_text(encoding="utf-8"))


def shell(script: str, cwd: Path, environment: dict[str, str]) -> None:
    """Run a script in which python and pip are this environment's."""
    own = f'set -e; python() {{ "{sys.executable}" "$@"; }}\n'
    own += 'pip() { python -m pip "$@" --quiet --no-deps --target "$PYTHONPATH"; }\n'
    done = subprocess.run(
        ["bash", "-c", own + script], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.ray
def test_every_block_of_the_plugin_guide_runs(tmp_path: Path) -> None:
    site = tmp_path / "site"  # what the guide installs must not stay in this environment
    environment = {**os.environ, "PYTHONPATH": str(site)}
    kinds = set()
    for kind, text in fences("docs/plugins.md"):
        kinds.add(kind)
        if kind == "sh":
            shell(text, tmp_path, environment)
        elif kind == "python":
            first, _, _ = text.partition("\n")
            (tmp_path / first.removeprefix("# ")).write_text(text)
        else:
            assert kind == "toml"
            assert text in (tmp_path / "my_norm/pyproject.toml").read_text()
    assert kinds == {"sh", "python", "toml"}
    shell("python -m pytest my_norm/test_contract_of_my_norm.py", tmp_path, environment)


def test_the_readmes_plugin_is_under_20_lines_and_registers(tmp_path: Path) -> None:
    (code,) = (text for kind, text in fences("README.md") if kind == "python")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) < 20
    file = tmp_path / "my_norm.py"
    file.write_text(code)
    command = [sys.executable, "-m", "blocks", "check", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "norm/dyt" in done.stdout


def test_commands_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake (\w+)", text))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_documents_link_to_files_that_exist() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
