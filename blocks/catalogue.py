"""What `python -m blocks` prints: blocks as tables, paragraphs and plain data, and verdicts."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from blocks.errors import UsageError, unknown
from blocks.registry import Registry, load_registry
from blocks.spec import KINDS, BlockSpec
from blocks.testing import Status, Verdict

STATUSES: tuple[Status, ...] = get_args(Status)


def describe(registry: Registry, spec: BlockSpec) -> dict[str, Any]:
    """Return what is known about a block as plain data."""
    return {
        "kind": spec.kind,
        "name": spec.name,
        "options": spec.options,
        "sweep": {k: list(v) for k, v in spec.sweep.items()},
        "plugin": registry.provider(spec.kind, spec.name),
        "source": spec.source,
        "summary": spec.summary,
    }


def show_list(registry: Registry, kind: str | None) -> str:
    """Return one line per block, aligned."""
    rows = [("block", "options", "plugin", "source", "summary")]
    for spec in registry:
        if kind in (None, spec.kind):
            options = ", ".join(f"{k}={v!r}" for k, v in spec.options.items()) or "-"
            provider = registry.provider(spec.kind, spec.name)
            rows.append((f"{spec.kind}/{spec.name}", options, provider, spec.source, spec.summary))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]])
        for row in rows
    )


def show_one(registry: Registry, spec: BlockSpec) -> str:
    """Return a paragraph about one block."""
    facts = describe(registry, spec)
    lines = [f"{spec.kind}/{spec.name}: {spec.summary}", "", inspect.getdoc(spec.factory) or "", ""]
    lines += [f"{key}: {facts[key]}" for key in ("options", "sweep", "plugin", "source")]
    return "\n".join(lines)


def find(registry: Registry, name: str) -> BlockSpec:
    """Return the block named ``kind/name``, or ``name`` where only one kind has it."""
    if "/" in name:
        kind, _, rest = name.partition("/")
        return registry.get(kind, rest)
    kinds = [kind for kind in KINDS if name in registry.names(kind)]
    if len(kinds) > 1:
        choices = " or ".join(f"{kind}/{name}" for kind in kinds)
        raise UsageError(f"{name!r} is a block of {len(kinds)} kinds; write {choices}")
    if not kinds:
        raise unknown("block", name, {spec.name for spec in registry})
    return registry.get(kinds[0], name)


def show_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return one line per block with counts, and one per failure."""
    lines = []
    for name in dict.fromkeys(v.block for v in verdicts):
        own = [v for v in verdicts if v.block == name]
        counts = {status: sum(v.status == status for v in own) for status in STATUSES}
        word = "FAILED" if counts["failed"] else "ok"
        rest = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
        lines.append(f"{name:<24} {word:<7} {rest}")
        lines += [f"  {v.case}: {v.check}: {v.message}" for v in own if v.status == "failed"]
        reasons = {(v.check, v.message) for v in own if v.status == "expected"}
        lines += [f"  expected: {check}: {why}" for check, why in sorted(reasons)]
    return "\n".join(lines)


def choose_specs(registry: Registry, options: argparse.Namespace) -> list[BlockSpec]:
    """Return the blocks to check: all of them, one by name, or those of a file or module."""
    if options.all:
        return list(registry)
    if options.name is None:
        raise UsageError("name a block, a plugin file or module, or --all")
    if options.name.endswith(".py") or ("/" in options.name and Path(options.name).exists()):
        return load_registry([options.name], entry_points=False).third_party()
    try:
        return [find(registry, options.name)]
    except UsageError:
        if importlib.util.find_spec(options.name.partition(".")[0]) is None:
            raise
    return load_registry([options.name], entry_points=False).third_party()
