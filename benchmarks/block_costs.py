"""Cost of every block at three sites: parameters, FLOPs, kept memory, and relative time.

    python benchmarks/block_costs.py        writes benchmarks/block_costs.json and docs/blocks.md

Times are forward and backward in CPU seconds of one thread, as ratios to the kind's reference block
measured in turn with it. Memory is what autograd keeps for the backward pass: exact, not sampled.
"""

from __future__ import annotations

import datetime
import inspect
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from assemblies.construct import count_parameters, matched_hidden
from blocks import BlockSpec, Positions, Registry, Site, Unsupported, attend, load_registry
from blocks.attention import split_heads

ROOT = Path(__file__).parents[1]
REFERENCE = {
    "norm": "layernorm",
    "ffn": "mlp",
    "position": "learned",
    "attention": "mha",
    "pooling": "cascade(queries=16)",
}
SITES = {
    "nano image": (Site(dim=64, heads=4, grid=(6, 6), tower="image"), 64),
    "tiny text": (Site(dim=128, heads=4, grid=(32,), causal=True), 32),
    "base image": (Site(dim=768, heads=12, grid=(16, 16), tower="image"), 2),
}
ROUNDS = 9


def main() -> None:
    """Measure everything and write both files."""
    torch.set_num_threads(1)
    plugins = sorted(
        str(path) for path in (ROOT / "plugins").glob("*/*.py") if "test" not in path.name
    )
    registry = load_registry(plugins, entry_points=False)
    rows = [
        measure(registry, spec, name, site, batch)
        for spec in registry
        for name, (site, batch) in SITES.items()
    ]
    facts = {
        "date": datetime.date.today().isoformat(),
        "device": f"{platform.machine()}, one thread ({processor()})",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": ROUNDS,
        "rows": [row for row in rows if row],
    }
    (ROOT / "benchmarks/block_costs.json").write_text(json.dumps(facts, indent=1) + "\n")
    (ROOT / "docs/blocks.md").write_text(catalogue(registry, facts))


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def measure(
    registry: Registry, spec: BlockSpec, where: str, site: Site, batch: int
) -> dict[str, Any] | None:
    """Return one row of results, or None where the block cannot serve the site."""
    try:
        block, run = ready(registry, spec.kind, own_spelling(spec), site)
    except Unsupported:
        return None
    reference, run_reference = ready(registry, spec.kind, REFERENCE[spec.kind], site)
    x = torch.randn(batch, site.tokens, site.dim, requires_grad=True)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(seconds(run, block, x))
        theirs.append(seconds(run_reference, reference, x))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        like = torch.empty_like(x, device="meta", requires_grad=True)
        step(run, ready(registry, spec.kind, own_spelling(spec), site)[0], like)
    return {
        "block": f"{spec.kind}/{spec.name}",
        "site": where,
        "parameters": count_parameters(block),
        "mflop_per_example": counter.get_total_flops() / batch / 1e6,
        "saved_kib_per_example": saved_bytes(run, block, x) / batch / 1024,
        "time_ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "milliseconds": statistics.median(ours) * 1e3,
    }


def own_spelling(spec: BlockSpec) -> str:
    """Return the block with its defaults, poolers with 16 queries at all sites."""
    return spec.spell({"queries": 16}) if "queries" in spec.options else spec.spell({})


def ready(registry: Registry, kind: str, spelling: str, site: Site) -> tuple[nn.Module, Any]:
    """Return a block, and the function that runs it on tokens [b n d]."""
    if kind == "ffn":
        site = replace(site, hidden=matched_hidden(registry, spelling, site, 4.0))
    block = registry.build(kind, spelling, site)
    if kind == "position":
        return block, lambda b, x: probe(b, x, site)
    if kind == "pooling":
        return block, lambda b, x: torch.cat([b(x).tokens, b(x).vector[:, None]], dim=1)
    return block, lambda b, x: b(x)


def probe(block: nn.Module, x: Tensor, site: Site) -> Tensor:
    """Run positions with the attention that they act in, which all of them share."""
    assert isinstance(block, Positions)
    heads = split_heads(block.embed(x), site.heads)
    q, k = block.rotate(heads, heads)
    bias = block.bias(site.tokens, site.tokens)
    return attend(q, k, heads, causal=site.causal, bias=bias)


def step(run: Any, block: nn.Module, x: Tensor) -> None:
    """Go forward and backward."""
    torch.autograd.backward(run(block, x).square().sum())


def seconds(run: Any, block: nn.Module, x: Tensor) -> float:
    """Return the CPU seconds of one forward and backward pass, after one to warm up."""
    step(run, block, x)
    began = time.process_time()
    step(run, block, x)
    return time.process_time() - began


def saved_bytes(run: Any, block: nn.Module, x: Tensor) -> int:
    """Return the bytes of distinct storage that autograd keeps, parameters not counted."""
    known = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = run(block, x)
    torch.autograd.backward(out.sum())
    return sum(kept.values())


def catalogue(registry: Registry, facts: dict[str, Any]) -> str:
    """Return docs/blocks.md."""
    references = ", ".join(REFERENCE.values())
    lines = [
        "# The blocks",
        "",
        "Generated by `python benchmarks/block_costs.py`; do not edit. `python -m blocks list`",
        "prints the blocks with their options, `python -m blocks show NAME` one of them. Built-in",
        "blocks and those of `plugins/`.",
        "",
        f"Measured on {facts['date']}: {facts['device']}, torch {facts['torch']}. *Time* is",
        f"forward and backward as a ratio to the kind's reference ({references}), median",
        f"of {ROUNDS} rounds; *kept* is the memory that autograd keeps for the backward pass, per",
        "example. Positions are measured with the attention that they act in. FFNs have equal",
        "parameters.",
    ]
    for kind in REFERENCE:
        lines += ["", f"## {kind}", ""]
        for name in registry.names(kind):
            lines += block_section(registry.get(kind, name), registry, facts["rows"])
    return "\n".join(lines) + "\n"


def block_section(spec: BlockSpec, registry: Registry, rows: list[dict[str, Any]]) -> list[str]:
    """Return a block's part of the catalogue."""
    name = f"{spec.kind}/{spec.name}"
    plugin = registry.provider(spec.kind, spec.name)
    where = "" if plugin == "blocks" else f" Plugin `plugins/{Path(plugin).stem}`."
    options = ", ".join(f"`{k}={v!r}`" for k, v in spec.options.items()) or "none"
    text = " ".join((inspect.getdoc(spec.factory) or "").split())
    lines = [f"### {name}", "", f"{text} Options: {options}. Source: {spec.source}.{where}", ""]
    lines += ["| site | parameters | MFLOP | kept KiB | time |", "|---|---|---|---|---|"]
    for row in rows:
        if row["block"] == name:
            lines.append(
                f"| {row['site']} | {row['parameters']:,} | {row['mflop_per_example']:,.1f} | "
                f"{row['saved_kib_per_example']:,.0f} | {row['time_ratio']:.2f} |"
            )
    return [*lines, ""]


if __name__ == "__main__":
    main()
