"""Builds blocks so that cells can be compared: paired initialisation and matched FFN widths."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from assemblies.config import Match
from blocks import Registry, Site, Unsupported

Module = TypeVar("Module", bound=nn.Module)
HIDDEN_MULTIPLE = 8  # tensor cores want inner widths that are multiples of 8


def stream_seed(seed: int, *purpose: str | int) -> int:
    """Return the seed of an independent random stream, such as ("order", epoch)."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class Builder:
    """Builds modules for one (registry, seed), each under a random stream of its own path.

    Two cells that share a module therefore start bit-identical in it, whatever else differs.
    """

    def __init__(self, registry: Registry, seed: int) -> None:
        self.registry, self.seed = registry, seed

    def make(self, path: str, factory: Callable[[], Module]) -> Module:
        """Call the factory under the stream of (seed, "init", path)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.seed, "init", path))
            try:
                return factory()
            except Unsupported as error:
                raise Unsupported(f"{path}: {error}") from None

    def block(self, kind: str, spelling: str, site: Site) -> nn.Module:
        """Build a block for a site; the site's path names its stream and any error."""
        built = self.make(site.path, lambda: self.registry.build(kind, spelling, site))
        built.__dict__["slot"] = (f"{site.tower}.{kind}", spelling)  # for assemblies.structure
        return built

    def ffn(self, spelling: str, site: Site, ratio: float, match: Match) -> nn.Module:
        """Build an FFN whose inner width makes it match a plain MLP of the given ratio."""
        hidden = matched_hidden(self.registry, spelling, site, ratio, match)
        return self.block("ffn", spelling, replace(site, hidden=hidden))


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def matched_hidden(
    registry: Registry, spelling: str, site: Site, ratio: float, match: Match = "params"
) -> int:
    """Return the inner width, a multiple of 8, that comes closest to the MLP's parameters or FLOPs.

    With ``width`` it is the MLP's own. The candidates are built on the meta device, so any FFN is
    matched without declaring anything. Raises `Unsupported` when an FFN does not grow with it.
    """
    reference = round(site.dim * ratio)
    if match == "width" or registry.get("ffn", spelling).name == "mlp":
        return reference
    anonymous = replace(site, path="", layer=0, hidden=0)  # one answer for all layers of a tower
    target = _ffn_size(registry, "mlp", replace(anonymous, hidden=reference), match)
    return _closest_hidden(registry, spelling, anonymous, target, match)


@functools.lru_cache(maxsize=1024)
def _closest_hidden(
    registry: Registry, spelling: str, site: Site, target: int, match: Match
) -> int:
    def size(units: int) -> int:
        hidden = units * HIDDEN_MULTIPLE
        return _ffn_size(registry, spelling, replace(site, hidden=hidden), match)

    if size(2) <= size(1):
        words = {"params": "parameters", "flops": "FLOPs"}[match]
        raise Unsupported(f"ffn {spelling}: {words} do not grow with the hidden width")
    low, high = 1, 2
    while size(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < target else (low, middle)
    return HIDDEN_MULTIPLE * min(low, high, key=lambda units: abs(size(units) - target))


def _ffn_size(registry: Registry, spelling: str, site: Site, match: Match) -> int:
    """Return an FFN's parameters, or its FLOPs for as many tokens as stand at the site."""
    with torch.device("meta"):
        ffn = registry.build("ffn", spelling, site)
        if match == "params":
            return count_parameters(ffn)
        with FlopCounterMode(display=False) as counter:
            ffn(torch.empty(1, site.tokens, site.dim))
    return int(counter.get_total_flops())
