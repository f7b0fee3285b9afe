from __future__ import annotations

import itertools

import pytest
import torch
from samples import small

from assemblies import (
    CoCa,
    CoCaConfig,
    captioning_loss,
    contrastive_loss,
    preset,
    with_field,
)
from assemblies.layer import PLACEMENT
from assemblies.presets import PRESETS as EVERY_PRESET
from blocks import Site, Unsupported, UsageError, default_registry

REGISTRY = default_registry()
PRESETS = ("original", "baseline", "grr")
SWAPS = [
    (f"*.{spec.kind}", spec.name)
    for spec in REGISTRY
    if spec.kind in ("norm", "ffn", "position", "attention")
]
CELLS = {name: small(name) for name in PRESETS}
CELLS |= {f"{path}={name}": with_field(small(), path, name) for path, name in SWAPS}
CELLS |= {f"placement={p}": with_field(small(), "*.placement", p) for p in PLACEMENT}
POOLERS = ["parallel(queries=4)", "single(queries=4)", "single(normed=True, queries=4)", "mean"]
CELLS |= {f"pooling={p}": small(**{"image.pooling": p}) for p in [*POOLERS, "last"]}
CELLS |= {f"class token, {p}": small(**{"image.class_token": True, "image.position": p})
          for p in ("rope", "alibi", "relative", "learned")}  # fmt: skip
WIRING = ("image.pre_norm", "multimodal.double_ffn", "multimodal.context_norm", "tied_head")
CELLS |= {path: with_field(small(), path, True) for path in WIRING}
CELLS |= {"sigmoid": small(contrast="sigmoid"), "cls=end": small(**{"text.cls": "end"})}
CELLS |= {"uneven": small(**{"text.depth": 1, "multimodal.depth": 3, "image.patch_bias": False})}
ONE_SIDED = {name: small(name) for name in ("clip", "captioner")}
ONE_SIDED |= {
    f"{name}, {pooling}": small(name, **{"image.pooling": pooling})
    for name in ("clip", "captioner")
    for pooling in ("cascade(queries=4)", *POOLERS[:-1])
}


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> CoCaConfig:
    return CELLS[request.param]


def inputs(lengths: tuple[int, ...] = (9, 5, 7)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(lengths), 3, 32, 32, generator=generator)
    tokens = torch.randint(3, 400, (len(lengths), max(lengths)), generator=generator)
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    return images, tokens, torch.tensor(lengths)


def test_no_future_leaks_into_caption_states(cell: CoCaConfig) -> None:
    model = CoCa(cell).eval()
    images, tokens, lengths = inputs()
    before = model(images, tokens, lengths).states
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 400
    after = model(images, changed, lengths).states
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[:, 4], before[:, 4], atol=1e-4)


def test_cls_sees_all_real_tokens_and_no_padding(cell: CoCaConfig) -> None:
    model = CoCa(cell).eval()
    images, tokens, lengths = inputs()
    text = model(images, tokens, lengths).embeddings.text
    wider = torch.nn.functional.pad(tokens, (0, 6))
    torch.testing.assert_close(
        model(images, wider, lengths).embeddings.text, text, atol=1e-5, rtol=1e-5
    )
    garbage = wider.clone()
    for row, length in enumerate(lengths):
        garbage[row, length:] = 17
    torch.testing.assert_close(
        model(images, garbage, lengths).embeddings.text, text, atol=1e-5, rtol=1e-5
    )
    for row, length in enumerate(lengths):
        for place in range(length):
            changed = tokens.clone()
            changed[row, place] = (changed[row, place] + 1) % 400
            other = model(images, changed, lengths).embeddings.text
            moved = (other - text).abs().amax(dim=-1)
            assert moved[row] > 1e-7, f"CLS of caption {row} does not see token {place}"
            others = torch.arange(len(lengths)) != row
            assert moved[others].max() < 1e-5


