from __future__ import annotations

import pytest
import torch
from samples import small

from assemblies import SIZES, CoCa, CoCaConfig, cost, preset, with_field
from assemblies.construct import count_parameters, matched_hidden
from assemblies.layer import PLACEMENT
from blocks import Site, Unsupported, default_registry

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
    real = torch.arange(tokens.shape[1]) < lengths[:, None] - 1
    logits = out.states[real] @ model.head.T
    loss = (out.embeddings.image @ out.embeddings.text.T * out.embeddings.scale).logsumexp(
        -1
    ).sum() + logits.logsumexp(-1).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        unused_by_design = name.endswith("positions.table")  # rows behind the captions' ends
        assert unused_by_design or parameter.grad.abs().sum() > 0, name


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


@pytest.mark.parametrize("ffn", REGISTRY.names("ffn"))
@pytest.mark.parametrize("dim", [64, 256, 768])
def test_ffn_widths_match_parameters(ffn: str, dim: int) -> None:
    site = Site(dim=dim)

    def parameters(name: str, hidden: int) -> int:
        sized = Site(dim=dim, hidden=hidden)
        return count_parameters(REGISTRY.build("ffn", name, sized))

    hidden = matched_hidden(REGISTRY, ffn, site, 4.0)
    target = parameters("mlp", 4 * dim)
    best = min((parameters(ffn, h) for h in (hidden - 8, hidden, hidden + 8)),
               key=lambda n: abs(n - target))  # fmt: skip
    assert parameters(ffn, hidden) == best
    assert hidden % 8 == 0


@pytest.mark.parametrize("size", SIZES)
def test_presets_of_a_size_have_the_same_parameters_within_1_percent(size: str) -> None:
    counts = [
        cost(preset(name, size), batch=2, tokens=8, registry=REGISTRY).parameters
        for name in PRESETS
    ]
    assert max(counts) / min(counts) < 1.01


@pytest.mark.parametrize(("size", "millions"), [("base", 383), ("large", 787), ("giant", 2100)])
def test_sizes_are_the_papers(size: str, millions: int) -> None:
    counted = cost(preset("original", size), batch=1, tokens=8, registry=REGISTRY)
    # Table 1 of arXiv 2205.01917 counts neither poolers nor projections: about 5 to 20 million.
    assert counted.parameters / 1e6 == pytest.approx(millions, rel=0.06)


def test_cost_counts_what_is_built() -> None:
    counted = cost(small(), batch=2, tokens=8, registry=REGISTRY)
    assert counted.parameters == count_parameters(CoCa(small()))
    assert counted.image_parameters == count_parameters(CoCa(small()).image)
    twice = cost(small(), batch=4, tokens=8, registry=REGISTRY)
    assert twice.step_flops == pytest.approx(2 * counted.step_flops, rel=0.01)


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
