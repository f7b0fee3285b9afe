"""The checks of the contract kit: behaviour that every block must show. See `blocks.testing`."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from blocks.attention import KeyValues
from blocks.errors import Unsupported
from blocks.kernels import attend
from blocks.pooling import Pooled
from blocks.positions import Positions
from blocks.site import Site
from blocks.spec import BlockSpec, Option

TOKENS, DIM, HEADS, CONTEXT = 12, 32, 2, 24
IMAGE = Site(dim=DIM, heads=HEADS, grid=(3, 4), tower="image", hidden=48)
TEXT = Site(dim=DIM, heads=HEADS, grid=(TOKENS,), causal=True, tower="text", hidden=48)
CROSS = replace(TEXT, causal=False, context_dim=CONTEXT, tower="multimodal")
POOL = replace(IMAGE, context_dim=CONTEXT)
SITES: dict[str, dict[str, Site]] = {
    "norm": {"image": IMAGE, "text": TEXT},
    "ffn": {"image": IMAGE, "text": TEXT},
    "position": {"image": IMAGE, "text": TEXT},
    "attention": {"image": IMAGE, "text": TEXT, "cross": CROSS},
    "pooling": {"image": POOL},
}
AWKWARD = (
    Site(dim=7, heads=3, grid=(5,), hidden=1),
    Site(dim=10, heads=5, grid=(2, 3), hidden=0),
    Site(dim=6, heads=1, grid=(1,), causal=True, hidden=8),
)
ABSOLUTE, RELATIVE = 1e-5, 1e-4


class CheckFailed(AssertionError):  # noqa: N818  (what happened, as pytest's own Failed)
    """A block does not keep to the contract; the message says how."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A block with its options on one site."""

    spec: BlockSpec
    options: dict[str, Option]
    where: str
    site: Site

    @property
    def name(self) -> str:
        """Return what identifies the case: norm/dyt(alpha=1.0)-text."""
        return f"{self.spec.kind}/{self.spec.spell(self.options)}-{self.where}"

    def build(self, seed: int = 0, device: str = "cpu") -> nn.Module:
        """Build the block, in evaluation mode, from a seed."""
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(seed)
            return self.spec.build(self.site, self.options).eval()

    def input(self, scale: float = 1.0, batch: int = 3) -> Tensor:
        """Return tokens [b n c] for the block."""
        width = CONTEXT if self.spec.kind == "pooling" else DIM
        generator = torch.Generator().manual_seed(1)
        return scale * torch.randn(batch, TOKENS, width, generator=generator)

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run the block as its tower would; returns [b n d], or [b q+1 d] for pooling."""
        if self.spec.kind == "position":
            return _run_positions(block, x, self.site)
        if self.spec.kind == "pooling":
            return _run_pooling(block, x)
        if self.spec.kind == "attention" and self.site.context_dim is not None:
            out = block(x, x[..., :CONTEXT])
        else:
            out = block(x)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            raise CheckFailed(f"returned {_shape(out)} for {_shape(x)}, must be {_shape(x)}")
        return out


def _run_positions(block: nn.Module, x: Tensor, site: Site) -> Tensor:
    """Probe all three places where positions act by a plain attention around them."""
    if not isinstance(block, Positions):
        raise CheckFailed("a position block must be a subclass of blocks.Positions")
    y = block.embed(x)
    heads = y.reshape(*y.shape[:2], HEADS, DIM // HEADS).transpose(1, 2)  # [b h n e]
    q, k = block.rotate(heads, heads)
    if y.shape != x.shape or q.shape != heads.shape or k.shape != heads.shape:
        raise CheckFailed("embed and rotate must keep shapes")
    if {y.dtype, q.dtype, k.dtype} != {x.dtype}:
        raise CheckFailed(f"embed and rotate must keep {x.dtype}, got {y.dtype}, {q.dtype}")
    bias = block.bias(TOKENS, TOKENS)
    if bias is not None and bias.shape != (HEADS, TOKENS, TOKENS):
        raise CheckFailed(f"bias returned {_shape(bias)}, must be [h n m]")
    out = attend(q, k, heads, causal=site.causal, bias=bias, backend="reference")
    return out.transpose(1, 2).flatten(2)


def _run_pooling(block: nn.Module, x: Tensor) -> Tensor:
    pooled = block(x)
    if not isinstance(pooled, Pooled):
        raise CheckFailed(f"a pooling block must return blocks.Pooled, got {type(pooled).__name__}")
    tokens, vector = pooled
    if tokens.ndim != 3 or tokens.shape[::2] != (len(x), DIM) or vector.shape != (len(x), DIM):
        raise CheckFailed(f"returned {_shape(tokens)} and {_shape(vector)}, must be [b q d], [b d]")
    return torch.cat([tokens, vector[:, None]], dim=1)


def builds_on_meta(case: Case) -> None:
    """It can be built without memory, as counting parameters does: no .item(), no NumPy."""
    try:
        block = case.build(device="meta")
    except Unsupported:
        raise
    except Exception as error:
        raise CheckFailed(f"building on the meta device raised {error!r}") from error
    real = [n for n, t in (*block.named_parameters(), *block.named_buffers()) if not t.is_meta]
    _require(not real, f"{real} ignore the default device; create them without device=")


def keeps_shape(case: Case) -> None:
    """It returns the shape that its kind asks for, and finite numbers."""
    for scale in (1.0, 100.0):
        out = case.run(case.build(), case.input(scale))
        _require(bool(out.isfinite().all()), f"returned non-finite numbers for inputs x {scale:g}")


def keeps_dtype(case: Case) -> None:
    """It returns fp32 for fp32 and bf16 for bf16."""
    plain = case.run(case.build(), case.input())
    _require(plain.dtype == torch.float32, f"returned {plain.dtype} for torch.float32")
    out = case.run(case.build().bfloat16(), case.input().bfloat16())
    _require(out.dtype == torch.bfloat16, f"returned {out.dtype} for torch.bfloat16")
    _require(bool(out.isfinite().all()), "returned non-finite numbers in bf16")


def initialises_everything(case: Case) -> None:
    """No parameter or buffer is left as memory happened to be."""
    with _poisoned_memory():
        state = case.build().state_dict()
    for name, tensor in state.items():
        good = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        _require(good, f"{name} is never initialised")


def gradients_reach_everything(case: Case) -> None:
    """Every parameter, and the input, gets a gradient that is not zero."""
    block, x = case.build().train(), case.input().requires_grad_()
    weights = torch.linspace(0.5, 1.5, DIM)
    torch.autograd.backward((case.run(block, x) * weights).square().sum())
    for name, tensor in (("the input", x), *block.named_parameters()):
        dead = tensor.grad is None or not bool(tensor.grad.abs().sum() > 0)
        _require(not dead, f"{name} gets no gradient")
        assert tensor.grad is not None
        _require(bool(tensor.grad.isfinite().all()), f"{name} gets a non-finite gradient")


def hides_the_future(case: Case) -> None:
    """On a causal site, no token sees a later one."""
    if not case.site.causal:
        raise Unsupported("the site is not causal")
    block, x = case.build(), case.input()
    changed = torch.cat([x[:, :7], x[:, 7:].flip(0) + 1], dim=1)
    _require_close(
        case.run(block, changed)[:, :7], case.run(block, x)[:, :7], "tokens see later tokens"
    )


def keeps_examples_apart(case: Case) -> None:
    """What an example gives does not depend on the others in its batch."""
    for training in (False, True):
        block, x = case.build().train(training), case.input()
        alone = case.run(block, x[1:2])
        _require_close(case.run(block, x)[1:2], alone, "examples of a batch influence each other")


def option_acts(case: Case, option: str) -> None:
    """An option, set to another value, changes parameters or output."""
    state, scales = case.build().state_dict(), (1.0, 1e-3, 30.0)
    expected = [case.run(case.build(), case.input(scale)) for scale in scales]
    values = _other_values(case, option)
    for value in values:
        try:
            other = replace(case, options={**case.options, option: value}).build()
        except Unsupported:
            continue
        new = other.state_dict()
        if new.keys() != state.keys() or any(not _equal(new[n], state[n]) for n in state):
            return
        outs = [case.run(other, case.input(scale)) for scale in scales]
        if any(not _equal(a, b) for a, b in zip(outs, expected, strict=True)):
            return
    tried = ", ".join(map(repr, values)) or "nothing: name other values in the spec's sweep"
    raise CheckFailed(f"option {option!r} changes nothing (tried {tried})")


def is_deterministic(case: Case) -> None:
    """The same torch seed gives the same weights and outputs, whatever other generators say."""
    outs = []
    for seed in (1, 2):
        random.seed(seed)
        outs.append(case.run(case.build(), case.input()))
    _require(_equal(*outs), "two builds from one torch seed differ")


def leaves_global_random_state(case: Case) -> None:
    """Evaluating draws nothing from torch's global generator: that would unpair two cells."""
    block = case.build()
    before = torch.random.get_rng_state()
    case.run(block, case.input())
    same = torch.equal(before, torch.random.get_rng_state())
    _require(same, "forward draws from torch's global random generator in evaluation")