def test_states_of_real_tokens_do_not_depend_on_padding(cell: CoCaConfig) -> None:
    model = CoCa(cell).eval()
    images, tokens, lengths = inputs()
    states = model(images, tokens, lengths).states
    wider = model(images, torch.nn.functional.pad(tokens, (0, 5)), lengths).states
    for row, length in enumerate(lengths):
        torch.testing.assert_close(wider[row, :length], states[row, :length], atol=1e-5, rtol=1e-5)


def test_examples_do_not_mix(cell: CoCaConfig) -> None:
    model = CoCa(cell).eval()
    images, tokens, lengths = inputs()
    whole = model(images, tokens, lengths)
    alone = model(images[1:2], tokens[1:2], lengths[1:2])
    every = (*whole.embeddings[:2], whole.states)
    one = (*alone.embeddings[:2], alone.states)
    for got, expected in zip(every, one, strict=True):
        torch.testing.assert_close(got[1:2], expected, atol=1e-5, rtol=1e-5)


def test_every_parameter_gets_a_gradient(cell: CoCaConfig) -> None:
    model = CoCa(cell)
    images, tokens, lengths = inputs()
    out = model(images, tokens, lengths)
    loss = contrastive_loss(out.embeddings, torch.arange(len(images)))
    (loss + captioning_loss(out.states, model.head, tokens, lengths)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        unused_by_design = name.endswith("positions.table")  # rows behind the captions' ends
        unused_by_design |= name in NO_EFFECT
        assert unused_by_design or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ONE_SIDED)
def test_every_parameter_of_a_one_sided_model_gets_a_gradient(name: str) -> None:
    model = CoCa(ONE_SIDED[name])
    images, tokens, lengths = inputs()
    out = model(images, tokens, lengths)
    assert (out.embeddings is None) == name.startswith("captioner")
    assert (out.states is None) == name.startswith("clip")
    if out.embeddings is not None:
        scores = out.embeddings.image @ out.embeddings.text.T * out.embeddings.scale
        scores.logsumexp(-1).sum().backward()
    else:
        (out.states @ model.head.T).logsumexp(-1).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["grr", "original"])
@pytest.mark.parametrize("pooling", ["cascade(queries=4)", *POOLERS, "last"])
def test_half_a_forward_pass_is_half_of_the_whole(name: str, pooling: str) -> None:
    model = CoCa(small(name, **{"image.pooling": pooling})).eval()
    batch = inputs()
    whole = model(*batch)
    contrast, caption = model(*batch, caption=False), model(*batch, contrast=False)
    assert contrast.states is None
    assert caption.embeddings is None
    for got, expected in zip(contrast.embeddings[:2], whole.embeddings[:2], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    real = torch.arange(batch[1].shape[1]) < batch[2][:, None]
    torch.testing.assert_close(caption.states[real], whole.states[real], atol=1e-5, rtol=1e-5)


def test_nothing_is_computed_for_a_loss_that_is_not_wanted() -> None:
    ran: list[str] = []
    model = CoCa(small(**{"image.pooling": "parallel(queries=4)"}))
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: ran.append(name))
    model(*inputs(), contrast=False)
    never = ("image.pooler.contrastive", "image_projection", "text_projection")
    assert not [n for n in ran if n.startswith(never)]
    assert "text.stack.final_norm" not in ran
    assert "multimodal" in ran
    ran.clear()
    model(*inputs(), caption=False)
    assert not [n for n in ran if n.startswith(("multimodal", "image.pooler.captioning"))]
    assert "text_projection" in ran


def test_one_sided_models_refuse_the_other_side() -> None:
    clip, captioner = (CoCa(ONE_SIDED[name]) for name in ("clip", "captioner"))
    names = [name for name, _ in clip.named_parameters()]
    assert not [name for name in names if name.startswith("multimodal")]
    assert not [name for name, _ in captioner.named_parameters() if "projection" in name]
    with pytest.raises(UsageError, match="built for contrastive only"):
        clip(*inputs(), caption=True)
    with pytest.raises(UsageError, match="built for captioning only"):
        captioner(*inputs(), contrast=True)
    with pytest.raises(UsageError, match="built for captioning only"):
        captioner.encode_image(inputs()[0])
    with pytest.raises(UsageError, match="both False"):
        clip(*inputs(), contrast=False, caption=False)


