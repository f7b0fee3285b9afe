"""A cell: one architecture as frozen, hashable numbers and block spellings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from blocks import Kind, Registry, UsageError
from blocks.errors import unknown

Placement = Literal["pre", "post", "peri", "reordered"]
Match = Literal["params", "flops", "width"]
ClsPlace = Literal["caption", "end", "end_legacy"]
Objective = Literal["both", "contrastive", "captioning"]
Contrast = Literal["softmax", "sigmoid"]
TOWERS = ("image", "text", "multimodal")


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerConfig:
    """A stack of ``depth`` layers of ``heads`` heads and the blocks that fill it.

    ``ffn_ratio`` r means that an FFN is as large as a plain MLP of inner width r d; ``ffn_match``
    says in what: parameters, FLOPs, or inner width, whatever that costs.
    """

    depth: int
    heads: int
    norm: str = "layernorm"
    ffn: str = "mlp"
    position: str = "learned"
    attention: str = "mha"
    placement: Placement = "pre"
    ffn_ratio: float = 4.0
    ffn_match: Match = "params"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig(TowerConfig):
    """The ViT encoder: square images of ``size`` pixels cut into patches, ``width`` wide.

    ``class_token`` adds a learned token behind the patches, ``pre_norm`` a norm in front of the
    layers, as in CLIP (arXiv 2103.00020).
    """

    width: int
    size: int = 288
    patch: int = 18
    pooling: str = "cascade"
    patch_bias: bool = True
    class_token: bool = False
    pre_norm: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        return self.size // self.patch, self.size // self.patch


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig(TowerConfig):
    """The unimodal text decoder; ``cls`` says where its CLS token stands and what it sees.

    ``caption``: right behind the caption, so that padding cannot matter. ``end``: behind the
    padding, which is masked. ``end_legacy``: the same with open_clip's mask, which is shifted by
    one, so that CLS sees one pad and not itself; for weights that were trained so.
    """

    cls: ClsPlace = "caption"


@dataclass(frozen=True, kw_only=True, slots=True)
class MultimodalConfig(TowerConfig):
    """The cross-attending text decoder.

    ``context_norm`` normalises the image tokens before each cross-attention, ``double_ffn`` has an
    FFN after self-attention too; both as in open_clip, neither in arXiv 2205.01917.
    """

    context_norm: bool = False
    double_ffn: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CoCaConfig:
    """A cell: the three towers and what they share.

    ``width`` is that of both text towers, ``embedding`` that of the contrasted vectors, ``context``
    the longest caption in tokens with its begin and end marks, ``vocabulary`` the number of ids.
    ``objective`` says which losses the model is built for: what only the other one needs does not
    exist. ``contrast`` is the contrastive loss. ``tied_head`` predicts with the token embeddings.
    """

    image: ImageConfig
    text: TextConfig
    multimodal: MultimodalConfig
    width: int
    embedding: int
    vocabulary: int = 64000
    context: int = 64
    dropout: float = 0.0
    temperature: float = 0.07
    objective: Objective = "both"
    contrast: Contrast = "softmax"
    tied_head: bool = False

    @property
    def contrasts(self) -> bool:
        """Return whether the model has what the contrastive loss needs."""
        return self.objective != "captioning"

    @property
    def captions(self) -> bool:
        """Return whether the model has what the captioning loss needs."""
        return self.objective != "contrastive"

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        for path, value in flatten(self).items():
            number = type(value) in (int, float) and path != "dropout"
            if number and not 0 < value < math.inf:
                raise UsageError(f"{path} must be above 0 and finite, got {value}")
        if self.context < 3:
            raise UsageError(f"context must be at least 3 (begin, token, end), got {self.context}")
        if self.image.size % self.image.patch:
            raise UsageError(
                f"image.size ({self.image.size}) must be a multiple of image.patch "
                f"({self.image.patch})"
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        self._refuse_what_has_no_effect()
        for prefix, part in (("", self), *((f"{name}.", config) for name, config in self.towers())):
            for name, wanted in get_type_hints(type(part)).items():
                allowed = get_args(wanted) if get_origin(wanted) is Literal else ()
                if allowed and getattr(part, name) not in allowed:
                    raise unknown(f"{prefix}{name}", str(getattr(part, name)), allowed)

    def _refuse_what_has_no_effect(self) -> None:
        plain = {f.name: f.default for f in dataclasses.fields(CoCaConfig)}
        dead = {
            "temperature": not self.contrasts and self.temperature != plain["temperature"],
            "contrast": not self.contrasts and self.contrast != plain["contrast"],
            "text.cls": not self.contrasts and self.text.cls != "caption",
            "tied_head": not self.captions and self.tied_head,
        }
        if found := [name for name, is_dead in dead.items() if is_dead]:
            raise UsageError(f"{found[0]} has no effect where the objective is {self.objective}")

    def towers(self) -> Iterator[tuple[str, TowerConfig]]:
        """Iterate over the towers by name."""
        return ((name, getattr(self, name)) for name in TOWERS)

    def spellings(self) -> dict[str, tuple[Kind, str]]:
        """Return every block of the cell: field -> (kind, spelling)."""
        found: dict[str, tuple[Kind, str]] = {}
        for tower, config in self.towers():
            for kind in _kinds_of(config):
                found[f"{tower}.{kind}"] = (kind, getattr(config, kind))
        return found


def _kinds_of(config: TowerConfig) -> tuple[Kind, ...]:
    own: tuple[Kind, ...] = ("norm", "ffn", "position", "attention")
    return (*own, "pooling") if isinstance(config, ImageConfig) else own


def normalise(cell: CoCaConfig, registry: Registry) -> CoCaConfig:
    """Return the cell with every block in its normal spelling; checks names and options."""
    for path, (kind, spelling) in cell.spellings().items():
        try:
            cell = with_field(cell, path, registry.normalise(kind, spelling))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
    return cell


def with_field(cell: CoCaConfig, path: str, value: Any) -> CoCaConfig:
    """Return the cell with one field changed; ``*.norm`` means that of all towers.

    Raises `UsageError` for an unknown field (with the near miss) or a value of the wrong type.
    """
    if path.startswith("*."):
        for tower in TOWERS:
            cell = with_field(cell, f"{tower}.{path[2:]}", value)
        return cell
    head, _, rest = path.partition(".")
    if path not in flatten(cell):
        names = set(flatten(cell)) | {f"*.{f.name}" for f in dataclasses.fields(TowerConfig)}
        raise unknown("field of a cell", path, names)
    if not rest:
        return dataclasses.replace(cell, **{head: checked(type(cell), head, value)})
    tower = getattr(cell, head)
    changed = dataclasses.replace(tower, **{rest: checked(type(tower), rest, value, path)})
    return dataclasses.replace(cell, **{head: changed})


def checked(owner: type, name: str, value: Any, path: str = "") -> Any:
    """Return a value for a dataclass field in the field's type, or raise `UsageError`."""
    wanted = get_type_hints(owner)[name]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = str if get_origin(wanted) is Literal else wanted
    if type(value) is not kind:
        raise UsageError(
            f"{path or name}={value!r} is {type(value).__name__}, must be {kind.__name__}"
        )
    return value


