"""open_clip's CoCa models, brought into our assembly and back, exactly.

open_clip's layout differs from arXiv 2205.01917 in wiring that a cell can express: one pooler for
both tasks with norms of its own, a class token and a norm in front of the ViT's layers, an FFN
after self- and cross-attention, a norm of the image tokens in each layer, CLS behind the padding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assemblies.checkpoint import load_weights
from assemblies.coca import CoCa
from assemblies.config import (
    CoCaConfig,
    ImageConfig,
    MultimodalConfig,
    TextConfig,
    flatten,
    normalise,
    with_field,
)
from assemblies.transplant import transplant
from blocks import UsageError, default_registry

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH, POOLER_HEADS = 64, 8  # of coca_ViT-B-32 and coca_ViT-L-14; a state dict tells neither
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """Tensors of theirs and ours that hold the same numbers, row after row, in the same order."""

    theirs: Mapping[str, Shape]
    ours: tuple[str, ...]
    transposed: bool = False


def from_open_clip(
    state: Mapping[str, Tensor],
    *,
    legacy_cls_mask: bool = True,
    head_width: int = HEAD_WIDTH,
    pooler_heads: int = POOLER_HEADS,
) -> CoCa:
    """Return our model with the weights of an open_clip CoCa (one released pooler of n queries).

    ``legacy_cls_mask`` is how released weights were trained: CLS does not see itself. Raises
    `UsageError` that lists what is missing or unexpected.
    """
    cell = _cell_of(state, legacy_cls_mask, head_width, pooler_heads)
    table = list(entries(cell))
    known = {name for entry in table for name in entry.theirs}
    missing, unexpected = sorted(known - set(state)), sorted(set(state) - known)
    if missing or unexpected:
        raise UsageError(
            f"not an open_clip CoCa of the known layout: missing {missing[:8] or 'nothing'}, "
            f"unexpected {unexpected[:8] or 'nothing'}"
        )
    for name, shape in ((n, s) for entry in table for n, s in entry.theirs.items()):
        if tuple(state[name].shape) != shape:
            raise UsageError(f"{name} is {list(state[name].shape)}, must be {list(shape)}")
    model = CoCa(cell)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    ours: dict[str, Tensor] = {}
    for entry in table:
        given = [state[name] for name in entry.theirs]
        pieces = [t.T if entry.transposed else t for t in given]
        ours |= _divide(pieces, {name: shapes[name] for name in entry.ours})
    load_weights(model, ours, where="this open_clip state dict")
    return model.eval()


def to_open_clip(model: CoCa) -> dict[str, Tensor]:
    """Return the open_clip state dict of a model that has open_clip's layout."""
    ours, theirs = model.state_dict(), dict[str, Tensor]()
    table = list(entries(model.cell))
    if {name for entry in table for name in entry.ours} != set(ours):
        raise UsageError("only a model of open_clip's layout can be exported to it")
    for entry in table:
        shapes = {n: s[::-1] if entry.transposed else s for n, s in entry.theirs.items()}
        found = _divide([ours[name] for name in entry.ours], shapes)
        theirs |= {n: t.T.contiguous() if entry.transposed else t for n, t in found.items()}
    _require_same_function(model.cell, theirs)
    return theirs


def _require_same_function(cell: CoCaConfig, theirs: Mapping[str, Tensor]) -> None:
    """Refuse a cell that open_clip would compute otherwise, though its weights have the names."""
    legacy = cell.text.cls == "end_legacy"
    expected = normalise(_cell_of(theirs, legacy, HEAD_WIDTH, POOLER_HEADS), default_registry())
    free = ("heads", "dropout", "temperature")  # heads are in open_clip's JSON, not in its weights
    ours, wanted = flatten(cell), flatten(expected)
    for fields in (ours, wanted):
        fields["image.pooling"] = re.sub(r"heads=\d+, |, heads=\d+", "", fields["image.pooling"])
    for name, value in wanted.items():
        if name.split(".")[-1] not in free and ours[name] != value:
            raise UsageError(
                f"only a model of open_clip's layout can be exported to it: {name} is "
                f"{ours[name]!r}, there it is {value!r}"
            )