def survives_a_state_dict(case: Case) -> None:
    """All that matters is in the state dict: loading it into another build restores the output."""
    first, second = case.build(seed=0), case.build(seed=1)
    second.load_state_dict(first.state_dict())
    x = case.input()
    _require_close(case.run(second, x), case.run(first, x), "loading a state dict loses something")


def compiles(case: Case) -> None:
    """torch.compile captures it whole, without a graph break."""
    block, x = case.build(), case.input()
    torch.compiler.reset()
    run = torch.compile(lambda t: case.run(block, t), fullgraph=True, backend="eager")
    try:
        out = run(x)
    except CheckFailed:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise CheckFailed(f"torch.compile(fullgraph=True) fails: {first}") from error
    _require_close(out, case.run(block, x), "compiled and plain outputs differ")


def goes_on_at_an_offset(case: Case) -> None:
    """Decoding token by token gives what reading all at once gives.

    Positions act at an offset as they do there in a whole sequence; attention that takes a cache
    gives the same with one. Attention that takes none is decoded without.
    """
    x, start = case.input(), 5
    if case.spec.kind == "position":
        _check_offset(case.build(), x, start)
        return
    block = case.build()
    takes_cache = "cache" in inspect.signature(block.forward).parameters
    if case.spec.kind != "attention" or not takes_cache:
        raise Unsupported("only positions, and attention that takes a cache, go on at an offset")
    if not case.site.causal and case.site.context_dim is None:
        raise Unsupported("without causality there is no decoding")
    context = x[..., :CONTEXT] if case.site.context_dim is not None else None
    cache, whole = KeyValues(), block(x, context)
    parts = [x[:, :start], *torch.split(x[:, start:], 1, dim=1)]
    found = torch.cat([block(part, context, cache=cache) for part in parts], dim=1)
    _require_close(found, whole, "decoding with a cache gives something else")


