"""The contract kit catches every planted bad block, by the check named for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blocks import BlockSpec, Positions, Site, Unsupported, default_registry
from blocks.attention import MultiHeadAttention
from blocks.norms import LayerNorm, RMSNorm
from blocks.positions import Learned, Rope
from blocks.testing import Verdict, checks, contract


@contract(list(default_registry()))
def test_every_block_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


class WrongShape(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 1:]


class ChangesDtype(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class AlwaysBf16(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).bfloat16()


class CentresOverTokens(RMSNorm):  # sees the future
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=1, keepdim=True))


class BatchStatistics(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0, keepdim=True))


class Uninitialised(RMSNorm):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.extra = nn.Parameter(torch.empty(site.dim))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.extra


class DeadParameter(RMSNorm):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.unused = nn.Parameter(torch.zeros(site.dim))


class InertOption(RMSNorm):
    def __init__(self, site: Site, *, strength: float = 1.0) -> None:
        super().__init__(site)


class Undetermined(RMSNorm):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.register_buffer("noise", torch.full((site.dim,), random.random()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.noise


class ForgetsState(RMSNorm):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.direction = torch.randn(site.dim)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.direction.to(x.dtype)


class BreaksTheGraph(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if x.detach().sum().item() > 1e9 else 1.0)


class DrawsInForward(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * torch.rand(x.shape[-1]).to(x.dtype)


class ReadsOnMeta(RMSNorm):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.scale = torch.ones(site.dim).mean().item()


class SameWidth(nn.Module):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.map = nn.Linear(site.dim, site.dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.map(x)
        return y


class RaisesSomethingElse(RMSNorm):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        assert site.dim % 2 == 0


class NoPositionsAtAll(RMSNorm):
    pass


class ReturnsATuple(nn.Module):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.map = nn.Linear(site.context_dim or site.dim, site.dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.map(x), self.map(x)[:, 0]


class ForgetsOffset(Learned):
    def embed(self, x: Tensor, *, offset: int = 0) -> Tensor:
        return x + self.table[: x.shape[1]]


class CountsFromZero(Rope):
    def rotate(self, q: Tensor, k: Tensor, *, offset: int = 0) -> tuple[Tensor, Tensor]:
        return super().rotate(q, k)


class ForgetsCache(MultiHeadAttention):
    def forward(
        self, x: Tensor, context: Any = None, *, positions: Any = None, cache: Any = None
    ) -> Tensor:
        return super().forward(x, context, positions=positions)


def spec(factory: Callable[..., nn.Module], kind: Any = "norm", **more: Any) -> BlockSpec:
    return BlockSpec(kind=kind, name="planted", factory=factory, summary="", source="", **more)


def failed(block: BlockSpec) -> set[str]:
    return {v.check for v in verdicts(block) if v.status == "failed"}


def verdicts(block: BlockSpec) -> list[Verdict]:
    return [check.verdict() for check in checks([block])]


@pytest.mark.parametrize(("block", "check"), [
    (spec(WrongShape), "keeps_shape"),
    (spec(ChangesDtype), "keeps_dtype"),
    (spec(AlwaysBf16), "keeps_dtype"),
    (spec(CentresOverTokens), "hides_the_future"),
    (spec(BatchStatistics), "keeps_examples_apart"),
    (spec(Uninitialised), "initialises_everything"),
    (spec(DeadParameter), "gradients_reach_everything"),
    (spec(InertOption), "option_acts(strength)"),
    (spec(Undetermined), "is_deterministic"),
    (spec(ForgetsState), "survives_a_state_dict"),
    (spec(BreaksTheGraph), "compiles"),
    (spec(DrawsInForward), "leaves_global_random_state"),
    (spec(ReadsOnMeta), "builds_on_meta"),
    (spec(SameWidth, "ffn"), "grows_with_width"),
    (spec(RaisesSomethingElse), "refuses_what_it_cannot_serve"),
    (spec(NoPositionsAtAll, "position"), "keeps_shape"),
    (spec(ReturnsATuple, "pooling"), "keeps_shape"),
    (spec(ForgetsOffset, "position"), "goes_on_at_an_offset"),
    (spec(CountsFromZero, "position"), "goes_on_at_an_offset"),
    (spec(ForgetsCache, "attention"), "goes_on_at_an_offset"),
], ids=lambda value: value if isinstance(value, str) else value.factory.__name__)  # fmt: skip
def test_every_planted_fault_is_caught(block: BlockSpec, check: str) -> None:
    assert check in failed(block)


def test_a_good_block_passes_everything() -> None:
    assert failed(spec(LayerNorm)) == set()


def test_faults_that_are_declared_are_expected_with_their_reason() -> None:
    declared = spec(DeadParameter, expected_failures={"gradients_reach_everything": "on purpose"})
    found = [v for v in verdicts(declared) if v.check == "gradients_reach_everything"]
    assert {(v.status, v.message) for v in found} == {("expected", "on purpose")}
    assert failed(declared) == set()


def test_a_declared_fault_that_is_none_is_a_failure() -> None:
    wrong = spec(LayerNorm, expected_failures={"compiles": "I think"})
    (message, *_) = [v.message for v in verdicts(wrong) if v.status == "failed"]
    assert message == "was declared to fail (I think) but holds"


def test_sites_that_are_refused_are_skipped_with_the_reason() -> None:
    class TextOnly(Positions):
        def __init__(self, site: Site) -> None:
            super().__init__(site)
            if len(site.grid) > 1:
                raise Unsupported("text only")

    skipped = [v for v in verdicts(spec(TextOnly, "position")) if v.status == "skipped"]
    assert any("image" in v.case and v.message == "text only" for v in skipped)


@contract([spec(RMSNorm), spec(LayerNorm)])
def test_the_decorator_takes_several_specs(check: Any) -> None:
    assert check.case.spec.name == "planted"
    check()
