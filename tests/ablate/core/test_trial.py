"""A trial's key covers the code that its numbers depend on, and no more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ablate.core.trial import NOT_FOLLOWED, ROOTS, code_hash
from blocks import source

ROOT = Path(__file__).parents[3]
PACKAGES = ("ablate", "assemblies", "blocks")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with a copy of our packages."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("embedded", "__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    return tmp_path


def hash_of(folder: Path) -> str:
    return source.code_hash(ROOTS, dict.fromkeys(PACKAGES, folder), NOT_FOLLOWED)


def test_a_copy_has_the_same_hash(copy: Path) -> None:
    assert hash_of(copy) == code_hash()


@pytest.mark.parametrize(("file", "old", "new"), [
    ("ablate/training/train.py", "self.optimizer.step()", "self.optimizer.step() or 0"),
    ("ablate/training/optim.py", "math.cos(", "math.sin("),
    ("ablate/training/evaluate.py", "recipe.contrastive_weight *", "2 *"),
    ("ablate/data/batches.py", "LENGTH_MULTIPLE = ", "LENGTH_MULTIPLE = 2 * "),
    ("ablate/core/recipe.py", "recipe.caption_weight if cell.captions", "1.0 if cell.captions"),
    ("ablate/core/metrics.py", 'SELECTION = "coca"', 'SELECTION = "caption"'),
    ("assemblies/losses.py", "def _infonce(", "def _infonce(  # changed\n    *extra: int,\n"),
    ("assemblies/layer.py", "class Layer(", "class Layer(object, "),
    ("blocks/projections.py", "return", "print()\n    return"),
])  # fmt: skip
def test_code_that_computes_is_in_the_key(file: str, old: str, new: str, copy: Path) -> None:
    text = (copy / file).read_text(encoding="utf-8")
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert hash_of(copy) != code_hash()


@pytest.mark.parametrize(("file", "added"), [
    ("blocks/norms.py", "class Another(nn.Module):\n    pass"),
    ("ablate/training/train.py", "# a comment, and what nothing uses\ndef unused(): ..."),
    ("ablate/data/formats.py", "def another_format(): ..."),
    ("ablate/report/render.py", "def another_page(): ..."),
    ("ablate/core/recipe.py", "ANOTHER = Recipe(steps=7)"),
    ("assemblies/interop.py", "def another_checkpoint(): ..."),
])  # fmt: skip
def test_other_code_is_not(file: str, added: str, copy: Path) -> None:
    with (copy / file).open("a", encoding="utf-8") as module:
        module.write(f"\n\n{added}\n")
    assert hash_of(copy) == code_hash()