def _check_offset(block: nn.Module, x: Tensor, start: int) -> None:
    assert isinstance(block, Positions), type(block)
    heads = x.reshape(*x.shape[:2], HEADS, DIM // HEADS).transpose(1, 2)  # [b h n e]
    pairs = [(block.embed(x[:, start:], offset=start), block.embed(x)[:, start:])]
    part = heads[..., start:, :]
    turned, whole = block.rotate(part, part, offset=start), block.rotate(heads, heads)
    pairs += [(a, b[..., start:, :]) for a, b in zip(turned, whole, strict=True)]
    bias, every = block.bias(TOKENS - start, TOKENS), block.bias(TOKENS, TOKENS)
    if bias is not None and every is not None:
        pairs.append((bias, every[:, start:]))
    for a, b in pairs:
        _require_close(a, b, "an offset is not the place of the first token")


def grows_with_width(case: Case) -> None:
    """An FFN's parameters grow with the hidden width, or widths could not be matched."""
    if case.spec.kind != "ffn":
        raise Unsupported("only FFNs have a hidden width")
    counts = []
    for hidden in (16, 24, 48, 96):
        block = replace(case, site=replace(case.site, hidden=hidden)).build(device="meta")
        counts.append(sum(p.numel() for p in block.parameters()))
    growing = all(a < b for a, b in itertools.pairwise(counts))
    _require(growing, f"hidden widths 16, 24, 48, 96 give {counts} parameters")


def refuses_what_it_cannot_serve(case: Case) -> None:
    """On an awkward site it either works or raises Unsupported with a reason, nothing else."""
    for site in AWKWARD:
        try:
            replace(case, site=site).build(device="meta")
        except Unsupported as reason:
            _require(bool(str(reason)), "Unsupported was raised without a reason")
        except Exception as error:
            raise CheckFailed(f"raised {error!r} for {site}, must be Unsupported") from error


Check = Callable[[Case], None]
CHECKS: tuple[Check, ...] = (
    builds_on_meta,
    keeps_shape,
    keeps_dtype,
    initialises_everything,
    gradients_reach_everything,
    hides_the_future,
    keeps_examples_apart,
    is_deterministic,
    leaves_global_random_state,
    survives_a_state_dict,
    compiles,
    goes_on_at_an_offset,
    grows_with_width,
    refuses_what_it_cannot_serve,
)


def _other_values(case: Case, option: str) -> list[Option]:
    """Return values that an option might take besides the one it has."""
    now, values = case.options[option], list(case.spec.sweep.get(option, ()))
    if isinstance(now, bool):
        values.append(not now)
    elif isinstance(now, int):
        values += [now + 1, 2 * now, now // 2, now - 1]
    elif isinstance(now, float):
        values += [2 * now, now / 2, 10 * now, now + 0.5]
    return [value for value in dict.fromkeys(values) if value != now]


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Let torch.empty give NaN, as torch does on request in its deterministic mode."""
    strict, warn = (torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled())  # fmt: skip
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckFailed(message)


def _require_close(a: Tensor, b: Tensor, message: str) -> None:
    if a.shape != b.shape or not torch.allclose(a, b, atol=ABSOLUTE, rtol=RELATIVE):
        gap = f"by up to {(a - b).abs().max():.2g}" if a.shape == b.shape else "in shape"
        raise CheckFailed(f"{message} (differ {gap})")


def _shape(x: object) -> str:
    return str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__
