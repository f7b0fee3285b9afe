"""Writes a new plugin: a complete folder whose block works and whose test passes."""

from __future__ import annotations

import keyword
from pathlib import Path
from string import Template

from blocks.errors import UsageError
from blocks.registry import Registry
from blocks.spec import Kind

# Per kind: what is imported from blocks beside BlockSpec, Site and hookimpl; and the class's body.
BODIES: dict[Kind, tuple[str, str]] = {
    "norm": (
        "",
        '''class $cls(nn.Module):
    """Unit root mean square, then a gain: replace this with your idea."""

    def __init__(self, site: Site, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(site.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map [b n d] -> [b n d]; statistics in fp32, the result in x's dtype."""
        size = x.float().square().mean(dim=-1, keepdim=True)
        return (x.float() * torch.rsqrt(size + self.eps) * self.gain).to(x.dtype)
''',
    ),
    "ffn": (
        "linear",
        '''class $cls(nn.Module):
    """Two linear maps and a squared ReLU: replace this with your idea."""

    def __init__(self, site: Site, *, bias: bool = False) -> None:
        super().__init__()
        self.enter = linear(site.dim, max(1, site.hidden), bias=bias)
        self.leave = linear(max(1, site.hidden), site.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b n d] -> [b n d] through site.hidden."""
        out: Tensor = self.leave(torch.relu(self.enter(x)).square())
        return out
''',
    ),
    "position": (
        "Positions",
        '''class $cls(Positions):
    """A learned vector per position, added once: replace this with your idea.

    Override embed (tokens), rotate (queries and keys) or bias (scores), whichever acts.
    """

    def __init__(self, site: Site, *, std: float = 0.02) -> None:
        super().__init__(site)
        self.table = nn.Parameter(std * torch.randn(site.tokens, site.dim))

    def embed(self, x: Tensor, *, offset: int = 0) -> Tensor:
        """Add to [b n d], whose tokens stand at positions offset .. offset + n - 1."""
        return x + self.table[offset : offset + x.shape[1]].to(x.dtype)
''',
    ),
    "attention": (
        "Positions, Unsupported, attend, linear",
        '''class $cls(nn.Module):
    """Multi-head attention without biases: replace this with your idea."""

    def __init__(self, site: Site, *, scale: float = 1.0) -> None:
        super().__init__()
        if site.dim % site.heads:
            raise Unsupported(f"width {site.dim} must be divisible by the {site.heads} heads")
        self.heads, self.causal, self.scale = site.heads, site.causal, scale
        context = site.dim if site.context_dim is None else site.context_dim
        self.query = linear(site.dim, site.dim, bias=False)
        self.key_value = linear(context, 2 * site.dim, bias=False)
        self.leave = linear(site.dim, site.dim, bias=False)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, positions: Positions | None = None
    ) -> Tensor:
        """Map [b n d], with a context [b m c] for cross-attention, to [b n d]."""
        key, value = self.key_value(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.query(x), key, value)
        )
        bias = None
        if positions is not None:
            q, k = positions.rotate(q, k)
            bias = positions.bias(q.shape[-2], k.shape[-2])
        y = attend(self.scale * q, k, v, causal=self.causal, bias=bias)
        out: Tensor = self.leave(y.transpose(1, 2).flatten(2))
        return out
''',
    ),
    "pooling": (
        "Pooled, linear",
        '''class $cls(nn.Module):
    """All tokens caption, the largest value of each channel contrasts: replace with your idea."""

    def __init__(self, site: Site, *, bias: bool = True) -> None:
        super().__init__()
        width = site.dim if site.context_dim is None else site.context_dim
        self.project = linear(width, site.dim, bias=bias)

    def forward(self, x: Tensor) -> Pooled:
        """Map image tokens [b n c] to captioning tokens [b q d] and one vector [b d]."""
        tokens = self.project(x)
        return Pooled(tokens, tokens.amax(dim=1))
''',
    ),
}

MODULE = Template('''"""$title: a $kind block for coca-blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks import $imports


$body

@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the block."""
    return [
        BlockSpec(
            kind="$kind",
            name="$name",
            factory=$cls,
            summary="what it does, in a few words",
            source="the paper (arXiv:...) or code it comes from",
        )
    ]
''')

TEST = Template("""from __future__ import annotations

from collections.abc import Callable

import $name
from blocks.testing import contract


@contract($name)
def test_contract(check: Callable[[], None]) -> None:
    check()
""")

PYPROJECT = Template("""[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "coca-blocks-$dashed"
version = "0.1.0"
description = "$title, a $kind block for coca-blocks"
requires-python = ">=3.11"
dependencies = ["coca-blocks"]

[project.entry-points.coca_blocks]
$name = "$name"

[tool.setuptools]
py-modules = ["$name"]
""")

README = Template("""# coca-blocks-$dashed

$title, a $kind block for coca-blocks. Try it without installing, or install it:

    python -m blocks check $name.py
    python -m ablate.run --grid smoke --plugin $name.py
    pip install .
    pytest
""")


def write_plugin(kind: Kind, name: str, directory: Path, registry: Registry) -> list[Path]:
    """Write a plugin folder and return its files.

    Raises `UsageError` for a name that cannot be a module or exists, or a folder that is in use.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise UsageError(f"{name!r} cannot be a block's name; use lower-case letters, digits, '_'")
    if name in registry.names(kind):
        provider = registry.provider(kind, name)
        raise UsageError(f"{kind}/{name} exists already, in plugin {provider!r}; choose another")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{str(directory)!r} exists and is not an empty folder")
    extra, body = BODIES[kind]
    imports = ["BlockSpec", "Site", "hookimpl", *filter(None, extra.split(", "))]
    words = {
        "kind": kind,
        "name": name,
        "cls": "".join(word.capitalize() for word in name.split("_")),
        "title": name.replace("_", " "),
        "dashed": name.replace("_", "-"),
        "imports": ", ".join(sorted(imports)),
    }
    words["body"] = Template(body).substitute(words)
    files = {
        f"{name}.py": MODULE,
        f"test_{name}.py": TEST,
        "pyproject.toml": PYPROJECT,
        "README.md": README,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, template in files.items():
            (directory / file).write_text(template.substitute(words), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {str(directory)!r}: {error.strerror}") from None
    return [directory / file for file in files]


def next_steps(name: str, written: list[Path]) -> str:
    """Return what was written, and what to type next."""
    lines = [f"wrote {path}" for path in written]
    return "\n".join([*lines, "", "next:", f"  python -m blocks check {written[0]}",
                      f"  python -m ablate.run --grid smoke --plugin {written[0]}"])  # fmt: skip
