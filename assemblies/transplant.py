"""Another cell with a trained model's weights: to swap a block and go on training.

Weights are carried over where names and shapes agree. Where the image tower goes from LayerNorm to
RMSNorm, the model stays the same function: the mean that LayerNorm takes away is taken out of
everything that writes into the residual stream, and its bias goes into the maps that read from it
(arXiv 2401.15024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from assemblies.coca import CoCa
from assemblies.config import CoCaConfig, flatten, normalise
from assemblies.layer import Layer
from assemblies.towers import ImageTower
from blocks import Registry, UsageError, default_registry, parse
from blocks.attention import GroupedQueryAttention
from blocks.ffns import GatedFfn, Mlp
from blocks.norms import LayerNorm
from blocks.pooling import AttentionPooler, Cascade, Last, Mean, Parallel, Single
from blocks.positions import Learned

FREE = ("dropout",)  # numbers that change no weight's shape or meaning


@dataclass(frozen=True, kw_only=True, slots=True)
class Transplant:
    """What became of the weights: carried over, new in the cell, or without a place in it.

    ``folded`` says whether LayerNorms were folded, so that norms changed and the function did not;
    ``caveat`` why they could not be, or not to the last digit, where that was wanted.
    """

    carried: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    folded: bool = False
    caveat: str = ""

    def __str__(self) -> str:
        """Return what happened in a line."""
        parts = [f"{len(self.carried)} weights carried over"]
        parts += [f"{len(self.fresh)} new ({_some(self.fresh)})"] if self.fresh else []
        parts += [f"{len(self.dropped)} dropped ({_some(self.dropped)})"] if self.dropped else []
        parts += ["LayerNorms of the image tower folded"] if self.folded else []
        parts += [f"but {self.caveat}"] if self.caveat else []
        return ", ".join(parts)


def transplant(
    source: CoCa, cell: CoCaConfig, *, seed: int = 0, registry: Registry | None = None
) -> tuple[CoCa, Transplant]:
    """Return a model of ``cell`` with the source's weights, and what became of them.

    The cells may differ in blocks and in wiring, not in sizes: `UsageError` names those. What is
    new is initialised from ``seed``. The source is left as it is.
    """
    registry = registry or default_registry()
    cell = normalise(cell, registry)
    require_same_sizes(source.cell, cell)
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    wants_fold = _norm(source.cell) == "layernorm" and _norm(cell) == "rmsnorm"
    obstacle = _obstacle(source, cell) if wants_fold else ""
    folds = wants_fold and not obstacle
    if folds:
        twin = CoCa(source.cell, registry=registry)
        twin.load_state_dict(state)
        with torch.no_grad():
            _fold(twin.image)
        state = {name: tensor for name, tensor in twin.state_dict().items()}
    model = CoCa(cell, seed=seed, registry=registry)
    wanted = model.state_dict()
    carried = [n for n, t in wanted.items() if n in state and state[n].shape == t.shape]
    model.load_state_dict({**wanted, **{name: state[name] for name in carried}})
    return model, Transplant(
        carried=tuple(carried),
        fresh=tuple(n for n in wanted if n not in carried),
        dropped=tuple(n for n in source.state_dict() if n not in carried),
        folded=folds,
        caveat=_other_eps(source.cell, cell, registry) if folds else obstacle,
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def _norm(cell: CoCaConfig) -> str:
    return parse(cell.image.norm)[0]


def require_same_sizes(old: CoCaConfig, new: CoCaConfig) -> None:
    """Raise `UsageError` where cells differ in more than blocks and wiring."""
    free = {*old.spellings(), *FREE}
    before, after = flatten(old), flatten(new)
    changed = [
        f"{name} {before[name]} -> {after[name]}"
        for name in before
        if name not in free and type(before[name]) in (int, float) and before[name] != after[name]
    ]
    if changed:
        raise UsageError(
            f"a transplant keeps all sizes and the learned temperature, got {', '.join(changed)}"
        )


def _other_eps(old: CoCaConfig, new: CoCaConfig, registry: Registry) -> str:
    """Return in what the norms differ that folding cannot bridge, or nothing."""
    before, after = (
        registry.get("norm", cell.image.norm).complete(parse(cell.image.norm)[1])["eps"]
        for cell in (old, new)
    )
    return "" if before == after else f"eps is {after} and was {before}: nearly the same function"


def _obstacle(model: CoCa, target: CoCaConfig) -> str:
    """Return why the image tower's LayerNorms cannot be folded for a target, or nothing."""
    config, image = model.cell.image, model.image
    for placement in (config.placement, target.image.placement):
        if placement != "pre":
            return f"LayerNorms are not folded: placement is {placement}, folding needs pre"
    if config.pre_norm or target.image.pre_norm:
        return "LayerNorms are not folded: the one in front writes into the residual stream"
    weight = image.patches.weight
    nothing = torch.zeros(1, math.prod(config.grid), config.width, device=weight.device)
    if type(image.stack.positions) is not Learned and image.stack.positions.embed(nothing).any():
        return f"LayerNorms are not folded: {config.position} adds what has a mean"
    for norm, readers in _readings(image):
        if norm.bias is not None and norm.bias.any() and any(r.bias is None for r in readers):
            return "LayerNorms are not folded: a map that reads from one has no bias to take its"
        if not readers:
            return "LayerNorms are not folded: a block is not known to read by linear maps"
    return ""


def _readings(image: ImageTower) -> Iterator[tuple[LayerNorm, list[nn.Linear]]]:
    """Iterate over the tower's norms, each with the linear maps that read from it."""
    for layer in image.stack.layers:
        assert isinstance(layer, Layer)
        for residual in (layer.attention, layer.ffn):
            assert isinstance(residual.norm_enter, LayerNorm)
            yield residual.norm_enter, _readers(residual.branch)
    assert isinstance(image.stack.final_norm, LayerNorm)
    yield image.stack.final_norm, _readers(image.pooler)


def _readers(block: nn.Module) -> list[nn.Linear]:
    """Return the linear maps that a block reads its input by; none where that is not known."""
    match block:
        case GroupedQueryAttention():
            gate = [] if block.gate is None else [block.gate]
            return [block.query, block.key_value, *gate]
        case Mlp() | GatedFfn():
            return [block.enter]
        case Mean() | Last():
            return [block.project]
        case AttentionPooler():
            return [block.attention.key_value]
        case Cascade():
            return _readers(block.captioning)
        case Parallel():
            return [*_readers(block.captioning), *_readers(block.contrastive)]
        case Single():
            return _readers(block.pooler)
    return []


def _fold(image: ImageTower) -> None:
    """Make the image tower's residual stream one of zero mean, and move norms' biases on."""
    layers = [cast(Layer, layer) for layer in image.stack.layers]
    branches = [r.branch for layer in layers for r in (layer.attention, layer.ffn)]
    for writer in (image.patches, *(cast(nn.Linear, branch.leave) for branch in branches)):
        writer.weight.sub_(writer.weight.mean(dim=0))
        if writer.bias is not None:
            writer.bias.sub_(writer.bias.mean())
    tables = [] if image.class_token is None else [image.class_token.weight]
    if isinstance(image.stack.positions, Learned):
        tables.append(image.stack.positions.table)
    for table in tables:
        table.sub_(table.mean(dim=1, keepdim=True))
    for norm, readers in _readings(image):
        if norm.bias is not None:
            for reader in readers:
                _take_bias(reader, norm.bias)
            norm.bias.zero_()


def _take_bias(reader: nn.Linear, bias: Tensor) -> None:
    if reader.bias is not None:
        reader.bias.add_(reader.weight @ bias)
