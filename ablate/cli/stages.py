"""The stages that `--stages` names."""

from __future__ import annotations

from ablate.core.trial import FINETUNE, PRETRAIN
from ablate.data.sources import SCHEMES, embedded_names
from blocks import UsageError
from blocks.errors import unknown


def parse_stages(text: str) -> tuple[str, ...]:
    """Return the stages that ``pretrain,finetune:icons,tiles`` names, a URI to each fine-tuning.

    A set is an embedded one's name or a source (docs/data.md), which may hold commas.
    """
    first, *rest = text.split(",")
    if first.strip() != PRETRAIN:
        raise UsageError(f"--stages must begin with {PRETRAIN}, got {first.strip()!r}")
    if rest and not rest[0].strip().startswith(FINETUNE):
        raise UsageError(
            f"--stages {text!r}: after {PRETRAIN} comes finetune:SET,SET,..., got {rest[0]!r}"
        )
    sources: list[str] = []
    for part in (piece.strip().removeprefix(FINETUNE) for piece in rest):
        if part in embedded_names():
            sources.append(f"embedded:{part}")
        elif part.partition(":")[0] in SCHEMES and ":" in part:
            sources.append(part)
        elif sources and not sources[-1].startswith("embedded:"):
            sources[-1] += f",{part}"  # a comma inside a source, as in coco:IMAGES,FILE
        else:
            raise unknown("embedded data set or source", part, [*embedded_names(), *SCHEMES])
    return tuple(sources)
