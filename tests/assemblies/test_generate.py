from __future__ import annotations

import itertools
import math

import pytest
import torch
from samples import small

from assemblies import CoCa, CoCaConfig, Decoding, Marks, generate, preset, with_field
from assemblies.generate import can_cache, choose
from blocks import UsageError, default_registry

REGISTRY = default_registry()
CELLS = {name: small(name) for name in ("original", "baseline", "grr", "captioner")}
CELLS |= {
    f"*.{kind}={name}": with_field(small(), f"*.{kind}", name)
    for kind in ("position", "attention", "norm")
    for name in REGISTRY.names(kind)
}
CELLS["double_ffn"] = with_field(small(), "multimodal.double_ffn", True)
CELLS["context_norm"] = with_field(small(), "multimodal.context_norm", True)
CELLS["tied"] = with_field(small(), "tied_head", True)
MARKS = Marks()


def sharp(cell: CoCaConfig, seed: int = 0) -> CoCa:
    """Return a model whose next-token distribution is far from flat, so that choices differ."""
    model = CoCa(cell, seed=seed).eval()
    with torch.no_grad():
        model.head.mul_(6.0)
    return model


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("decoding", [
    Decoding(), Decoding(beams=3), Decoding(temperature=0.9, top_k=20, top_p=0.9, seed=4),
], ids=["greedy", "beam", "sample"])  # fmt: skip
def test_cached_equals_uncached(name: str, decoding: Decoding) -> None:
    model = sharp(CELLS[name])
    fields = {f: getattr(decoding, f) for f in Decoding.__dataclass_fields__}
    assert can_cache(model)
    cached = generate(model, images(), decoding=decoding)
    whole = generate(model, images(), decoding=Decoding(**{**fields, "cache": False}))
    assert torch.equal(cached.tokens, whole.tokens)
    torch.testing.assert_close(cached.scores, whole.scores, atol=1e-4, rtol=1e-4)


def test_scores_are_the_models_log_probabilities() -> None:
    model = sharp(small())
    tokens, lengths, scores = generate(model, images(), decoding=Decoding(minimum=4, maximum=9))
    with torch.no_grad():
        logits = model(images(), tokens, lengths).states @ model.head.T
    logits[..., [MARKS.pad, MARKS.begin]] = -math.inf
    logits[:, :3, MARKS.end] = -math.inf
    likely = logits.log_softmax(-1)
    for row, length in enumerate(lengths.tolist()):
        assert 4 <= length - 1 <= 9
        parts = [likely[row, i, tokens[row, i + 1]] for i in range(length - 1)]
        assert float(scores[row]) == pytest.approx(float(sum(parts)), abs=1e-3)
        assert (tokens[row, length:] == MARKS.pad).all()


def tiny_world(seed: int) -> CoCa:
    """Return a model with six ids, of which end and three words can be said."""
    return sharp(small(vocabulary=6, context=6), seed)


def exhaustive(model: CoCa, image: torch.Tensor, longest: int, penalty: float) -> list[int]:
    """Return the best of all captions, by trying every one."""
    words = [i for i in range(6) if i not in (MARKS.pad, MARKS.begin, MARKS.end)]
    every = [
        [MARKS.begin, *body, *end]
        for n in range(longest + 1)
        for body in itertools.product(words, repeat=n)
        for end in ([[MARKS.end]] if n < longest else [[]])
    ]
    best, value = [], -math.inf
    for caption in every:
        tokens = torch.tensor([caption])
        stream = model.text.read(tokens)
        states = model.multimodal(stream, model.image.tokens(image))
        logits = states @ model.head.T
        logits[..., [MARKS.pad, MARKS.begin]] = -math.inf
        likely = logits.log_softmax(-1)[0]
        total = sum(float(likely[i, t]) for i, t in enumerate(caption[1:]))
        if total / (len(caption) - 1) ** penalty > value:
            best, value = caption, total / (len(caption) - 1) ** penalty
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0, -0.5])
@torch.no_grad()
def test_a_wide_beam_equals_exhaustive_search(seed: int, penalty: float) -> None:
    model, pictures = tiny_world(seed), images(2)
    decoding = Decoding(beams=200, length_penalty=penalty, maximum=4)
    tokens, lengths, _ = generate(model, pictures, decoding=decoding)
    for row in range(2):
        expected = exhaustive(model, pictures[row : row + 1], 4, penalty)
        assert tokens[row, : lengths[row]].tolist() == expected


def test_wider_beams_find_likelier_captions() -> None:
    found = []
    for beams in (1, 4, 16):
        decoding = Decoding(beams=beams, length_penalty=0.0)
        found.append(float(generate(sharp(small()), images(8), decoding=decoding).scores.sum()))
    assert found[0] < found[2]
    assert found[1] <= found[2] + 1e-3