def flatten(cell: CoCaConfig) -> dict[str, Any]:
    """Return all fields as ``image.norm`` -> value."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(cell).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    return flat


def to_dict(cell: CoCaConfig) -> dict[str, Any]:
    """Return the cell as plain nested data."""
    return dataclasses.asdict(cell)


def from_dict(data: Mapping[str, Any]) -> CoCaConfig:
    """Return the cell that `to_dict` wrote; unknown, missing or mistyped fields raise."""
    parts: dict[str, type] = {
        "image": ImageConfig,
        "text": TextConfig,
        "multimodal": MultimodalConfig,
    }
    built = {
        name: _construct(parts[name], value, f"{name}.") if name in parts else value
        for name, value in data.items()
    }
    cell: CoCaConfig = _construct(CoCaConfig, built, "")
    return cell


def _construct(owner: type, data: Any, prefix: str) -> Any:
    if not isinstance(data, Mapping):
        raise UsageError(f"{prefix.rstrip('.') or 'cell'} must be a mapping, got {data!r}")
    names = {f.name for f in dataclasses.fields(owner)}
    for name in data:
        if name not in names:
            raise unknown("field of a cell", f"{prefix}{name}", {f"{prefix}{n}" for n in names})
    values = {k: checked(owner, k, v, f"{prefix}{k}") for k, v in data.items()}
    try:
        return owner(**values)
    except TypeError as error:
        raise UsageError(f"{prefix.rstrip('.') or 'cell'}: {error}") from None
