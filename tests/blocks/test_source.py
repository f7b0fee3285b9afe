"""A block's hash covers the block and all of its own distribution that it reaches, nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from blocks import load_registry, source

ROOT = Path(__file__).parents[2]
NORM = """
import torch
from torch import nn
import my_ops
from my_ops import centred
from blocks import BlockSpec, hookimpl, linear

class Base(nn.Module):
    def scale(self, x):
        return my_ops.scaled(x)

class MyNorm(Base):
    \"\"\"A norm.\"\"\"

    def __init__(self, site):
        super().__init__()

    def forward(self, x: "my_ops.unused"):
        import deep.inner
        return deep.inner.last(centred(self.scale(x)))  # a comment

@hookimpl
def register_blocks():
    return [BlockSpec(kind="norm", name="mine", factory=MyNorm, summary="s", source="here")]
"""
OPS = """
from shared import FACTOR

def decorator(function):
    return function

@decorator
def centred(x):
    return x - x.mean()

def scaled(x):
    return FACTOR * optional.faster(x)

try:
    import optional
except ImportError:
    optional = None

def unused(x):
    return x
"""
FILES = {
    "my_norm.py": NORM,
    "my_ops.py": OPS,
    "shared.py": "FACTOR = 2.0\n\n\nOTHER = 3.0\n",
    "optional.py": "def faster(x):\n    return x\n",
    "deep/__init__.py": "",
    "deep/inner.py": "def last(x):\n    return x\n",
}


def write(folder: Path, **changes: tuple[str, str]) -> Path:
    """Write the plugin with a text replaced in some files, named by their stems."""
    for name, text in FILES.items():
        old, new = changes.get(Path(name).stem, ("", ""))
        assert old in text
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace(old, new) if old else text)
    return folder / "my_norm.py"


def hash_of(folder: Path, **changes: tuple[str, str]) -> str:
    file = write(folder, **changes)
    return source.definition_hash(f"{source.FROM_FILE}my_norm_1", file, "MyNorm")


@pytest.mark.parametrize("changes", [
    {"my_norm": ("centred(self.scale(x))", "self.scale(centred(x))")},
    {"my_norm": ("my_ops.scaled(x)", "-my_ops.scaled(x)")},
    {"my_ops": ("x - x.mean()", "x - x.max()")},
    {"my_ops": ("return FACTOR *", "return -FACTOR *")},
    {"my_ops": ("    return function", "    return lambda x: function(x) + 1")},
    {"my_ops": ("from shared import FACTOR", "import torch\ntorch.set_flush_denormal(True)\n"
                "from shared import FACTOR")},
    {"shared": ("FACTOR = 2.0", "FACTOR = 2.5")},
    {"inner": ("return x", "return -x")},
    {"optional": ("return x", "return 2 * x")},
], ids=["class", "base", "helper", "attribute", "decorator", "effect", "constant", "local",
        "optional"])  # fmt: skip
def test_what_a_block_reaches_is_in_its_hash(
    changes: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    assert hash_of(tmp_path / "a") != hash_of(tmp_path / "b", **changes)


@pytest.mark.parametrize("changes", [
    {"my_norm": ("  # a comment", "")},
    {"my_norm": ("A norm.", "The norm.\n\n    At length.\n    ")},
    {"my_norm": ('summary="s"', 'summary="t"')},
    {"my_ops": ("def unused(x):\n    return x", "def unused(x):\n    return -x")},
    {"shared": ("OTHER = 3.0", "OTHER = 4.0")},
    {"inner": ("def last", "class Another: ...\n\n\ndef last")},
], ids=["comment", "docstring", "summary", "function", "constant", "class"])  # fmt: skip
def test_what_it_does_not_reach_is_not(changes: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    assert hash_of(tmp_path / "a") == hash_of(tmp_path / "b", **changes)


def test_a_named_plugin_is_hashed_with_its_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = load_registry([str(write(tmp_path))], entry_points=False)
    before = registry.source_hash("norm", "mine")
    write(tmp_path, my_ops=("x - x.mean()", "x - x.max()"))
    assert registry.source_hash("norm", "mine") != before


def test_a_star_import_covers_the_whole_module(tmp_path: Path) -> None:
    changes = {"my_norm": ("from my_ops import centred", "from my_ops import *")}
    before = hash_of(tmp_path / "a", **changes)
    after = hash_of(
        tmp_path / "b", my_ops=("def unused(x):\n    return x", "unused = 3"), **changes
    )
    assert before != after


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Return a folder with a copy of this library."""
    shutil.copytree(ROOT / "blocks", tmp_path / "blocks")
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def builtin_hash(library: Path, module: str, name: str) -> str:
    file = library / "blocks" / f"{module}.py"
    return source.definition_hash(f"blocks.{module}", file, name, library)


def test_an_unrelated_block_changes_no_hash(library: Path) -> None:
    before = builtin_hash(library, "norms", "RMSNorm")
    norms = library / "blocks/norms.py"
    norms.write_text(norms.read_text() + "\n\nclass Another(nn.Module):\n    pass\n")
    assert builtin_hash(library, "norms", "RMSNorm") == before


def test_a_helper_in_another_file_changes_the_hash(library: Path) -> None:
    before = builtin_hash(library, "ffns", "GeGLU")
    edit(library / "blocks/projections.py", "return", "print()\n    return")
    assert builtin_hash(library, "ffns", "GeGLU") != before


def test_a_plugin_is_hashed_with_what_it_uses_of_this_library(
    library: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "plugin", my_norm=("centred(self", "linear(1, 1)(self"))
    before = source.definition_hash(f"{source.FROM_FILE}x", file, "MyNorm", library)
    edit(library / "blocks/projections.py", "return", "print()\n    return")
    assert source.definition_hash(f"{source.FROM_FILE}x", file, "MyNorm", library) != before