@pytest.mark.parametrize("decoding", [
    Decoding(), Decoding(beams=3), Decoding(temperature=1.0, seed=2),
], ids=["greedy", "beam", "sample"])  # fmt: skip
def test_a_row_is_captioned_the_same_alone(decoding: Decoding) -> None:
    model = sharp(small())
    together = generate(model, images(3), decoding=decoding)
    for row in range(3):
        alone = generate(model, images(3)[row : row + 1], decoding=decoding, first=row)
        length = int(together.lengths[row])
        assert alone.tokens[0, :length].tolist() == together.tokens[row, :length].tolist()


def test_sampling_is_seeded_and_follows_the_distribution() -> None:
    model = sharp(small())
    draw = Decoding(temperature=1.0, seed=3)
    first, again = (generate(model, images(), decoding=draw).tokens for _ in range(2))
    assert torch.equal(first, again)
    other = generate(model, images(), decoding=Decoding(temperature=1.0, seed=4)).tokens
    assert first.shape != other.shape or not torch.equal(first, other)

    shares = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    rows = shares.log().expand(20_000, -1)
    draws = torch.rand(len(rows), generator=torch.Generator().manual_seed(0))

    def drawn(**options: float) -> torch.Tensor:
        ids = choose(rows, Decoding(temperature=1.0, **options), draws)
        return torch.bincount(ids, minlength=4) / len(ids)

    torch.testing.assert_close(drawn(), shares[0], atol=0.02, rtol=0)
    torch.testing.assert_close(
        drawn(top_k=2), torch.tensor([0.625, 0.375, 0, 0]), atol=0.02, rtol=0
    )
    torch.testing.assert_close(drawn(top_p=0.5), torch.tensor([1.0, 0, 0, 0]), atol=0, rtol=0)
    expected = torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95
    torch.testing.assert_close(drawn(top_p=0.81), expected, atol=0.02, rtol=0)
    cold = choose(rows, Decoding(temperature=0.01), draws)
    assert (cold == 0).all()


@pytest.mark.parametrize("decoding", [
    Decoding(minimum=6, maximum=8), Decoding(minimum=6, maximum=8, beams=4),
    Decoding(minimum=6, maximum=8, temperature=2.0),
])  # fmt: skip
def test_lengths_are_kept_to_and_marks_never_said(decoding: Decoding) -> None:
    tokens, lengths, _ = generate(sharp(small()), images(6), decoding=decoding)
    assert ((lengths - 1 >= 6) & (lengths - 1 <= 8)).all()
    for row, length in enumerate(lengths.tolist()):
        said = tokens[row, 1:length].tolist()
        assert MARKS.pad not in said
        assert MARKS.begin not in said
        assert said.count(MARKS.end) <= 1
        assert MARKS.end not in said[:-1]


def test_ids_without_a_text_are_never_said() -> None:
    tokens, _, _ = generate(sharp(small()), images(), marks=Marks(known=20))
    assert tokens.max() < 20


def test_the_whole_context_can_be_said_and_no_more() -> None:
    model = sharp(small())
    longest = model.cell.context - 1
    tokens, lengths, _ = generate(model, images(), decoding=Decoding(minimum=longest))
    assert tokens.shape[1] == longest + 1
    assert (lengths == longest + 1).all()
    with pytest.raises(UsageError, match=f"maximum must be at most {longest}"):
        generate(model, images(), decoding=Decoding(maximum=longest + 1))
    with pytest.raises(UsageError, match=f"minimum must be at most {longest}"):
        generate(model, images(), decoding=Decoding(minimum=500))


def test_training_mode_comes_back_and_dropout_does_not_act() -> None:
    model = sharp(small(dropout=0.5)).train()
    first, again = (generate(model, images()).tokens for _ in range(2))
    assert torch.equal(first, again)
    assert model.training


@pytest.mark.parametrize(("options", "message"), [
    ({"beams": 0}, "beams must be at least 1"),
    ({"top_k": 3}, "set a temperature above 0"),
    ({"beams": 2, "temperature": 1.0}, "set temperature to 0"),
    ({"temperature": 1.0, "top_p": 0.0}, "top_p above 0"),
    ({"minimum": 5, "maximum": 3}, "minimum must be at least 1 and at most maximum"),
    ({"temperature": -1.0}, "temperature must be 0 or from 0.01 to 100"),
    ({"temperature": 1e-40}, "temperature must be 0 or from 0.01 to 100"),
    ({"length_penalty": math.nan}, "length_penalty must be from -10 to 10"),
    ({"beams": 100_000}, "at most 512"),
])  # fmt: skip
def test_mistakes_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Decoding(**options)


def test_a_contrastive_model_says_that_it_cannot_caption() -> None:
    with pytest.raises(UsageError, match="has no decoder"):
        generate(CoCa(small("clip")), images())
    assert not preset("clip").captions