def _divide(pieces: list[Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Return the numbers of some tensors, in order, as tensors of other names and shapes."""
    flat = torch.cat([piece.reshape(-1) for piece in pieces])
    sizes = [int(torch.Size(shape).numel()) for shape in shapes.values()]
    if sum(sizes) != len(flat):
        raise UsageError(f"{', '.join(shapes)} need {sum(sizes)} numbers, got {len(flat)}")
    parts = torch.split(flat, sizes)
    return {n: part.reshape(s).clone() for (n, s), part in zip(shapes.items(), parts, strict=True)}


def _cell_of(
    state: Mapping[str, Tensor], legacy: bool, head_width: int, pooler_heads: int
) -> CoCaConfig:
    """Return the cell that a state dict's shapes tell."""

    def shape(name: str) -> Shape:
        if name not in state:
            raise UsageError(f"not an open_clip CoCa: no {name!r} in the state dict")
        return tuple(state[name].shape)

    width, _, patch, _ = shape("visual.conv1.weight")
    side = round((shape("visual.positional_embedding")[0] - 1) ** 0.5)
    text_width, vocabulary = shape("text_decoder.text_projection")
    queries, pooled = shape("visual.attn_pool.query")
    if pooled != text_width:
        raise UsageError(
            f"the pooler's width ({pooled}) must be that of the text towers ({text_width})"
        )
    return CoCaConfig(
        image=ImageConfig(
            width=width,
            depth=_depth(state, "visual.transformer.resblocks"),
            heads=width // head_width,
            size=patch * side,
            patch=patch,
            pooling=f"single(heads={pooler_heads}, normed=True, queries={queries})",
            patch_bias=False,
            class_token=True,
            pre_norm=True,
            ffn_ratio=shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0] / width,
        ),
        text=TextConfig(
            depth=_depth(state, "text.transformer.resblocks"),
            heads=text_width // head_width,
            cls="end_legacy" if legacy else "end",
        ),
        multimodal=MultimodalConfig(
            depth=_depth(state, "text_decoder.resblocks"),
            heads=text_width // head_width,
            position="none",
            context_norm=True,
            double_ffn=True,
        ),
        width=text_width,
        embedding=shape("visual.proj")[1],
        vocabulary=vocabulary,
        context=shape("text.positional_embedding")[0] - 1,
    )


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    found = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in state if (match := found.match(name))})


def entries(cell: CoCaConfig) -> Iterator[Entry]:
    """Iterate over what corresponds to what."""
    yield from _image_entries(cell)
    d, e, v = cell.width, cell.embedding, cell.vocabulary
    yield Entry({"text.token_embedding.weight": (v, d)}, ("text.tokens.weight",))
    yield Entry(
        {"text.positional_embedding": (cell.context + 1, d)}, ("text.stack.positions.table",)
    )
    yield Entry({"text.cls_emb": (d,)}, ("text.cls.weight",))
    for i in range(cell.text.depth):
        theirs, ours = f"text.transformer.resblocks.{i}", f"text.stack.layers.{i}"
        yield from _block(theirs, f"{ours}.attention", f"{ours}.ffn", d, _inner(cell.text, d))
    yield from _norm("text.ln_final", "text.stack.final_norm", d)
    yield Entry({"text.text_projection": (d, e)}, ("text_projection.weight",), transposed=True)
    inner = _inner(cell.multimodal, d)
    for i in range(cell.multimodal.depth):
        ours = f"multimodal.stack.layers.{i}"
        own, cross = f"text_decoder.resblocks.{i}", f"text_decoder.cross_attn.{i}"
        yield from _block(own, f"{ours}.attention", f"{ours}.between", d, inner)
        yield from _block(cross, f"{ours}.cross", f"{ours}.ffn", d, inner)
        yield from _norm(f"{cross}.ln_1_kv", f"{ours}.context_norm", d)
    yield from _norm("text_decoder.ln_final", "multimodal.stack.final_norm", d)
    yield Entry(
        {"text_decoder.text_projection": (d, v)}, ("multimodal.head.weight",), transposed=True
    )
    yield Entry({"logit_scale": ()}, ("log_scale",))