@pytest.mark.parametrize(("name", "path", "value"), [
    ("captioner", "temperature", 0.1), ("captioner", "contrast", "sigmoid"),
    ("captioner", "text.cls", "end"), ("clip", "tied_head", True),
])  # fmt: skip
def test_fields_without_effect_are_refused(name: str, path: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{path} has no effect where the objective is"):
        small(name, **{path: value})


@pytest.mark.parametrize("size", [16, 31, 40])
def test_images_of_another_size_are_refused(size: int) -> None:
    images, tokens, lengths = inputs()
    with pytest.raises(UsageError, match=r"images must be \[b 3 32 32\]"):
        CoCa(small())(torch.zeros(3, 3, size, size), tokens, lengths)
    with pytest.raises(UsageError, match="at most 24 ids, got 25"):
        CoCa(small())(images, torch.zeros(3, 25, dtype=torch.long), lengths)


def test_a_class_token_has_no_place() -> None:
    """Patches keep their rotations and biases; the class token's scores have neither."""
    from assemblies.sequence import Placed

    site = Site(dim=32, heads=2, grid=(2, 3), tower="image")
    for name in ("rope", "alibi", "relative"):
        inner = REGISTRY.build("position", name, site)
        placed = Placed(inner, 1)
        q, k = torch.randn(2, 1, 2, 7, 16).unbind(0)
        turned, expected = placed.rotate(q, k), inner.rotate(q[..., :6, :], k[..., :6, :])
        for got, wanted, plain in zip(turned, expected, (q, k), strict=True):
            assert torch.equal(got[..., :6, :], wanted)
            assert torch.equal(got[..., 6:, :], plain[..., 6:, :])
        bias = placed.bias(7, 7)
        if name != "rope":
            assert torch.equal(bias[:, :6, :6], inner.bias(6, 6))
            assert not bias[:, 6].any()
            assert not bias[:, :, 6].any()


@pytest.mark.parametrize("place", ["end", "end_legacy"])
def test_cls_behind_the_padding_sees_what_it_should(place: str) -> None:
    model = CoCa(small(**{"text.cls": place})).eval()
    _, tokens, lengths = inputs((9, 5, 6))
    before = model.encode_text(tokens, lengths)

    def moves(column: int) -> bool:
        changed = tokens.clone()
        changed[1, column] = 17
        return not torch.allclose(model.encode_text(changed, lengths)[1], before[1], atol=1e-6)

    seen = [column for column in range(9) if moves(column)]
    assert seen == ([0, 1, 2, 3, 4] if place == "end" else [0, 1, 2, 3, 4, 5])


# One scale for all of a vector that is made a unit vector next: only rounding gives it a gradient.
NO_EFFECT = {"text.stack.final_norm.scale"}
COMBINED = ("norm", "ffn", "position", "attention", "pooling")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("norm", REGISTRY.names("norm"))
def test_every_combination_of_blocks_keeps_the_properties(norm: str) -> None:
    """All that the tests above ask of single swaps, of all combinations in all towers at once."""
    images, tokens, lengths = inputs((7, 4))
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 400
    close, combinations = {"atol": 1e-4, "rtol": 1e-4}, 0
    for blocks in itertools.product([norm], *(REGISTRY.names(kind) for kind in COMBINED[1:])):
        cell = small()
        for kind, name in zip(COMBINED, blocks, strict=True):
            spelled = f"{name}(queries=4)" if name in ("cascade", "parallel", "single") else name
            cell = with_field(cell, f"{'image' if kind == 'pooling' else '*'}.{kind}", spelled)
        model = CoCa(cell)
        out = model(images, tokens, lengths)
        loss = contrastive_loss(out.embeddings, torch.arange(2))
        (loss + captioning_loss(out.states, model.head, tokens, lengths)).backward()
        dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert set(dead) <= NO_EFFECT, (blocks, dead)
        with torch.no_grad():
            wider = model(images, torch.nn.functional.pad(changed, (0, 4)), lengths)
            alone = model(images[:1], tokens[:1], lengths[:1])
        torch.testing.assert_close(wider.states[:, :3], out.states[:, :3].detach(), **close)
        torch.testing.assert_close(wider.embeddings.image, out.embeddings.image.detach(), **close)
        assert not torch.allclose(wider.embeddings.text, out.embeddings.text.detach(), atol=1e-6)
        torch.testing.assert_close(alone.embeddings.text, out.embeddings.text[:1].detach(), **close)
        torch.testing.assert_close(alone.states, out.states[:1].detach(), **close)
        combinations += 1
    assert combinations == 5 * 7 * 3 * 5


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_PRESET)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiled_in_one_graph_trains_as_eager_does(name: str) -> None:
    losses = []
    for compiled in (False, True):
        model = CoCa(preset(name, "nano"))
        forward = torch.compile(model, fullgraph=True) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        generator, found = torch.Generator().manual_seed(0), []
        for _ in range(5):
            images = torch.randn(8, 3, 48, 48, generator=generator)
            tokens = torch.randint(3, 2000, (8, 12), generator=generator)
            lengths = torch.randint(3, 13, (8,), generator=generator)
            out = forward(images, tokens, lengths)
            terms = []
            if out.embeddings is not None:
                terms.append(contrastive_loss(out.embeddings, torch.arange(8)))
            if out.states is not None:
                terms.append(2 * captioning_loss(out.states, model.head, tokens, lengths))
            loss = torch.stack(terms).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.detach())
        losses.append(torch.stack(found))
    assert losses[0][-1] != losses[0][0]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-3, rtol=0)