def _image_entries(cell: CoCaConfig) -> Iterator[Entry]:
    image, d, w, p = cell.image, cell.width, cell.image.width, cell.image.patch
    rows, columns = image.grid
    yield Entry({"visual.conv1.weight": (w, 3, p, p)}, ("image.patches.weight",))
    yield Entry(
        {
            "visual.class_embedding": (w,),
            "visual.positional_embedding": (rows * columns + 1, w),
        },
        ("image.class_token.weight", "image.stack.positions.table"),
    )
    yield from _norm("visual.ln_pre", "image.stack.pre_norm", w)
    for i in range(image.depth):
        theirs, ours = f"visual.transformer.resblocks.{i}", f"image.stack.layers.{i}"
        yield from _block(theirs, f"{ours}.attention", f"{ours}.ffn", w, _inner(image, w))
    pool, attention = "visual.attn_pool", "image.pooler.pooler.attention"
    queries = int(re.findall(r"queries=(\d+)", f"{image.pooling} queries=256")[0])
    yield Entry({f"{pool}.query": (queries, d)}, ("image.pooler.pooler.queries",))
    yield from _norm(f"{pool}.ln_q", "image.pooler.pooler.norm_queries", d)
    yield from _norm(f"{pool}.ln_k", "image.stack.final_norm", w)
    yield from _attention(f"{pool}.attn", attention, d, w)
    yield from _norm("visual.ln_post", "image.pooler.pooler.norm_output", d)
    yield Entry({"visual.proj": (d, cell.embedding)}, ("image_projection.weight",), transposed=True)


def _inner(config: ImageConfig | TextConfig | MultimodalConfig, width: int) -> int:
    return round(width * config.ffn_ratio)


def _block(theirs: str, attention: str, ffn: str, d: int, inner: int) -> Iterator[Entry]:
    """Iterate over a residual block of theirs: attention and MLP, each with its norm."""
    yield from _norm(f"{theirs}.ln_1", f"{attention}.norm_enter", d)
    yield from _attention(f"{theirs}.attn", f"{attention}.branch", d, d)
    yield from _norm(f"{theirs}.ln_2", f"{ffn}.norm_enter", d)
    yield from _linear(f"{theirs}.mlp.c_fc", f"{ffn}.branch.enter", inner, d)
    yield from _linear(f"{theirs}.mlp.c_proj", f"{ffn}.branch.leave", d, inner)


def _attention(theirs: str, ours: str, d: int, context: int) -> Iterator[Entry]:
    """Iterate over torch's MultiheadAttention, which packs q, k, v only where widths are equal."""
    packed = {f"{theirs}.in_proj_weight": (3 * d, d)}
    apart = {f"{theirs}.q_proj_weight": (d, d)} | {
        f"{theirs}.{name}_proj_weight": (d, context) for name in "kv"
    }
    weights = packed if context == d else apart
    yield Entry(weights, (f"{ours}.query.weight", f"{ours}.key_value.weight"))
    yield Entry(
        {f"{theirs}.in_proj_bias": (3 * d,)}, (f"{ours}.query.bias", f"{ours}.key_value.bias")
    )
    yield from _linear(f"{theirs}.out_proj", f"{ours}.leave", d, d)


def _linear(theirs: str, ours: str, outputs: int, inputs: int) -> Iterator[Entry]:
    yield Entry({f"{theirs}.weight": (outputs, inputs)}, (f"{ours}.weight",))
    yield Entry({f"{theirs}.bias": (outputs,)}, (f"{ours}.bias",))


def _norm(theirs: str, ours: str, d: int) -> Iterator[Entry]:
    yield Entry({f"{theirs}.weight": (d,)}, (f"{ours}.gain",))
    yield Entry({f"{theirs}.bias": (d,)}, (f"{ours}.bias",))


def for_plain_pixels(
    model: CoCa, mean: Sequence[float] = CLIP_MEAN, deviation: Sequence[float] = CLIP_DEVIATION
) -> CoCa:
    """Return the same function of pixels in -1 .. 1, for a model of (pixel - mean) / deviation.

    The scaling of 0 .. 1 pixels by channel goes into the patch embedding, which gets a bias for it.
    """
    moved, _ = transplant(model, with_field(model.cell, "image.patch_bias", True))
    patches = moved.image.patches
    mu, sigma = (torch.tensor(v, dtype=torch.float64)[None, :, None] for v in (mean, deviation))
    with torch.no_grad():
        weight = patches.weight.double().reshape(len(patches.weight), 3, -1)  # [w 3 pp]
        patches.bias.copy_((weight * (0.5 - mu) / sigma).sum(dim=(1, 2)))
        patches.weight.copy_((weight / (2 * sigma)).flatten(1))
    return moved.eval()