def test_a_second_model_is_bit_identical(cell: CoCaConfig) -> None:
    first = CoCa(cell, seed=3).state_dict()
    torch.randn(1000)
    second = CoCa(cell, seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = CoCa(cell, seed=4).state_dict()
    assert not torch.equal(other["text.tokens.weight"], first["text.tokens.weight"])


def test_cells_that_share_a_module_start_bit_identical_in_it() -> None:
    baseline, grr = (CoCa(small(name), seed=5).state_dict() for name in ("baseline", "grr"))
    shared = [name for name in grr if name in baseline and grr[name].shape == baseline[name].shape]
    for name in shared:
        assert torch.equal(grr[name], baseline[name]), name
    for part in ("image.patches", "image.pooler", "text.", "multimodal.", "image_projection"):
        assert any(name.startswith(part) for name in shared), part
    attention = "image.stack.layers.0.attention.branch.query.weight"
    assert attention in shared


def test_building_leaves_the_global_random_stream_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    CoCa(small())
    assert torch.equal(torch.rand(3), expected)


def test_a_layer_of_identities_is_a_no_op() -> None:
    from assemblies.layer import Layer, Residual

    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor, *args: object, **named: object) -> torch.Tensor:
            return torch.zeros_like(x)

    residuals = [
        Residual(Zero(), lambda role: torch.nn.Identity(), placement, 0.0)
        for placement in ("pre", "post")
    ]
    layer = Layer(residuals[0], None, residuals[1])
    x = torch.randn(2, 3, 4)
    positions = REGISTRY.build("position", "none", Site(dim=4))
    assert torch.equal(layer(x, positions), x)


def test_unsupported_sites_name_the_module() -> None:
    cell = with_field(with_field(small(), "image.width", 36), "image.heads", 6)
    with pytest.raises(Unsupported, match=r"image\.positions: rope on 2 axes .* got 6"):
        CoCa(cell)


def test_residual_streams_are_fp32_under_autocast() -> None:
    model, seen = CoCa(small("original")), {}
    for name in ("image", "text", "multimodal"):
        layer = getattr(model, name).stack.layers[0]
        layer.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(*inputs())
    assert set(seen.values()) == {torch.float32}
    assert out.embeddings.image.dtype == out.embeddings.text.dtype == torch.float32


def test_dropout_acts_in_training_only() -> None:
    model = CoCa(small(dropout=0.5))
    batch = inputs()
    assert not torch.equal(model(*batch).states, model(*batch).states)
    model.eval()
    assert torch.equal(model(*batch).states, model(*batch).states)
